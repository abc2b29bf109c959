"""DiffusionTreeSearch (DTS, DTS*): Monte Carlo tree search over the denoising steps with a soft value backup.

Source: Jain et al. 2025, "Diffusion tree sampling: scalable inference-time alignment of diffusion models". An iteration of
the paper: selection goes down the tree of half-denoised states, expansion branches the state where it ends, rollout
denoises the branch to an image, backup passes the score up to all states that led there. There every step is a state. The
other defaults are ours, and so is that λ and the exploration are measured in spreads of the scores. The arithmetic is in
:mod:`lotts_search.arithmetic.mcts`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lotts_search.arithmetic.mcts import Node, back_up, boltzmann, upper_bound
from lotts_search.arithmetic.smc import checkpoints, spread
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    ModelInfo,
    Plan,
    Search,
    Span,
    Strategy,
    gather_completed,
    notice,
    repeat,
    score_of,
    tunable,
)
from lotts_search.errors import BadInput


@dataclass
class DiffusionTreeSearch(Strategy):
    """Descend the tree of half-denoised states, branch, denoise to the end, pass the score up to all that led there.

    The value of an image is its score; the value of a state is the logarithm of the mean of exp(λ · value) over its
    children, divided by λ. A state branches while it has fewer children than ``widening · visits ^ growth``. Otherwise
    the descent continues at the child with the highest upper confidence bound of its value (DTS*), or, not greedily,
    at a child drawn with probability ∝ exp(λ · value) (DTS). λ and the exploration are in units of the standard deviation
    of the scores of all images so far, and 1 while that is 0; values off the path of a descent keep the λ of their last one.

    Attributes:
        interval: share of the trajectory between states of the tree, above 0 and below 1; a very small one is every step.
        strength: λ, per standard deviation.
        exploration: weight of √(ln(visits of the parent) / visits) in the bound, in standard deviations: a difference in
            scores that matters, so of the order of 1/λ.
        widening, growth: limit the children of a state; more of either explores more before it goes deep.
        greedy: True is DTS*; False is DTS, which samples from the distribution of images tilted by exp(λ · score).
        walkers: descents at the same time; 1 = each descent knows the results of all before it.
    """

    source = "Jain et al. 2025, Diffusion tree sampling: scalable inference-time alignment of diffusion models (DTS*)"
    formula = "the sum over descents of T - step of the branch"
    space = tunable(
        interval=(0.1, 0.2, 0.3, 0.5),
        strength=Span(0.5, 20.0, log=True),
        exploration=Span(0.05, 2.0, log=True),
        widening=(1.0, 2.0, 4.0),
        growth=(0.3, 0.5, 0.7),
    )

    interval: float = 0.2
    strength: float = 5.0
    exploration: float = 0.2
    widening: float = 1.0
    growth: float = 0.5
    greedy: bool = True
    walkers: int = 1

    def __post_init__(self) -> None:
        self.check_minimum(widening=1, walkers=1, exploration=0)
        self.check_range("growth", 0, 1)
        self.check_share("interval")
        if not 0 < self.strength < math.inf:
            raise BadInput(f"strength must be a number above 0, not {self.strength}")

    def check(self, costs: Costs, info: ModelInfo) -> None:
        if len(self._levels(costs)) < 2:
            notice(
                f"tree-search: at interval={self.interval:g} a trajectory of {costs.steps} steps has no state to branch"
            )

    async def run(self, search: Search) -> None:
        search.check_noise()
        root = Node[Candidate]()
        scores: list[float] = []  # of the images so far
        promised: dict[int, Cost] = {}  # by walker: what its descent still has to call

        async def walk(walker: int) -> None:
            while path := self._select(search, root, spread(scores), sum(promised.values(), Cost())):
                promised[walker] = search.costs.segment(path[-1].step, search.steps)
                await gather_completed(self._expand(search, path, scores, promised, walker))  # a failure ends it alone
                del promised[walker]

        await repeat(walk, self.walkers)

    def _select(self, search: Search, root: Node[Candidate], unit: float, promised: Cost) -> list[Node[Candidate]]:
        """Return the states from the root down to the one to branch; none where the budget, without what is promised to
        descents under way, does not pay for a branch there."""
        left = search.budget.left.minus(promised)
        path = [root]
        while True:
            node = path[-1]
            branches = node.born < self.widening * max(node.visits, 1) ** self.growth or not node.inner
            if branches and left.pays(search.costs.segment(node.step, search.steps)):
                for visited in path:
                    visited.visits += 1
                return path
            if not node.inner:
                return []
            if self.greedy:
                path.append(upper_bound(node, node.inner, self.exploration * (unit or 1.0)))
            else:
                path.append(boltzmann(node.inner, self.strength / (unit or 1.0), search.rng))

    async def _expand(
        self,
        search: Search,
        path: list[Node[Candidate]],
        scores: list[float],
        promised: dict[int, Cost],
        walker: int,
    ) -> None:
        """Branch the last state of the path, denoise the branch to the end, and back its score up."""
        for stop in [*self._levels(search.costs), search.steps]:
            node = path[-1]
            if node.candidate is not None and stop <= node.step:
                continue
            number = node.born
            node.born += 1
            promised[walker] = search.costs.segment(stop, search.steps) if stop < search.steps else Cost()
            if node.candidate is None:
                path.append(node.add(await search.sample(number, stop=stop)))
            else:
                path.append(node.add(await search.child(node.candidate, stop, number)))
        scores.append(score_of(path[-1].candidate))
        back_up(path, self.strength / (spread(scores) or 1.0))

    def _levels(self, costs: Costs) -> list[int]:
        """Return the steps of the tree's states, from pure noise on. The last step has no noise to branch by."""
        return [0, *checkpoints(0, costs.steps, self.interval, self.interval, 1)]

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        branches = (costs.segment(step, costs.steps) for step in self._levels(costs))
        return Plan.within(budget.allowed(costs.sample), *branches)
