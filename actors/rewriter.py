"""Rewriter actors: each holds one rewriter, with requests answered in threads of its own."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Mapping
from typing import Any

from lotts_search.actors.host import Ticking
from lotts_search.actors.shell import Shell

REWRITER = "lotts_search.actors.rewriter:make_rewriter"


def make_rewriter(
    name: str, settings: Mapping[str, object], environ: Mapping[str, str], threads: int
) -> tuple[Ticking, str]:
    """The project's own runner around a registered rewriter.

    Args:
        environ: variables of the driver's environment that it reads, e.g. the address and key of an endpoint.
    """
    from lotts_search.registry import load_rewriter
    from lotts_search.rewriters.runner import RewriteRunner

    os.environ.update(environ)
    loaded = load_rewriter(name, settings)
    if "torch" in sys.modules:  # one that imports it later finds the number in OMP_NUM_THREADS
        sys.modules["torch"].set_num_threads(threads)
    return RewriteRunner(loaded), name


class RewriterActor(Shell):
    """An actor around the runner that ``factory`` (``module:function``, see :func:`make_rewriter`) builds."""

    def __init__(
        self,
        name: str,
        factory: str,
        rewriter: str,
        settings: dict[str, Any],
        environ: dict[str, str],
        threads: int,
    ) -> None:
        def build() -> tuple[Ticking, str]:
            built: tuple[Ticking, str] = pkgutil.resolve_name(factory)(rewriter, settings, environ, threads)
            return built

        super().__init__(name, build)
