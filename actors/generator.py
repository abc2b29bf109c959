"""Generator actors: each holds one backbone and all trajectories that now run on it."""

from __future__ import annotations

import pkgutil
from typing import Any

from lotts_search.actors.host import Ticking
from lotts_search.actors.shell import Shell
from lotts_search.work.model import ModelInfo

ENGINE = "lotts_search.actors.generator:make_engine"


def make_engine(model: str, options: dict[str, Any], max_batch: int, threads: int) -> tuple[Ticking, ModelInfo]:
    """The project's own engine around a registered model or a diffusers folder.

    A plug-in gives the dotted path ``module:function`` of a function with these arguments to host another engine.
    """
    import torch

    from lotts_search.engine.engine import Engine
    from lotts_search.registry import load_backbone

    torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS to an actor's CPUs; equal threads give equal bits
    backbone = load_backbone(model, **options)
    return Engine(backbone, max_batch=max_batch, pad=True), backbone.info


class GeneratorActor(Shell):
    """An actor around the engine that ``factory`` (``module:function``, see :func:`make_engine`) builds."""

    def __init__(
        self, name: str, factory: str, model: str, options: dict[str, Any], max_batch: int, threads: int
    ) -> None:
        def build() -> tuple[Ticking, ModelInfo]:
            built: tuple[Ticking, ModelInfo] = pkgutil.resolve_name(factory)(model, options, max_batch, threads)
            return built

        super().__init__(name, build)
