"""From the arguments of a search's call to the segment that a pool carries out."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from lotts_search.core.calls import Draft
from lotts_search.core.candidate import Candidate
from lotts_search.errors import BadInput
from lotts_search.work.confined import Confined
from lotts_search.work.noise import lineage_of
from lotts_search.work.requests import Background, Bools, Lineage, Noise, Region, Sampling, Segment, State


class Drafted(NamedTuple):
    """A segment, what is known of the candidate that it makes, and the arguments that identify its trial."""

    work: Segment
    draft: Draft
    arguments: tuple[object, ...]


def sample(seed: int, sampling: Sampling, noise: Noise, stop: int | None) -> Drafted:
    """Draft a trajectory from pure noise; for the arguments see :meth:`lotts_search.core.handle.Search.sample`."""
    stop = _stop(stop, -1, sampling.steps)
    work = Segment(seed, sampling, lineage_of(noise), stop, noise=noise)
    return _drafted("sample", work, None, (noise, stop, sampling))


def refine(
    seed: int,
    parent: Candidate,
    state: State,
    sampling: Sampling,
    mask: Bools,
    mask_key: str,
    *,
    noise: int,
    start: int,
    integrate: int | None,
    default: int,
    background: Background,
    spatial: bool,
    stop: int | None,
    prompt: str | None,
    confined: Confined | None,
) -> Drafted:
    """Draft a refinement; for the arguments see :meth:`lotts_search.core.handle.Search.refine`.

    Args:
        noise: the refinement's own seed.
        default: tg of the model.
        confined: how its masked steps are computed.
    """
    steps = sampling.steps
    if not 0 <= start < steps:
        raise BadInput(f"a refinement starts from a step of 0..{steps - 1}, not {start}")
    stop = _stop(stop, start, steps)
    integrate = min(default, steps - start) if integrate is None else integrate
    if not 0 <= integrate <= steps - start:
        raise BadInput(f"integrate must be within 0..{steps - start} for a start at step {start}, not {integrate}")
    lineage = (*parent.lineage, f"refine@{start} {noise}")
    arguments: tuple[object, ...] = (mask_key, noise, start, integrate, background, spatial, stop)
    if prompt is not None:
        sampling, arguments = replace(sampling, prompt=prompt), (*arguments, prompt)
    if confined is not None:
        arguments = (*arguments, confined)
    region = Region(mask, state.latent, lineage, integrate, background, spatial, confined)
    work = Segment(seed, sampling, lineage, stop, state=state, renoise=start, region=region)
    return _drafted("refine", work, parent, arguments, float(mask.mean()))


def advance(
    seed: int,
    parent: Candidate,
    state: State,
    sampling: Sampling,
    stop: int | None,
    *,
    noise: int | None,
    prompt: str | None,
) -> Drafted:
    """Draft the next steps of a partial candidate; for the arguments see
    :meth:`lotts_search.core.handle.Search.advance`.

    Args:
        noise: seed of the noise from here on; None = the parent's.
    """
    if parent.complete:
        raise BadInput(f"candidate {parent.key} is complete: there is nothing to advance")
    stop = _stop(stop, parent.step, parent.steps)
    lineage: Lineage = parent.lineage if noise is None else (*parent.lineage, f"branch@{parent.step} {noise}")
    return _advanced(seed, parent, state, sampling, lineage, stop, prompt, (stop, noise, prompt))


def vary(
    seed: int,
    candidate: Candidate,
    parent: Candidate,
    state: State,
    sampling: Sampling,
    prompt: str,
    *,
    share: float,
    noise: int,
) -> Drafted:
    """Draft another last step of a candidate; for the arguments see :meth:`lotts_search.core.handle.Search.vary`.

    Args:
        state, sampling: of the parent.
        prompt: the candidate's.
        noise: seed of the new part of the noise.
    """
    lineage = (*candidate.lineage, f"vary@{parent.step} {share:g} {noise}")
    return _advanced(seed, parent, state, sampling, lineage, candidate.step, prompt, (lineage, prompt))


def _advanced(
    seed: int,
    parent: Candidate,
    state: State,
    sampling: Sampling,
    lineage: Lineage,
    stop: int,
    prompt: str | None,
    arguments: tuple[object, ...],
) -> Drafted:
    if prompt is not None and prompt != sampling.prompt:
        # The prediction that scoring paid for was made under the other prompt.
        sampling, state = replace(sampling, prompt=prompt), replace(state, predicted=None)
    work = Segment(seed, sampling, lineage, stop, state=state)
    ratio = float(state.region.mask.mean()) if state.region is not None else None
    return _drafted("advance", work, parent, arguments, ratio)


def _drafted(
    kind: str,
    work: Segment,
    parent: Candidate | None,
    arguments: tuple[object, ...],
    mask_ratio: float | None = None,
) -> Drafted:
    return Drafted(work, Draft(kind, work.lineage, work.start, work.stop, work.sampling, parent, mask_ratio), arguments)


def _stop(stop: int | None, start: int, steps: int) -> int:
    stop = steps if stop is None else stop
    if not start < stop <= steps:
        raise BadInput(f"stop must be within {start + 1}..{steps}, not {stop}")
    return stop
