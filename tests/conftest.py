"""What all tests need of the process that they run in."""

import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch

# Bits depend on the number of threads: one everywhere, as in the pools that the tests compare.
torch.set_num_threads(1)
# A shell starts its background jobs with Ctrl-C ignored, and programs that they start ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def leave_nothing_behind() -> Iterator[None]:
    """Files of tests run in any order: none finds a module from a temporary folder that another has left."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(tempfile.gettempdir()):
            del sys.modules[name]
