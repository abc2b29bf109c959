"""Bits depend on the number of threads: one everywhere, as in the pools that the tests compare."""

import torch

torch.set_num_threads(1)
