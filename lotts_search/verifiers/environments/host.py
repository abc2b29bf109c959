"""The process of a verifier in its environment: ``python -I host.py CONFIGURATION``, with a socket as standard input.

It sees the packages of the environment, and of the project only those that are named: the verifier's own module and
``lotts_search``, whose modules for verifiers need numpy alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import queue
import signal
import socket
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PARENT_S = 1.0
"""Seconds between checks that the parent lives."""


class _Named(MetaPathFinder):
    """Find some top-level packages in folders whose other packages stay hidden.

    Args:
        folders: the folder by the package's name.
    """

    def __init__(self, folders: dict[str, str]):
        self.folders = folders

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        folder = self.folders.get(fullname)
        return None if folder is None else PathFinder.find_spec(fullname, [folder])


def main() -> None:
    """Load a verifier and score until the connection ends."""
    configuration = json.loads(sys.argv[1])
    # Standard input and output are free for whatever the verifier does with them; its prints go to standard error.
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=[configuration["parent"]], daemon=True).start()
    sys.meta_path.insert(0, _Named(configuration["packages"]))
    for name, attributes in configuration["stubs"].items():
        stub = sys.modules[name] = ModuleType(name, "Stands for a module that scoring does not need.")
        vars(stub).update(dict.fromkeys(attributes), __all__=attributes)

    from lotts_search.verifiers.environments import frames

    inbox: queue.SimpleQueue[tuple[dict[str, Any], bytearray]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=[frames, connection, inbox], daemon=True).start()
    verifier = None
    while True:
        header, body = inbox.get()
        answer: dict[str, Any] = {"call": header["call"]}
        scores = b""
        try:
            if "find" in header:
                pkgutil.resolve_name(header["find"])
            elif "load" in header:
                kind, settings = pkgutil.resolve_name(header["load"]), header["settings"]
                if "rehearse" in header:
                    settings |= kind.rehearse(**header["rehearse"])
                verifier = kind.load(**settings)
                answer |= {"batch": getattr(verifier, "batch", None), "pad": bool(getattr(verifier, "pad", True))}
                answer |= {"flops": float(getattr(verifier, "flops", 0.0))}
            else:
                answer["rows"], scores = _score(frames, verifier, header, body)
        except Exception as error:
            answer |= {"error": type(error).__name__, "text": str(error)}
        try:
            frames.send(connection, answer, scores)
        except OSError:
            _end()


def _score(frames: Any, verifier: Any, header: dict[str, Any], body: bytearray) -> tuple[list[str], bytes]:
    """Score the images of a request; return their identities and scores."""
    import numpy as np

    prompts, shape = header["prompts"], tuple(header["shape"])
    rows = frames.identities(header["call"], prompts, memoryview(body))
    if header.get("threads") and "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        if torch.get_num_threads() != header["threads"]:
            torch.set_num_threads(header["threads"])
    scores = np.asarray(verifier.score(list(prompts), np.frombuffer(body, np.uint8).reshape(shape)), np.float32)
    if scores.shape != (len(prompts),):
        raise ValueError(f"scores of shape {scores.shape} for {len(prompts)} images")
    return rows, scores.astype("<f4").tobytes()


def _read(frames: Any, connection: socket.socket, inbox: Any) -> None:
    """Read requests; end the process with the connection, even while it computes."""
    with contextlib.suppress(EOFError, OSError, frames.BrokenFrame):
        while True:
            inbox.put(frames.receive(connection))
    _end()


def _end_with_parent(parent: int) -> None:
    """End the process when its parent has died: a copy of the connection may be open in another process."""
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    _end()


def _end() -> None:
    """End this process and all that it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
