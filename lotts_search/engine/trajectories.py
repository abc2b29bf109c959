"""The trajectories that run together: unrelated latents at unrelated steps, moved by whole-batch arithmetic.

Trajectories live in contiguous slots of preallocated tensors; nothing is computed row by row but the noise, which is
a function of each row's own seed and lineage. The host keeps its own account of every slot, so that it never has to
ask the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone, device_of
from lotts_search.engine.noise_rows import Draw, Drawing
from lotts_search.engine.solver import NOISE, coefficients, step
from lotts_search.engine.transfer import Download, upload
from lotts_search.work.model import Schedule
from lotts_search.work.noise import draw, start_noise
from lotts_search.work.requests import Floats, Lineage, Predict, Region, Sampling, Segment, Solver, State

_TIMESTEP, _ALPHA, _SIGMA, _SOLVER, _NEXT_ALPHA, _NEXT_SIGMA = 0, 1, 2, slice(3, 7), 7, 8
_MASKED = 9  # whether the background is left to the parent after the step
_COLUMNS = 10
_FIRST_ORDER, _SECOND_ORDER, _LOOK = range(3)


@dataclass(eq=False)
class Trajectory:
    """A segment under way, or a single look at the x0 prediction of a partial state (``stop == step``).

    Attributes:
        owner: what the engine keeps with it.
        state: where it starts.
        stop: the step it goes to.
        search_seed, lineage: of the solver's noise; unused for a look.
        conditioning, negative: of its network rows; ``negative`` is None when unguided.
        look: the network is asked once and nothing moves.
        since: what the engine's clock showed when its first network call began.
    """

    owner: Any
    sampling: Sampling
    state: State
    stop: int
    search_seed: int = 0
    lineage: Lineage = ()
    conditioning: Any = None
    negative: Any = None

    since: float = 0.0

    @property
    def look(self) -> bool:
        return self.stop == self.state.step

    @property
    def rows(self) -> int:
        """Network rows a step."""
        return 1 if self.negative is None else 2


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


_SLOT = np.dtype(
    [
        ("table", np.int64),  # where its table of coefficients begins
        ("steps", np.int64),
        ("step", np.int64),
        ("stop", np.int64),
        ("order", np.int64),
        ("calls", np.int64),  # network calls so far
        ("unmask", np.int64),  # the first step that is not masked
        ("fresh", np.bool_),  # background noise is new at each step
        ("clean", np.bool_),  # the background stays clean
        ("look", np.bool_),
    ]
)
"""What the host keeps of a slot."""


@dataclass(frozen=True)
class Moved:
    """Trajectories after one step.

    Attributes:
        members: those that moved.
        steps: [len(members)] the step that each did.
        sums: [len(members)] of its latent's numbers, before a background covers any; see :meth:`sound`.
    """

    members: list[Trajectory]
    steps: npt.NDArray[np.int64]
    sums: Download

    def broken(self) -> list[tuple[Trajectory, int]]:
        """Those whose latent became NaN or infinite, with the step; to be called when the sums have landed."""
        # A NaN or an infinity anywhere makes the sum one.
        (sums,) = self.sums.arrays()
        return [(self.members[index], int(self.steps[index])) for index in np.flatnonzero(~np.isfinite(sums))]


@dataclass(frozen=True)
class Arrived:
    """Trajectories that have left their slots.

    Attributes:
        members: whose.
        latents: [len(members), C, H, W] on the device: the latent, of a look the x0 prediction.
        calls: [len(members)] network calls that each took part in.
    """

    members: list[Trajectory]
    latents: Tensor
    calls: npt.NDArray[np.int64]
    _host: Download

    def states(self) -> list[State]:
        """What each has reached; a complete one keeps only its latent, a look fills in its prediction. To be called
        when the numbers have landed."""
        latents, *rest = self._host.arrays()
        states = []
        for index, member in enumerate(self.members):
            state, latent = member.state, latents[index].copy()
            if member.look:
                states.append(replace(state, predicted=latent))
            elif member.stop == state.steps:
                states.append(State(latent, member.stop, state.steps))
            else:
                states.append(State(latent, member.stop, state.steps, rest[0][index].copy(), region=state.region))
        return states


class Trajectories:
    """Up to ``capacity`` trajectories in contiguous slots. Nothing here waits for the device.

    Attributes:
        members: the trajectories, in the order of their slots.
        rows: network rows of one step of all of them.
    """

    def __init__(self, backbone: Backbone, capacity: int):
        self._backbone, self._capacity, self._device = backbone, capacity, device_of(backbone)
        self.members: list[Trajectory] = []
        self.rows = 0
        self._slots = np.zeros(capacity, _SLOT)
        self._tables: dict[tuple[int, float, Solver], npt.NDArray[np.float64]] = {}
        # All tables end to end, so that one look-up serves all slots.
        self._coefficients = np.empty((0, _COLUMNS), np.float32)
        self._places: dict[int, int] = {}
        self._latents, self._previous = self._buffer(), self._buffer()
        self._loaded = 0  # slots from here on are new: their latents are not on the device yet
        # Backgrounds of refinements; allocated when the first refinement comes.
        self._origin = self._outside = self._keep = torch.empty(0)
        self._drawing = Drawing(backbone.info.latent, self._device)
        self._stale = True
        self._guided: Tensor | None = None
        self._weights = self._values = torch.empty(0)
        self._conditionings: list[Any] = []

    def _buffer(self) -> Tensor:
        return torch.zeros(self._capacity, *self._backbone.info.latent, device=self._device)

    def add(self, member: Trajectory) -> None:
        """Put a trajectory into the next free slot."""
        state, region = member.state, member.state.region
        table = self._place(self._table(member))
        slot = self._slots[len(self.members)]
        slot["table"], slot["steps"], slot["step"], slot["stop"] = table, member.sampling.steps, state.step, member.stop
        slot["order"] = _LOOK if member.look else _FIRST_ORDER if state.previous is None else _SECOND_ORDER
        slot["calls"], slot["look"] = 0, member.look
        slot["unmask"] = 0 if region is None or member.look else state.steps - region.integrate
        slot["fresh"] = region is not None and region.background == "fresh"
        slot["clean"] = region is not None and not region.spatial
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
        if holes:
            self._slots[holes] = self._slots[movers]
            to, of = upload(np.array([holes, movers]), self._device)
            for buffer in (self._latents, self._previous, self._origin, self._outside, self._keep):
                if len(buffer):
                    buffer[to] = buffer[of]
        self.rows -= sum(self.members[slot].rows for slot in gone)
        for hole, mover in zip(holes, movers, strict=True):
            self.members[hole] = self.members[mover]
        del self.members[left:]
        self._loaded = left
        self._stale = True

    def clear(self) -> None:
        """Free all slots."""
        self.members.clear()
        self.rows = self._loaded = 0
        self._stale = True

    def calls(self) -> list[tuple[Trajectory, int]]:
        """The trajectories with the network calls that each has taken part in."""
        members = list(self.members)
        return list(zip(members, self._slots["calls"][: len(members)].tolist(), strict=True))

    def _load(self) -> None:
        """Bring the new slots' latents to the device, all at once."""
        first, end = self._loaded, len(self.members)
        if first == end:
            return
        self._loaded = end
        states = [member.state for member in self.members[first:end]]
        self._latents[first:end] = self._upload([state.latent for state in states])
        # Zero rather than stale: a factor of 0 does not silence a NaN.
        self._previous[first:end] = self._upload([state.previous for state in states])
        regions = [state.region for state in states]
        if all(region is None for region in regions):
            return
        if not len(self._keep):
            self._origin, self._outside = self._buffer(), self._buffer()
            self._keep = self._buffer()[:, :1] > 0
        nothing = np.zeros(self._backbone.info.latent[1:], np.bool_)
        keep = [nothing if region is None else ~region.mask for region in regions]
        self._keep[first:end] = upload(np.stack(keep)[:, None], self._device)
        self._origin[first:end] = self._upload([None if region is None else region.origin for region in regions])
        self._outside[first:end] = self._upload(
            [
                background_noise(member.search_seed, region, 0) if region and region.background == "fixed" else None
                for member, region in zip(self.members[first:end], regions, strict=True)
            ]
        )

    def _upload(self, latents: list[Floats | None]) -> Tensor | float:
        """[len(latents), C, H, W] with zeros for None."""
        if all(latent is None for latent in latents):
            return 0.0
        zero = np.zeros(self._backbone.info.latent, np.float32)
        return upload(np.stack([zero if latent is None else latent for latent in latents]), self._device)

    def conditionings(self) -> list[Any]:
        """Conditionings of the network rows: one a trajectory, then the negative ones of the guided. The same list
        as long as the membership stays."""
        self._refresh()
        return self._conditionings

    def _refresh(self) -> None:
        """Recompute what depends on the membership alone."""
        if not self._stale:
            return
        self._stale = False
        members = self.members
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
        count = len(self.members)
        self._values = self._begin(0, count)
        latents, times = self._latents[:count], self._values[:, _TIMESTEP]
        inputs[:count] = latents
        timesteps[:count] = times
        if self._guided is not None:
            inputs[count : self.rows] = latents[self._guided]
            timesteps[count : self.rows] = times[self._guided]

    def advance(self, output: Tensor) -> Moved:
        """Move every trajectory by the network's raw output [rows, C, H, W]."""
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
        self._slots["calls"][:count] += 1
        return self._move(0, x0, self._values)

    def advance_last(self, x0: Floats) -> Moved:
        """Move the trajectory that came last by a known x0 prediction [C, H, W]."""
        self._load()
        first = len(self.members) - 1
        values = self._begin(first, first + 1)
        return self._move(first, upload(x0[None].copy(), self._device), values)

    def _begin(self, first: int, end: int) -> Tensor:
        """Timestep, scales and solver coefficients [end - first, columns] of the next step of the slots; their noise
        begins to be drawn."""
        slots = self._slots[first:end]
        values = self._coefficients[slots["table"] + slots["order"] * slots["steps"] + slots["step"]]
        values[slots["clean"], _NEXT_ALPHA], values[slots["clean"], _NEXT_SIGMA] = 1, 0
        masked = slots["step"] < slots["unmask"]
        values[:, _MASKED] = masked
        noisy = (values[:, 3 + NOISE] > 0) & ~slots["look"]
        wanted: list[Draw | None] = [None] * (end - first)
        steps = slots["step"].tolist()
        for index in np.flatnonzero(noisy).tolist():
            member = self.members[first + index]
            wanted[index] = member.search_seed, member.lineage, "step", steps[index]
        self._fresh = [first + index for index in np.flatnonzero(masked & slots["fresh"]).tolist()]
        for slot in self._fresh:
            member = self.members[slot]
            region = cast(Region, member.state.region)
            wanted.append((member.search_seed, region.lineage, "outside", steps[slot - first] + 1))
        self._drawing.begin(wanted)
        self._masked = bool(masked.any())
        return upload(values, self._device)

    def _move(self, first: int, x0: Tensor, values: Tensor) -> Moved:
        end = len(self.members)
        drawn = self._drawing.finish()
        moved = step(x0, self._previous[first:end], self._latents[first:end], values[:, _SOLVER], drawn[: end - first])
        sums = moved.flatten(1).sum(1)
        if self._masked:
            if self._fresh:
                self._outside[upload(np.array(self._fresh), self._device)] = drawn[end - first :]
            scales = values[:, :, None, None, None]
            background = (
                scales[:, _NEXT_ALPHA] * self._origin[first:end] + scales[:, _NEXT_SIGMA] * self._outside[first:end]
            )
            moved = torch.where(self._keep[first:end] & (scales[:, _MASKED] > 0), background, moved)
        self._latents[first:end] = moved
        self._previous[first:end] = x0
        slots = self._slots[first:end]
        steps = slots["step"].copy()
        moves = ~slots["look"]
        slots["step"] += moves
        slots["order"][moves] = _SECOND_ORDER
        return Moved(self.members[first:end], steps, Download(sums))

    def arrive(self) -> Arrived | None:
        """Let those leave that have done what they were asked for."""
        count = len(self.members)
        slots = self._slots[:count]
        done = np.flatnonzero((slots["step"] == slots["stop"]) & (~slots["look"] | (slots["calls"] > 0)))
        if not len(done):
            return None
        members = [self.members[slot] for slot in done]
        places = upload(done, self._device)
        latents, host = self._latents[places], []
        looks = np.flatnonzero(slots["look"][done])
        if len(looks):
            latents[upload(looks, self._device)] = self._previous[upload(done[looks], self._device)]
        if any(member.stop < member.state.steps and not member.look for member in members):
            host.append(self._previous[places])
        arrived = Arrived(members, latents, slots["calls"][done], Download(latents, *host))
        self.remove(done.tolist())
        return arrived

    def _place(self, table: npt.NDArray[np.float64]) -> int:
        """Where a table begins among the coefficients of all."""
        place = self._places.get(id(table))
        if place is None:
            place = self._places[id(table)] = len(self._coefficients)
            rows = table.reshape(-1, _COLUMNS).astype(np.float32)
            self._coefficients = np.concatenate([self._coefficients, rows])
        return place

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


def look(owner: Any, work: Predict) -> Trajectory:
    """A trajectory that does not move: one network call at the state's own step."""
    return Trajectory(owner, work.sampling, work.state, work.state.step)
