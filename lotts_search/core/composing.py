"""Candidates composed by region: which may be composed, and what comes out. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from lotts_search.core.candidate import Candidate
from lotts_search.errors import BadInput
from lotts_search.work.mosaics import mosaic
from lotts_search.work.requests import Choices, Lineage, Sampling, State


def checked(choice: npt.ArrayLike, count: int, dimensions: int) -> Choices:
    """Return whole numbers in 0..count-1 with this many dimensions, as uint8.

    Raises:
        BadInput: they are something else, or there are more than 256 candidates.
    """
    given = np.asarray(choice)
    if given.ndim != dimensions or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise BadInput(f"a choice must be whole numbers with {dimensions} dimensions, not {given.dtype} {given.shape}")
    if not 1 <= count <= 256:
        raise BadInput(f"a mosaic is made of 1..256 candidates, not {count}")
    if given.min() < 0 or given.max() >= count:
        raise BadInput(
            f"a choice among {count} candidates must be within 0..{count - 1}, not {given.min()}..{given.max()}"
        )
    return given.astype(np.uint8)


def check_siblings(candidates: Sequence[Candidate], samplings: Sequence[Sampling]) -> None:
    """Refuse to compose what does not differ by white noise alone.

    Raises:
        BadInput: the candidates are not all one step after the same parent, or all pure noise, or their prompts or
            other settings of sampling differ.
    """
    first = candidates[0]
    parent = first.parent
    step = 0 if parent is None else parent.step + 1
    for one, sampling in zip(candidates, samplings, strict=True):
        if one.parent is not parent or one.step != step or one.complete or one.kind == "refine":
            raise BadInput(
                f"candidate {one.key} cannot be composed with {first.key}: both must be one step after the same parent, or "
                "pure noise, and not complete"
            )
        if sampling != samplings[0]:
            raise BadInput(f"candidate {one.key} has another prompt or other sampling settings than {first.key}")


def composed(
    key: str, candidates: Sequence[Candidate], states: Sequence[State], choice: Choices, exact: bool
) -> tuple[Candidate, State]:
    """Return the composed candidate and its state; see :meth:`lotts_search.core.handle.Search.compose`."""
    first = candidates[0]
    parent = first.parent
    before, lineage = (0.0, ()) if parent is None else (parent.nfe, parent.lineage)
    lineage = (*lineage, f"compose@{first.step} {digest(candidates, choice)}")
    used = [candidates[number] for number in np.unique(choice)]
    nfe = before + sum(one.nfe - before for one in used)
    candidate = Candidate(key, "compose", first.step, first.steps, lineage, nfe, parent, first.refined)
    predicted = [state.predicted for state in states if state.predicted is not None]
    state = replace(
        states[0],
        latent=mosaic(np.stack([state.latent for state in states]), choice, axis=2),
        predicted=None if exact or len(predicted) < len(states) else mosaic(np.stack(predicted), choice, axis=2),
    )
    return candidate, state


def digest(candidates: Sequence[Candidate], choices: Choices) -> str:
    """Return 12 hex digits that stand for choices among candidates, by the lineages of these."""
    lineages: list[Lineage] = [one.lineage for one in candidates]
    return blake2b(repr((lineages, choices.shape)).encode() + choices.tobytes(), digest_size=6).hexdigest()
