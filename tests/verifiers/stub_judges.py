"""Verifiers for a process of their own that misbehave as the prompt of an image says.

``die``, ``exit``, ``raise``, ``hang``, ``nan``, ``few``, ``refuse``, ``print``; any other prompt gives the brightness.
``once PATH`` dies unless the file PATH exists, and creates it. ``moody`` dies of every third image, by the sum of its pixels.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lotts_search.errors import BadInput


class Brightness:
    """The mean of an image plus a bias."""

    name = "stub-judge"
    requirements: tuple[str, ...] = ()
    environment = "stub.toml"

    def __init__(self, bias: float, batch: int | None):
        self.bias = bias
        self.pad = False
        if batch is not None:
            self.batch = batch

    @classmethod
    def load(cls, *, bias: float = 0.0, batch: int | None = None, timeout: float = 300.0) -> Brightness:
        """Load it.

        Args:
            bias: added to each score; above 1000 loading fails, above 2000 the process dies.
            batch: most images in one call.
            timeout: seconds that one call may take.
        """
        if bias > 2000:
            os.kill(os.getpid(), signal.SIGKILL)
        if bias > 1000:
            raise FileNotFoundError("no weights")
        print("loading …")
        return cls(bias, batch)

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        """Score images."""
        scores = images.mean(axis=(1, 2, 3), dtype=np.float64) + self.bias
        for row, prompt in enumerate(prompts):
            verb, _, rest = prompt.partition(" ")
            if verb == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif verb == "exit":
                sys.exit(3)
            elif verb == "once" and not Path(rest).exists():
                Path(rest).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            elif verb == "moody" and int(images[row].sum()) % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            elif verb == "hang":
                time.sleep(1000)
            elif verb == "raise":
                raise ValueError("cannot judge this")
            elif verb == "refuse":
                raise BadInput("images must be larger")
            elif verb == "nan":
                scores[row] = np.nan
            elif verb == "few":
                return scores[:-1]
            elif verb == "spawn":
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
                Path(rest).write_text(f"{os.getpid()} {child.pid}")
            elif verb == "print":
                print("a", "line" * 10000)
                os.write(1, b"raw bytes on standard output\n")
        return scores.astype(np.float32)
