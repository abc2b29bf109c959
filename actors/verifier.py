"""Verifier actors: each holds one verifier, in a Python environment of its own where its requirements ask for one."""

from __future__ import annotations

import pkgutil
import sys

from lotts_search.actors.host import Ticking
from lotts_search.actors.shell import Shell

SCORER = "lotts_search.actors.verifier:make_scorer"


def make_scorer(verifier: str, max_batch: int, threads: int) -> tuple[Ticking, str]:
    """Micro-batched scoring by a registered verifier; a plug-in may give the path of another such function."""
    from lotts_search.registry import load_verifier
    from lotts_search.verifiers.batcher import ScoreBatcher

    loaded = load_verifier(verifier)
    if "torch" in sys.modules:  # a verifier need not be a torch model, and its environment may lack torch
        sys.modules["torch"].set_num_threads(threads)
    return ScoreBatcher(loaded, max_batch=max_batch, pad=True), verifier


class VerifierActor(Shell):
    """An actor around the scorer that ``factory`` (``module:function``, see :func:`make_scorer`) builds."""

    def __init__(self, name: str, factory: str, verifier: str, max_batch: int, threads: int) -> None:
        def build() -> tuple[Ticking, str]:
            built: tuple[Ticking, str] = pkgutil.resolve_name(factory)(verifier, max_batch, threads)
            return built

        super().__init__(name, build)
