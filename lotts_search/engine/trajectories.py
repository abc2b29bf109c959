"""The trajectories that run together: unrelated latents at unrelated steps, moved by whole-batch arithmetic.

Trajectories live in contiguous slots of preallocated tensors. Nothing is computed row by row except the noise, which
is a function of each row's seed and lineage. The host keeps its own record of every slot, so it never has to wait for
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone, device_of
from lotts_search.engine import step_table
from lotts_search.engine.backgrounds import Backgrounds
from lotts_search.engine.noise_rows import NoiseKey, NoiseRows
from lotts_search.engine.segments import Trajectory
from lotts_search.engine.solver import NOISE, compare, step
from lotts_search.engine.step_table import FIRST_ORDER, MASKED, NEXT_ALPHA, NEXT_SIGMA, PREVIEW, SECOND_ORDER, StepTable
from lotts_search.engine.transfer import Download, upload
from lotts_search.work.change_maps import first_compared
from lotts_search.work.requests import Floats, State

_SLOT = np.dtype(
    [
        ("place", np.int64),  # in the step table
        ("steps", np.int64),
        ("step", np.int64),
        ("stop", np.int64),
        ("section", np.int64),  # of the step table
        ("calls", np.int64),  # network calls so far
        ("unmask", np.int64),  # the first step that is not masked
        ("first", np.int64),  # the first step whose x0 prediction is compared with the previous one
        ("fresh", np.bool_),  # background noise is new at each step
        ("clean", np.bool_),  # the background stays clean
        ("preview", np.bool_),
    ]
)
"""The host's record of a slot."""


@dataclass(frozen=True)
class Moved:
    """Trajectories after one step.

    Attributes:
        members: the trajectories that moved.
        steps: [len(members)] the step that each has done.
        sums: [len(members)] of each latent's numbers, before the background covers any.
    """

    members: list[Trajectory]
    steps: npt.NDArray[np.int64]
    sums: Download

    def broken(self) -> list[tuple[Trajectory, int]]:
        """Return those whose latent became NaN or infinite, with the step. Call it when the sums have landed."""
        # A NaN or an infinity anywhere makes the sum NaN or infinite.
        (sums,) = self.sums.arrays()
        return [(self.members[index], int(self.steps[index])) for index in np.flatnonzero(~np.isfinite(sums))]


@dataclass(frozen=True)
class Arrived:
    """Trajectories that have left their slots.

    Attributes:
        members: the trajectories.
        latents: [len(members), C, H, W] on the device: the latent, or the x0 prediction of a preview.
        calls: [len(members)] network calls that each took part in.
    """

    members: list[Trajectory]
    latents: Tensor
    calls: npt.NDArray[np.int64]
    _host: Download

    def states(self) -> list[State]:
        """Return the state that each has reached: with only the latent when complete, with the prediction filled in
        for a preview. Call it when the numbers have landed."""
        latents, changes, *rest = self._host.arrays()
        states = []
        for index, member in enumerate(self.members):
            state, latent = member.state, latents[index].copy()
            change = None if state.change is None else changes[index].copy()
            if member.preview:
                states.append(replace(state, predicted=latent))
            elif member.stop == state.steps:
                states.append(State(latent, member.stop, state.steps, change=change))
            else:
                previous = rest[0][index].copy()
                states.append(State(latent, member.stop, state.steps, previous, region=state.region, change=change))
        return states


