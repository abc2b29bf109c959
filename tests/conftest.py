"""What all tests need of the process that they run in."""

import signal
import sys
from collections.abc import Iterator

import pytest
import torch

# Bits depend on the number of threads: one everywhere, as in the pools that the tests compare.
torch.set_num_threads(1)
# A shell starts its background jobs with Ctrl-C ignored, and programs that they start ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files of tests run in any order: none finds a module from a temporary folder that another has left.

    Modules of an environment stay, wherever it lies: torch's cannot be imported twice.
    """
    before, folder = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]
