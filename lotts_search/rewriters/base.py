"""What revises prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lotts_search.work.requests import Rewrite


class PromptRewriter(Protocol):
    """Writes revised prompts for half-made images. An implementation is a dataclass; its fields are its settings.

    It may raise anything, and answer late, wrongly or too little:
    :class:`~lotts_search.rewriters.runner.RewriteRunner` lets the original prompt stand in and counts it.

    Attributes:
        requirements: pip requirements beyond the project's own; Ray gives the actor an environment with them.
        batch: requests that are answered in one call, 1 or more.
        parallel: calls that may be under way at once, from different threads, 1 or more.
        timeout: seconds after which a call's answer is not waited for any more.
    """

    requirements: tuple[str, ...]
    batch: int
    parallel: int
    timeout: float

    def rewrite(self, requests: Sequence[Rewrite]) -> Sequence[Sequence[str]]:
        """For each request ``count`` revised prompts, by what its image [h, w, 3] lacks of its prompt."""