class Trajectories:
    """Up to ``capacity`` trajectories in contiguous slots. No method waits for the device.

    Attributes:
        members: the trajectories, in the order of their slots.
        rows: network rows of one step of all of them.
        going_rows: of those that take part in the next call, see :meth:`front`; all unless it says otherwise.
    """

    def __init__(self, backbone: Backbone, capacity: int):
        self._backbone, self._capacity, self._device = backbone, capacity, device_of(backbone)
        self.members: list[Trajectory] = []
        self.rows = self.going_rows = self._going = 0
        self._slots = np.zeros(capacity, _SLOT)
        self._table = StepTable(backbone)
        self._latents, self._previous = self._buffer(), self._buffer()
        self._changes = self._buffer()[:, 0].clone()
        self._loaded = 0  # the first slot whose latent is not on the device yet
        self._backgrounds = Backgrounds(self._buffer, self._device)
        self._noise = NoiseRows(backbone.info.latent, self._device)
        self._fresh: list[int] = []  # slots whose background noise changes in the step under way
        self._masked = False  # whether any slot is masked in the step under way
        self._compared = False  # whether any x0 prediction is compared with the previous one
        self._values = torch.empty(0)  # of the step under way
        # Of the membership:
        self._stale = True
        self._guided: Tensor | None = None
        self._weights = torch.empty(0)
        self._conditionings: list[Any] = []

    def _buffer(self) -> Tensor:
        return torch.zeros(self._capacity, *self._backbone.info.latent, device=self._device)

    def add(self, member: Trajectory) -> None:
        """Put a trajectory in the next free slot."""
        state, region = member.state, member.state.region
        moving = FIRST_ORDER if state.previous is None else SECOND_ORDER
        slot = self._slots[len(self.members)]
        slot["place"] = self._table.place(member.sampling)
        slot["steps"] = member.sampling.steps
        slot["step"] = state.step
        slot["stop"] = member.stop
        slot["section"] = PREVIEW if member.preview else moving
        slot["calls"] = 0
        slot["unmask"] = 0 if region is None or member.preview else state.steps - region.integrate
        slot["first"] = first_compared(state.steps)
        slot["fresh"] = region is not None and region.background == "fresh"
        slot["clean"] = region is not None and not region.spatial
        slot["preview"] = member.preview
        self.members.append(member)
        self.rows += member.rows
        self._stale = True

    def remove(self, slots: Sequence[int]) -> None:
        """Free slots; the last trajectories move into them."""
        if not len(slots):
            return
        self._load()
        gone = set(slots)
        left = len(self.members) - len(gone)
        holes = [slot for slot in sorted(gone) if slot < left]
        movers = [slot for slot in range(left, len(self.members)) if slot not in gone]
        self._copy(holes, movers)
        self.rows -= sum(self.members[slot].rows for slot in gone)
        for hole, mover in zip(holes, movers, strict=True):
            self.members[hole] = self.members[mover]
        del self.members[left:]
        self._loaded = left
        self._stale = True

    def _copy(self, to: Sequence[int], source: Sequence[int]) -> None:
        """Copy what slots hold into others, all at once."""
        if len(to):
            self._slots[to] = self._slots[source]
            places, sources = upload(np.array([to, source]), self._device)
            for buffer in (self._latents, self._previous, self._changes, *self._backgrounds.buffers):
                if len(buffer):
                    buffer[places] = buffer[sources]

    def front(self, chosen: Sequence[int]) -> None:
        """Let only these slots take part in the next call; they move to the front, in this order."""
        if list(chosen) != list(range(len(chosen))):
            self._load()
            order = [*chosen, *sorted(set(range(len(self.members))) - set(chosen))]
            self._copy(range(len(order)), order)
            self.members[:] = [self.members[slot] for slot in order]
            self._stale = True
        self._stale |= len(chosen) != self._going
        self._going = len(chosen)
        self.going_rows = sum(member.rows for member in self.going)

    @property
    def going(self) -> list[Trajectory]:
        """The trajectories that take part in the next call."""
        return self.members[: self._going]

    def clear(self) -> None:
        """Free all slots."""
        self.members.clear()
        self.rows = self._loaded = 0
        self._stale = True

    def progress(self) -> list[tuple[Trajectory, int, int]]:
        """Return the trajectories with the network calls that each has taken part in, and how many masked steps are left to each."""
        members = list(self.members)
        slots = self._slots[: len(members)]
        masked = np.minimum(slots["unmask"], slots["stop"]) - slots["step"]
        return list(zip(members, slots["calls"].tolist(), masked.tolist(), strict=True))

    def _load(self) -> None:
        """Copy the new slots' latents to the device, all at once."""
        first, end = self._loaded, len(self.members)
        if first == end:
            return
        self._loaded = end
        states = [member.state for member in self.members[first:end]]
        _fill(self._latents[first:end], [state.latent for state in states])
        # Zero rather than stale: a factor of 0 does not silence a NaN.
        _fill(self._previous[first:end], [state.previous for state in states])
        _fill(self._changes[first:end], [state.change for state in states])
        self._backgrounds.load(first, self.members[first:end])

    def conditionings(self) -> list[Any]:
        """Return the conditionings of the network rows: one per trajectory, then the negative ones of the guided
        trajectories. The list is the same object until the membership changes."""
        self._refresh()
        return self._conditionings

    def _refresh(self) -> None:
        """Recompute what depends only on the membership."""
        if not self._stale:
            return
        self._stale = False
        members = self.going
        guided = [slot for slot, member in enumerate(members) if member.negative is not None]
        self._conditionings = [member.conditioning for member in members] + [members[slot].negative for slot in guided]
        self._guided = upload(np.array(guided), self._device) if guided else None
        weights = [1.0 if member.negative is None else member.sampling.guidance for member in members]
        self._weights = upload(np.array(weights, np.float32), self._device).view(-1, 1, 1, 1)

    def fill(self, inputs: Tensor, timesteps: Tensor) -> None:
        """Write the network rows [rows, C, H, W] and their timesteps [rows] into the front of two buffers.

        :meth:`advance` must follow before the membership changes.
        """
        self._load()
        self._refresh()
        count = self._going
        self._values = self._begin(0, count)
        latents, times = self._latents[:count], self._values[:, step_table.TIMESTEP]
        inputs[:count] = latents
        timesteps[:count] = times
        if self._guided is not None:
            inputs[count : self.going_rows] = latents[self._guided]
            timesteps[count : self.going_rows] = times[self._guided]

    def advance(self, output: Tensor, confined: bool = False) -> Moved:
        """Move the trajectories that take part by the network's raw output [rows, C, H, W], that of a ``confined`` call only inside
        the masks."""
        count = self._going
        raw = output[:count]
        if self._guided is not None:
            negative = output[count : self.going_rows]
            if self.going_rows < 2 * count:
                # An unguided row is guided with weight 1 against itself.
                negative = raw.index_copy(0, self._guided, negative)
            raw = negative + self._weights * (raw - negative)
        scales = self._values[:, :, None, None, None]
        x0 = self._backbone.to_x0(raw, self._latents[:count], scales[:, step_table.ALPHA], scales[:, step_table.SIGMA])
        self._slots["calls"][:count] += 1
        if confined:
            x0 = self._backgrounds.fill(x0, self._previous[:count], slice(0, count))
        return self._move(0, x0, self._values)

    def advance_last(self, x0: Floats) -> Moved:
        """Move the trajectory that was added last by a known x0 prediction [C, H, W]."""
        self._load()
        first = len(self.members) - 1
        values = self._begin(first, first + 1)
        return self._move(first, upload(x0[None].copy(), self._device), values)

    def _begin(self, first: int, end: int) -> Tensor:
        """Start to draw the noise of the slots' next step, and return their rows of the step table on the device."""
        slots = self._slots[first:end]
        values = self._table.values[slots["place"] + slots["section"] * slots["steps"] + slots["step"]]
        values[slots["clean"], step_table.NEXT_ALPHA] = 1
        values[slots["clean"], step_table.NEXT_SIGMA] = 0
        masked = slots["step"] < slots["unmask"]
        values[:, step_table.MASKED] = masked
        compared = (slots["section"] == SECOND_ORDER) & (slots["step"] >= slots["first"])
        values[:, step_table.COMPARED] = compared
        noisy = (values[:, step_table.SOLVER][:, NOISE] > 0) & ~slots["preview"]
        wanted: list[NoiseKey | None] = [None] * (end - first)
        steps = slots["step"].tolist()
        for index in np.flatnonzero(noisy).tolist():
            member = self.members[first + index]
            wanted[index] = member.search_seed, member.lineage, "step", steps[index]
        self._fresh = [first + index for index in np.flatnonzero(masked & slots["fresh"]).tolist()]
        for slot in self._fresh:
            member = self.members[slot]
            region = member.state.region
            assert region is not None
            wanted.append((member.search_seed, region.lineage, "outside", steps[slot - first] + 1))
        self._noise.begin(wanted)
        self._masked, self._compared = bool(masked.any()), bool(compared.any())
        return upload(values, self._device)

    def _move(self, first: int, x0: Tensor, values: Tensor) -> Moved:
        end = first + len(values)
        drawn, rows = self._noise.finish(), values[:, step_table.SOLVER]
        moved = step(x0, self._previous[first:end], self._latents[first:end], rows, drawn[: end - first])
        sums = moved.flatten(1).sum(1)
        if self._compared:
            change = compare(x0, self._previous[first:end], values[:, step_table.COMPARED])
            # Outside the mask of a refinement the map stays its parent's.
            self._changes[first:end] += self._backgrounds.inside(change, slice(first, end))
        if self._masked:
            if self._fresh:
                self._backgrounds.renew(self._fresh, drawn[end - first :])
            scales = values[:, :, None, None, None]
            masked, *noised = (scales[:, column] for column in (MASKED, NEXT_ALPHA, NEXT_SIGMA))
            moved = self._backgrounds.cover(moved, slice(first, end), masked > 0, *noised)
        self._latents[first:end] = moved
        self._previous[first:end] = x0
        slots = self._slots[first:end]
        steps = slots["step"].copy()
        moves = ~slots["preview"]
        slots["step"] += moves
        slots["section"][moves] = SECOND_ORDER
        return Moved(self.members[first:end], steps, Download(sums))

    def arrive(self) -> Arrived | None:
        """Remove the trajectories that have reached their stop, and return them; None if there are none."""
        count = len(self.members)
        slots = self._slots[:count]
        done = np.flatnonzero((slots["step"] == slots["stop"]) & (~slots["preview"] | (slots["calls"] > 0)))
        if not len(done):
            return None
        members = [self.members[slot] for slot in done]
        places = upload(done, self._device)
        latents, host = self._latents[places], []
        previews = np.flatnonzero(slots["preview"][done])
        if len(previews):
            latents[upload(previews, self._device)] = self._previous[upload(done[previews], self._device)]
        if any(member.stop < member.state.steps and not member.preview for member in members):
            host.append(self._previous[places])
        arrived = Arrived(members, latents, slots["calls"][done], Download(latents, self._changes[places], *host))
        self.remove(done.tolist())
        return arrived


def _fill(rows: Tensor, arrays: list[Floats | None]) -> None:
    """Copy arrays into rows on the device, all at once, with zeros for None."""
    if all(array is None for array in arrays):
        rows.zero_()
        return
    zero = np.zeros(rows.shape[1:], np.float32)
    rows.copy_(upload(np.stack([zero if array is None else array for array in arrays]), rows.device))
