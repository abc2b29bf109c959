"""What a strategy holds: handles of candidates and masks. The arrays stay with the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from lotts_search.work.masks import MaskSource
from lotts_search.work.requests import Lineage


@dataclass(eq=False)
class Candidate:
    """A latent at some step.

    Attributes:
        key: unique within its search; the id of the trial that made it.
        kind: that trial's kind: sample, encode, refine or advance.
        step: steps done, 0..steps.
        steps: T of its schedule.
        lineage: the chain of seeds that its noise comes from.
        nfe: cost from pure noise, including its parents.
        parent: the candidate that it was made from.
        refined: whether it is a refinement or was made from one.
        score: guiding score; a complete candidate has one, a partial one only after ``search.score(candidate)``.
    """

    key: str
    kind: str
    step: int
    steps: int
    lineage: Lineage
    nfe: float
    parent: Candidate | None = field(default=None, repr=False)
    refined: bool = False
    score: float | None = None

    @property
    def complete(self) -> bool:
        return self.step == self.steps


def score_of(candidate: Candidate | None) -> float:
    """Return a candidate's guiding score, or minus infinity where there is no candidate or no score yet."""
    return -math.inf if candidate is None or candidate.score is None else candidate.score


@dataclass(frozen=True, eq=False)
class Mask:
    """A region that was located on a complete candidate.

    Attributes:
        key: the id of the trial that located it.
        source: how it was found.
        ratio: share of the latent inside the mask, 0..1.
        confidence: mean heat inside minus mean heat outside, 0..1.
    """

    key: str
    source: MaskSource
    ratio: float
    confidence: float


def trial_key(parent: str, kind: str, arguments: Sequence[object], occurrence: int) -> str:
    """Return the id of a trial: a 12-digit hex hash of its parent, kind, arguments (by repr) and occurrence."""
    text = repr((parent, kind, tuple(arguments), occurrence))
    return blake2b(text.encode(), digest_size=6).hexdigest()
