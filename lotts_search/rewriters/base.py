"""The interface of rewriters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lotts_search.errors import BadInput
from lotts_search.work.requests import Rewrite


def check_rewriter(rewriter: PromptRewriter) -> None:
    """Refuse a rewriter that would never be asked.

    Raises:
        BadInput: its ``batch``, ``parallel`` or ``timeout`` is not above 0.
    """
    for name in ("batch", "parallel", "timeout"):
        if not getattr(rewriter, name) > 0:
            raise BadInput(f"{name} of a rewriter must be above 0, not {getattr(rewriter, name)}")


class PromptRewriter(Protocol):
    """Writes revised prompts for unfinished images. An implementation is a dataclass; its fields are its settings.

    If it raises, is late or returns too few prompts,
    :class:`~lotts_search.rewriters.runner.RewriteRunner` uses the original prompt instead and counts that.

    Attributes:
        requirements: pip requirements beyond the project's own; Ray installs them in the actor's environment.
        batch: requests per call, 1 or more.
        parallel: concurrent calls, from different threads, 1 or more.
        timeout: seconds after which a call is abandoned.
    """

    requirements: tuple[str, ...]
    batch: int
    parallel: int
    timeout: float

    def rewrite(self, requests: Sequence[Rewrite]) -> Sequence[Sequence[str]]:
        """Return for each request ``count`` revised prompts that stress what its image [h, w, 3] lacks."""
