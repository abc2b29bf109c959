"""Segments under way: where they start, and what the network and the solver need to know of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lotts_search.backbones.base import Backbone
from lotts_search.backbones.confined import Frozen
from lotts_search.engine.jobs import Job
from lotts_search.work.change_maps import at_refinement, unchanged
from lotts_search.work.model import Schedule
from lotts_search.work.noise import draw, start_noise
from lotts_search.work.requests import Floats, Lineage, Predict, Region, Segment, State


@dataclass(eq=False)
class Trajectory:
    """A segment under way, or the preview of a partial state: one network call, in which nothing moves.

    Attributes:
        job: whose work it is.
        state: where it starts.
        stop: the step it goes to; that of ``state`` for a preview.
        search_seed, lineage: of the solver's noise; unused by a preview.
        conditioning, negative: of its network rows; ``negative`` is None when unguided.
        confined: how its masked steps are computed; None = whole.
        frozen: what its frozen tokens gave in the last whole call, one for each network row.
        turn: number of the call that it took part in last.
        seconds: on the device, of its rows so far.
    """

    job: Job[Segment | Predict]
    state: State
    stop: int
    search_seed: int = 0
    lineage: Lineage = ()
    turn: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.sampling = self.job.work.sampling
        self.conditioning: Any = self.job.conditioning[self.sampling.prompt]
        self.negative: Any = self.job.conditioning[self.sampling.negative] if self.sampling.guided else None
        region = self.job.work.resampled if isinstance(self.job.work, Segment) and self.job.work.confined else None
        self.confined = None if region is None else region.confined
        self.frozen: list[Frozen] = []

    @property
    def preview(self) -> bool:
        return self.stop == self.state.step

    @property
    def rows(self) -> int:
        """Network rows per step."""
        return 1 if self.negative is None else 2


def segment(job: Job[Segment], state: State) -> Trajectory:
    """Return the trajectory of a segment from its :func:`start_state`."""
    return Trajectory(job, state, job.work.stop, job.work.search_seed, job.work.lineage)


def preview(job: Job[Predict]) -> Trajectory:
    """Return a trajectory that does not move: one network call at the state's step."""
    return Trajectory(job, job.work.state, job.work.state.step)


def start_state(backbone: Backbone, work: Segment) -> State:
    """Return the state at the beginning of a segment: pure noise, a re-noised parent, or the given state.

    A refinement (LoTTS Algorithm 2) starts from ``a·x0 + s·(M⊙ε1 + (1−M)⊙ε2)`` at step t0, without solver history.
    """
    steps = work.sampling.steps
    if work.noise is not None:
        noise = start_noise(work.search_seed, work.noise, backbone.info.latent)
        still = unchanged(noise.shape[1:], steps)
        return State(noise * np.float32(backbone.schedule(steps).start), 0, steps, change=still)
    assert work.state is not None
    if work.renoise is None:
        return work.state
    start, region, schedule = work.renoise, work.region, backbone.schedule(steps)
    inside = draw(work.search_seed, work.lineage, "inside", start, work.state.latent.shape)
    latent = _noised(schedule, start, work.state.latent, inside)
    if region is not None:
        kept = region.origin
        if region.spatial:
            kept = _noised(schedule, start, kept, background_noise(work.search_seed, region, start))
        latent = np.where(region.mask, latent, kept)
    change = at_refinement(work.state.change, None if region is None else region.mask, start, steps)
    return State(latent, start, steps, region=region, change=change)


def background_noise(search_seed: int, region: Region, at: int) -> Floats:
    """Return ε2 at step ``at``: one along the refinement, or a new one per step."""
    index = at if region.background == "fresh" else 0
    return draw(search_seed, region.lineage, "outside", index, region.origin.shape)


def _noised(schedule: Schedule, at: int, clean: Floats, noise: Floats) -> Floats:
    return np.float32(schedule.alpha[at]) * clean + np.float32(schedule.sigma[at]) * noise
