"""DiffusionTreeSearch (Jain et al. 2025): Monte Carlo tree search over the denoising steps with a soft value backup."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.arithmetic.mcts import Node, back_up, boltzmann, upper_bound
from lotts_search.core.strategy import (
    Budget,
    Cost,
    Costs,
    Plan,
    Search,
    Strategy,
    allowance,
    check_noise,
    gather_completed,
    repeat,
)
from lotts_search.errors import BadInput


@dataclass
class DiffusionTreeSearch(Strategy):
    """Go down the tree of half-denoised states, branch, denoise to the end, pass the score up to all that led there.

    The value of a state is the logarithm of the mean of exp(λ · value) over its children, by λ; of an image its score.
    A state branches while it has fewer children than ``widening · visits ^ growth``; else the search goes down to the
    child with the highest upper confidence bound of its value (DTS*), or not greedily with probability ∝ exp(λ · value)
    (DTS). In the source every step is a state (``interval=1``).

    Attributes:
        interval: steps between states of the tree.
        strength: λ.
        exploration: weight of √(ln(visits of the parent) / visits) in the bound: a difference in scores that matters,
            so of the order of 1/λ.
        widening, growth: what limits the children of a state; more of either explores before it goes deep.
        greedy: DTS*; false is DTS, which samples from the law of images tilted by exp(λ · score).
        walkers: descents at the same time; 1 = each knows the results of all before it.
    """

    source = "Jain et al. 2025, Diffusion tree sampling: scalable inference-time alignment of diffusion models (DTS*)"
    formula = "the sum over descents of T - step of the branch"

    interval: int = 5
    strength: float = 10.0
    exploration: float = 0.1
    widening: float = 1.0
    growth: float = 0.5
    greedy: bool = True
    walkers: int = 1

    def __post_init__(self) -> None:
        if self.interval < 1 or self.walkers < 1 or not (self.strength > 0 and self.widening >= 1 and self.growth >= 0):
            raise BadInput("interval, walkers and widening must be 1 or more, strength above 0 and growth 0 or more")

    async def run(self, search: Search) -> None:
        check_noise(search)
        root, promised = Node(), dict[int, Cost]()

        async def walk(walker: int) -> None:
            while path := self._select(search, root, sum(promised.values(), Cost())):
                promised[walker] = search.costs.segment(path[-1].step, search.steps)
                await gather_completed(
                    self._branch(search, path, promised, walker)
                )  # where it fails, the next descent begins
                del promised[walker]

        await repeat(walk, self.walkers)

    def _select(self, search: Search, root: Node, promised: Cost) -> list[Node]:
        """The states from the root down to the one to branch; none where the budget, without what is promised to
        branches under way, pays for no branch there."""
        path, left = [root], search.budget.left.minus(promised)
        while True:
            node = path[-1]
            inner = node.inner
            room = node.born < self.widening * max(node.visits, 1) ** self.growth or not inner
            if room and left.pays(search.costs.segment(node.step, search.steps)):
                for visited in path:
                    visited.visits += 1
                return path
            if not inner:
                return []
            greedy = upper_bound(node, inner, self.exploration) if self.greedy else None
            path.append(greedy or boltzmann(inner, self.strength, search.rng))

    async def _branch(self, search: Search, path: list[Node], promised: dict[int, Cost], walker: int) -> None:
        """Denoise a new branch of the last state of the path to the end, and pass its score up."""
        levels = [*self._levels(search.costs), search.steps]
        while (node := path[-1]).step < search.steps:
            twin, node.born = node.born, node.born + 1
            stop = levels[0] if node.candidate is None else next(level for level in levels if level > node.step)
            promised[walker] = search.costs.segment(stop, search.steps) if stop < search.steps else Cost()
            if node.candidate is None:
                path.append(node.add(await search.sample(twin, stop=stop)))
            else:
                path.append(node.add(await search.advance(node.candidate, stop, seed=twin or None)))
        back_up(path, self.strength)

    def _levels(self, costs: Costs) -> list[int]:
        """Steps of the tree's states, from pure noise on. The last step has no noise to branch by."""
        return list(range(0, costs.steps - 1, self.interval))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan({}, allowance(budget, costs), exact=False)
