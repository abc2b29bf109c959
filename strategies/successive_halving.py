"""SuccessiveHalving: many samples begin, and at checkpoints only the better half of them goes on.

Source: Yu et al. 2025, "TTSnap: Test-time scaling of diffusion models via noise-aware pruning" (arXiv 2511.22242), which ends
samples early by the scores of their x0 predictions, so that more of them can begin. The paper scores by a reward that was trained
on such predictions; ``shapes-reward-x0`` is one. Halving at equal shares of the trajectory is ours (Jamieson and Talwalkar 2016 halve at equal shares of the
budget). No noise is drawn at the checkpoints: with ``keep=1`` this is Best-of-N.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from itertools import pairwise

from lotts_search.arithmetic.smc import checkpoints
from lotts_search.core.stages import Stages
from lotts_search.core.strategy import Budget, Cost, Costs, ModelInfo, Plan, Search, Strategy, notice, scored, tunable
from lotts_search.errors import BadInput

ROUND = 8
"""Samples per round where nothing but time limits the search."""


@dataclass
class SuccessiveHalving(Strategy):
    """Begin many samples; at checkpoints those with the best x0 predictions go on, and the others end.

    A checkpoint's scores pay for the next step of the samples that go on. The last stage makes images.

    Attributes:
        samples: number of samples that begin; None = as many as the budget pays for.
        keep: share of the samples that a checkpoint keeps, above 0 to 1, at least one.
        interval: share of the trajectory between checkpoints, above 0 and below 1; a very small one is every step.
        first, last: shares of the trajectory between which checkpoints lie, 0..1.
    """

    source = "Yu et al. 2025, TTSnap: Test-time scaling of diffusion models via noise-aware pruning (the pruning)"
    formula = "samples · Σ keep^(checkpoints before the step), over the steps, and one for each that a checkpoint ends"
    space = tunable(keep=(0.25, 0.5, 0.75), interval=(0.1, 0.2, 0.3), first=(0.1, 0.2, 0.4, 0.6))

    samples: int | None = None
    keep: float = 0.5
    interval: float = 0.2
    first: float = 0.2
    last: float = 0.8

    def __post_init__(self) -> None:
        self.check_minimum(samples=1)
        self.check_share("interval")
        if self.keep != 1:
            self.check_share("keep", "the samples")
        if not 0 <= self.first <= self.last <= 1:
            raise BadInput(f"first and last must be within 0..1, in this order, not {self.first} and {self.last}")

    def check(self, costs: Costs, info: ModelInfo) -> None:
        if len(self._stages(costs).stops) == 1:
            notice(f"successive-halving: a trajectory of {costs.steps} steps has no checkpoint: no sample ends early")

    async def run(self, search: Search) -> None:
        left, stages = search.budget.left, self._stages(search.costs)
        if left.counted:
            await self._halve(search, stages, stages.paid(left, search.costs, self.samples), 0)
            return
        size = self.samples or ROUND
        for seed in itertools.count(step=size):
            await self._halve(search, stages, size, seed)

    async def _halve(self, search: Search, stages: Stages, count: int, seed: int) -> None:
        trials = [search.sample(seed + i, stop=stages.stops[0]) for i in range(count)]
        for fewer, (_, stop) in zip(stages.counts(count)[1:], pairwise(stages.stops), strict=True):
            found = sorted(await scored(search, trials), key=lambda sample: sample.score, reverse=True)
            trials = [search.advance(sample.candidate, stop) for sample in found[:fewer]]
        await scored(search, trials)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        stages = self._stages(costs)
        return Plan.of(*stages.lines(costs, stages.paid(budget, costs, self.samples)))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self._stages(costs).cost(costs)

    def _stages(self, costs: Costs) -> Stages:
        stops = [*checkpoints(0, costs.steps, self.interval, self.first, self.last), costs.steps]
        return Stages("sample", 0, stops, [self.keep**stage for stage in range(len(stops))])
