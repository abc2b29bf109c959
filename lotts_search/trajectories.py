"""The trajectories that run together: unrelated latents at unrelated steps, moved by whole-batch arithmetic.

Trajectories live in contiguous slots of preallocated tensors; nothing is computed row by row but the noise, which is
a function of each row's own seed and lineage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone, Schedule, device_of
from lotts_search.noise import draw, start_noise
from lotts_search.solver import NOISE, coefficients, step
from lotts_search.work import Floats, Lineage, Predict, Region, Sampling, Segment, Solver, State

_TIMESTEP, _ALPHA, _SIGMA, _SOLVER, _NEXT_ALPHA, _NEXT_SIGMA = 0, 1, 2, slice(3, 7), 7, 8
_COLUMNS = 9
_FIRST_ORDER, _SECOND_ORDER, _LOOK = range(3)


@dataclass(eq=False)
class Trajectory:
    """A segment under way, or a single look at the x0 prediction of a partial state (``stop == step``).

    Attributes:
        owner: what the engine keeps with it.
        state: where it started, before the first step.
        search_seed, lineage: of the solver's noise; unused for a look.
        region: the refinement under way, None outside one.
        conditioning, negative: of its network rows; ``negative`` is None when unguided.
        step, stop: steps done so far and to be done.
        history: whether the previous x0 prediction is known.
        look: the network is asked once and nothing moves.
    """

    owner: Any
    sampling: Sampling
    state: State
    stop: int
    search_seed: int = 0
    lineage: Lineage = ()
    conditioning: Any = None
    negative: Any = None

    def __post_init__(self) -> None:
        self.step = self.state.step
        self.region: Region | None = self.state.region
        self.history = self.state.previous is not None
        self.look = self.stop == self.step

    @property
    def masked(self) -> bool:
        """Whether the next step leaves the background to the parent."""
        if self.region is None or self.look:
            return False
        return self.step < self.state.steps - self.region.integrate


def start_state(backbone: Backbone, work: Segment) -> State:
    """The state at the beginning of a segment: pure noise, a re-noised parent, or the given state.

    A refinement re-noises by DESIGN 6.2: ``a·x0 + s·(M⊙ε1 + (1−M)⊙ε2)`` at step t0, its solver history is empty.
    """
    steps = work.sampling.steps
    if work.noise is not None:
        return State(start_noise(work.search_seed, work.noise, backbone.info.latent), 0, steps)
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
    return State(latent, start, steps, region=region)


def background_noise(search_seed: int, region: Region, at: int) -> Floats:
    """ε2 at step ``at``: one along the refinement, or a new one at each step."""
    index = at if region.background == "fresh" else 0
    return draw(search_seed, region.lineage, "outside", index, region.origin.shape)


def _noised(schedule: Schedule, at: int, clean: Floats, noise: Floats) -> Floats:
    return np.float32(schedule.alpha[at]) * clean + np.float32(schedule.sigma[at]) * noise


class Trajectories:
    """Up to ``capacity`` trajectories in contiguous slots.

    Attributes:
        members: the trajectories, in the order of their slots.
    """

    def __init__(self, backbone: Backbone, capacity: int):
        self._backbone, self._capacity, self._device = backbone, capacity, device_of(backbone)
        self.members: list[Trajectory] = []
        self._tables: dict[tuple[int, float, Solver], npt.NDArray[np.float64]] = {}
        pin = self._device.type == "cuda"
        self._latents, self._previous = self._buffer(), self._buffer()
        self._noise = torch.zeros(capacity, *backbone.info.latent, pin_memory=pin)
        self._noise_numpy = self._noise.numpy()
        # Backgrounds of refinements; allocated when the first refinement comes.
        self._origin = self._outside = self._keep = torch.empty(0)
        self._guided: Tensor | None = None
        self._weights = self._values = torch.empty(0)
        self._changed()

    def _buffer(self) -> Tensor:
        return torch.zeros(self._capacity, *self._backbone.info.latent, device=self._device)

    def _changed(self) -> None:
        """Recompute what depends on the membership alone."""
        guided = [slot for slot, member in enumerate(self.members) if member.negative is not None]
        self.rows = len(self.members) + len(guided)
        self._guided = torch.tensor(guided, device=self._device) if guided else None
        weights = [member.sampling.guidance if member.negative is not None else 1.0 for member in self.members]
        self._weights = torch.tensor(weights, device=self._device).view(-1, 1, 1, 1)

    def add(self, member: Trajectory) -> None:
        """Put a trajectory into the next free slot."""
        slot, state = len(self.members), member.state
        self.members.append(member)
        self._latents[slot] = torch.tensor(state.latent)
        # Zero rather than stale: a factor of 0 does not silence a NaN.
        self._previous[slot] = 0 if state.previous is None else torch.tensor(state.previous)
        if member.region is not None:
            if not len(self._keep):
                self._origin, self._outside = self._buffer(), self._buffer()
                self._keep = torch.zeros(
                    self._capacity, 1, *self._backbone.info.latent[1:], dtype=torch.bool, device=self._device
                )
            self._origin[slot] = torch.tensor(member.region.origin)
            if member.region.background == "fixed":
                noise = background_noise(member.search_seed, member.region, 0)
                self._outside[slot] = torch.from_numpy(noise)
        if len(self._keep):
            self._keep[slot] = False
            if member.masked and member.region is not None:
                self._keep[slot, 0] = torch.from_numpy(~member.region.mask)
        self._changed()

    def remove(self, slot: int) -> None:
        """Free a slot; the last trajectory moves into it."""
        last = len(self.members) - 1
        if slot != last:
            self.members[slot] = self.members[last]
            for buffer in (self._latents, self._previous, self._origin, self._outside, self._keep):
                if len(buffer):
                    buffer[slot] = buffer[last]
        self.members.pop()
        self._changed()

    def conditionings(self) -> list[Any]:
        """Conditionings of the network rows: one a trajectory, then the negative ones of the guided."""
        negatives = [member.negative for member in self.members if member.negative is not None]
        return [member.conditioning for member in self.members] + negatives

    def fill(self, inputs: Tensor, timesteps: Tensor) -> None:
        """Write the network rows [rows, C, H, W] and their timesteps [rows] into the front of two buffers.

        :meth:`advance` must follow before the membership changes.
        """
        count = len(self.members)
        self._values = self._next_values(0, count)
        latents, times = self._latents[:count], self._values[:, _TIMESTEP]
        inputs[:count] = latents
        timesteps[:count] = times
        if self._guided is not None:
            inputs[count : self.rows] = latents[self._guided]
            timesteps[count : self.rows] = times[self._guided]

    def advance(self, output: Tensor) -> list[bool]:
        """Move every trajectory by the network's raw output [rows, C, H, W]; False for each that broke."""
        count = len(self.members)
        raw = output[:count]
        if self._guided is not None:
            negative = output[count : self.rows]
            if self.rows < 2 * count:
                # An unguided row is guided with weight 1 against itself.
                negative = raw.index_copy(0, self._guided, negative)
            raw = negative + self._weights * (raw - negative)
        scales = self._values[:, :, None, None, None]
        x0 = self._backbone.to_x0(raw, self._latents[:count], scales[:, _ALPHA], scales[:, _SIGMA])
        return self._move(0, count, x0, self._values)

    def advance_last(self, x0: Floats) -> bool:
        """Move the trajectory that came last by a known x0 prediction [C, H, W]."""
        count = len(self.members)
        known = torch.tensor(x0, device=self._device)[None]
        return self._move(count - 1, count, known, self._next_values(count - 1, count))[0]

    def _move(self, first: int, end: int, x0: Tensor, values: Tensor) -> list[bool]:
        members = self.members[first:end]
        self._draw_noise(first, members)
        noise = self._noise[first:end].to(self._device, non_blocking=True)
        moved = step(x0, self._previous[first:end], self._latents[first:end], values[:, _SOLVER], noise)
        # A NaN or an infinity anywhere makes the sum one; checked before the background covers it.
        sums = moved.flatten(1).sum(1)
        if any(member.masked for member in members):
            for slot, member in enumerate(members, first):
                if member.masked and member.region is not None and member.region.background == "fresh":
                    fresh = background_noise(member.search_seed, member.region, member.step + 1)
                    self._outside[slot] = torch.from_numpy(fresh)
            scales = values[:, :, None, None, None]
            background = (
                scales[:, _NEXT_ALPHA] * self._origin[first:end] + scales[:, _NEXT_SIGMA] * self._outside[first:end]
            )
            moved = torch.where(self._keep[first:end], background, moved)
        self._latents[first:end] = moved
        self._previous[first:end] = x0
        for slot, member in enumerate(members, first):
            if not member.look:
                was_masked = member.masked
                member.step += 1
                member.history = True
                if was_masked and not member.masked:
                    self._keep[slot] = False
        return [bool(np.isfinite(value)) for value in sums.tolist()]

    def _draw_noise(self, first: int, members: list[Trajectory]) -> None:
        for slot, member in enumerate(members, first):
            if not member.look and self._table(member)[0, member.step, 3 + NOISE] > 0:
                shape = self._backbone.info.latent
                self._noise_numpy[slot] = draw(member.search_seed, member.lineage, "step", member.step, shape)
            else:
                self._noise_numpy[slot] = 0

    def _next_values(self, first: int, end: int) -> Tensor:
        """Timestep, scales and solver coefficients [end - first, columns] float32 of the trajectories' next step."""
        values = np.empty((end - first, _COLUMNS))
        for row, member in enumerate(self.members[first:end]):
            order = _LOOK if member.look else _SECOND_ORDER if member.history else _FIRST_ORDER
            values[row] = self._table(member)[order, member.step]
            if member.region is not None and not member.region.spatial:
                values[row, _NEXT_ALPHA], values[row, _NEXT_SIGMA] = 1, 0
        return torch.from_numpy(values.astype(np.float32)).to(self._device)

    def _table(self, member: Trajectory) -> npt.NDArray[np.float64]:
        key = member.sampling.steps, member.sampling.eta, member.sampling.solver
        table = self._tables.get(key)
        if table is None:
            schedule = self._backbone.schedule(key[0])
            table = np.zeros((3, key[0], _COLUMNS))
            table[:, :, _TIMESTEP] = schedule.timestep
            table[:, :, _ALPHA], table[:, :, _SIGMA] = schedule.alpha[:-1], schedule.sigma[:-1]
            table[:2, :, _SOLVER] = coefficients(schedule, key[1], key[2])
            table[_LOOK, :, _SOLVER] = (1, 0, 0, 0)
            table[:, :, _NEXT_ALPHA], table[:, :, _NEXT_SIGMA] = schedule.alpha[1:], schedule.sigma[1:]
            self._tables[key] = table
        return table

    def state(self, slot: int) -> State:
        """The state that a trajectory has reached; a complete one keeps only its latent."""
        member = self.members[slot]
        latent = self._latents[slot].cpu().numpy().copy()
        if member.step == member.state.steps:
            return State(latent, member.step, member.state.steps)
        previous = self._previous[slot].cpu().numpy().copy() if member.history else None
        return State(latent, member.step, member.state.steps, previous, region=member.region)

    def prediction(self, slot: int) -> Floats:
        """The x0 prediction [C, H, W] of the last network call."""
        return self._previous[slot].cpu().numpy().copy()


def look(owner: Any, work: Predict) -> Trajectory:
    """A trajectory that does not move: one network call at the state's own step."""
    return Trajectory(owner, work.sampling, work.state, work.state.step)
