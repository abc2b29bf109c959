"""What all tests need of the process that they run in."""

import signal

import torch

# Bits depend on the number of threads: one everywhere, as in the pools that the tests compare.
torch.set_num_threads(1)
# A shell starts its background jobs with Ctrl-C ignored, and programs that they start ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
