"""Which trajectories share the next network call: one call is whole, or confined to the same number of active tokens in all rows.

All whole calls form one group, and confined ones another for each number of active tokens, of which there are few (see
:mod:`lotts_search.work.confined`). A tick calls one group, that with most rows; rows count once more for each call that they
wait, so that none waits for ever. Trajectories of the same refinement are at the same step and stay together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container
from typing import Any

import numpy as np
from torch import Tensor

from lotts_search.backbones.confined import Confines, Frozen
from lotts_search.engine.network_calls import SpecialCall
from lotts_search.engine.segments import Trajectory
from lotts_search.engine.stage import Shared
from lotts_search.engine.trajectories import Trajectories
from lotts_search.engine.transfer import upload
from lotts_search.work.confined import active_tokens, in_tokens
from lotts_search.work.requests import Segment

WHOLE = 0
"""The group of whole calls; those of the others are their numbers of active tokens."""


class Groups:
    """Groups the trajectories in ``running``.

    Args:
        most: bytes that the cached keys and values of all running trajectories may take. Those that do not fit wait; one
            alone may take more.
    """

    def __init__(self, shared: Shared, running: Trajectories, most: int):
        self._shared, self._running, self._most = shared, running, most
        self._bytes = shared.backbone.frozen_bytes() if isinstance(shared.backbone, Confines) else 0
        self._waits: Counter[int] = Counter()
        self._turn = 0
        self.group = WHOLE

    @property
    def confined(self) -> bool:
        """Whether the call under way is confined."""
        return self.group != WHOLE

    def fits(self, work: Segment, rows: int) -> bool:
        """Return whether there is room for a confined segment of this many rows: beside as many rows of others as a call has, and
        in the cache."""
        others = [member for member in self._running.members if member.confined is not None]
        region = work.resampled
        assert region is not None and region.confined is not None
        kept = [(one.confined, one.rows) for one in others] + [(region.confined, rows)]
        size = self._bytes * sum(count * (one.tokens - one.active) for one, count in kept if one is not None)
        return sum(one.rows for one in others) + rows <= self._shared.max_batch and (not others or size <= self._most)

    @property
    def whole_rows(self) -> int:
        """Rows of the trajectories that are never confined."""
        return sum(member.rows for member in self._running.members if member.confined is None)

    def choose(self, probes: int) -> None:
        """Choose the group of the next call, and let its trajectories take part in it, up to the size of a call.

        Args:
            probes: rows of localizations that wait; they need a whole call.
        """
        slots: dict[int, list[int]] = defaultdict(list)
        for slot, (member, calls, masked) in enumerate(self._running.progress()):
            slots[self._group(member, calls, masked)].append(slot)
        members = self._running.members
        rows = Counter({group: sum(members[slot].rows for slot in found) for group, found in slots.items()})
        rows[WHOLE] += probes
        self._waits = Counter({group: self._waits[group] + 1 for group in rows})
        self.group = max(rows, key=lambda group: rows[group] * self._waits[group])
        self._waits[self.group] = 0
        self._turn += 1
        chosen: list[int] = []
        left = self._shared.max_batch
        for slot in sorted(slots[self.group], key=lambda slot: (members[slot].turn, slot)):
            if (left := left - members[slot].rows) < 0:
                break
            chosen.append(slot)
            members[slot].turn = self._turn
        self._running.front(sorted(chosen))

    @staticmethod
    def _group(member: Trajectory, calls: int, masked: int) -> int:
        if member.confined is None or masked <= 0 or member.confined.dense(calls):
            return WHOLE
        return member.confined.active

    def call(self, only: Container[int] | None = None) -> SpecialCall | None:
        """Return the call of the chosen group; None = a plain one.

        Args:
            only: the rows that count; None = all.
        """
        backbone, found = self._shared.backbone, self._rows()
        recorded = {row: one for row, one in found.items() if only is None or row in only}
        if not recorded:
            return None
        assert isinstance(backbone, Confines)

        def confined(latents: Tensor, times: Tensor, texts: Any, rows: slice) -> Tensor:
            # The frozen tokens of padding are those of the first row.
            frozen = [found.get(row, found[0]) for row in range(rows.start, rows.stop)]
            return backbone.predict_confined(latents, times, texts, frozen)

        def whole(latents: Tensor, times: Tensor, texts: Any, rows: slice) -> Tensor:
            kept = {row - rows.start: one for row, one in recorded.items() if rows.start <= row < rows.stop}
            return backbone.record(latents, times, texts, kept)

        return confined if self.confined else whole

    def _rows(self) -> dict[int, Frozen]:
        """Return the frozen tokens of rows of the call: of all in a confined one, in a whole one of those whose next call is
        confined."""
        members, rows = self._running.going, {}
        negative = len(members)
        for row, (member, calls, masked) in enumerate(self._running.progress()[: len(members)]):
            if self.confined or self._group(member, calls + 1, masked - 1) != WHOLE:
                if not member.frozen:
                    member.frozen = self._frozen(member)
                rows[row] = member.frozen[0]
                if member.negative is not None:
                    rows[negative] = member.frozen[1]
            negative += member.negative is not None
        return rows

    def _frozen(self, member: Trajectory) -> list[Frozen]:
        region, confined = member.state.region, member.confined
        side = self._shared.backbone.info.confines
        assert region is not None and confined is not None and side
        active = active_tokens(in_tokens(region.mask, side), confined.active).ravel()
        places = [upload(np.flatnonzero(found), self._shared.device) for found in (active, ~active)]
        return [Frozen(places[0], places[1]) for _ in range(member.rows)]
