"""Build what an actor runs: an engine, a score batcher or a rewrite runner.

An actor gets such a function as ``module:function`` and calls it in its own process, so that a driver needs neither the
model nor its requirements. Each returns the object to run and a description of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from lotts_search.actors.engine_thread import Tickable
from lotts_search.work.batch_sizes import Batch
from lotts_search.work.model import ModelInfo

ENGINE = "lotts_search.actors.factories:make_engine"
SCORER = "lotts_search.actors.factories:make_scorer"
REWRITER = "lotts_search.actors.factories:make_rewriter"


def make_engine(model: str, options: dict[str, Any], batch: Batch, threads: int) -> tuple[Tickable, ModelInfo]:
    """Return this project's engine for a registered model or a diffusers folder."""
    import torch

    from lotts_search.engine.engine import Engine
    from lotts_search.registry import load_backbone

    torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS to the actor's CPUs; equal threads give equal bits
    backbone = load_backbone(model, **options)
    return Engine(backbone, batch), backbone.info


def make_scorer(verifier: str, batch: Batch, threads: int) -> tuple[Tickable, str]:
    """Return a score batcher for a registered verifier."""
    from lotts_search.registry import load_verifier
    from lotts_search.verifiers.batcher import ScoreBatcher

    loaded = load_verifier(verifier)
    _limit_threads(threads)
    return ScoreBatcher(loaded, batch), verifier


def make_rewriter(
    name: str, settings: Mapping[str, object], environ: Mapping[str, str], threads: int
) -> tuple[Tickable, str]:
    """Return a rewrite runner for a registered rewriter.

    Args:
        environ: variables of the driver's environment that the rewriter reads, e.g. address and key of an endpoint.
    """
    from lotts_search.registry import load_rewriter
    from lotts_search.rewriters.runner import RewriteRunner

    os.environ.update(environ)
    loaded = load_rewriter(name, settings)
    _limit_threads(threads)
    return RewriteRunner(loaded), name


def _limit_threads(threads: int) -> None:
    """Limit torch if it is loaded; the environment of a verifier may lack it, and a later import reads
    OMP_NUM_THREADS."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
