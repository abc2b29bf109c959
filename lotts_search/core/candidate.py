"""What a strategy holds: handles of candidates and masks. The tensors stay with the search."""

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
        key: names it within its search; the id of the trial that made it.
        kind: that trial's kind: sample, encode, refine or advance.
        step: steps done, 0..steps.
        steps: T of its schedule.
        lineage: the chain of seeds that its noise comes from.
        nfe: what it cost, from pure noise, its parents included.
        parent: what it was made from.
        refined: it is a refinement or goes on from one.
        score: guiding score; of a complete candidate always, of a partial one after ``search.score(candidate)``.
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
        ratio: share of the latent that it covers, 0..1.
        confidence: mean heat inside minus mean heat outside, 0..1.
    """

    key: str
    source: MaskSource
    ratio: float
    confidence: float


def trial_key(parent: str, kind: str, arguments: Sequence[object], occurrence: int) -> str:
    """The name of a trial: 12 hexadecimal digits of the hash of what it is. ``arguments`` are told apart by repr."""
    text = repr((parent, kind, tuple(arguments), occurrence))
    return blake2b(text.encode(), digest_size=6).hexdigest()
