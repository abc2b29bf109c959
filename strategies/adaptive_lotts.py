"""AdaptiveLoTTS: LoTTS that decides as it goes: a new image or a refinement, of which image, how deep, when to stop.

Source: LoTTS, appendix F.2 (adaptive splits between global and local trials, early stop), with expected improvement
(Mockus 1975) as the criterion and successive halving (Jamieson and Talwalkar 2016) of the images to refine. The arithmetic
is in :mod:`lotts_search.arithmetic.bandit`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lotts_search.arithmetic.bandit import Arm, Beliefs, survivors
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Mask,
    Plan,
    Search,
    Span,
    Trial,
    gather_completed,
    score_of,
    tunable,
)


@dataclass
class AdaptiveLoTTS(Localized):
    """Localized search whose next trial is the one with the highest expected improvement over the best for its cost: per NFE, or
    per FLOP under a budget of FLOPs.

    A trial is either a new image, which may itself be refined later, or a refinement of a surviving image inside its own
    mask; refined images can be refined again. What trials gain is learned within the search. The number of survivors is
    halved as the budget is spent. From a given image that must be kept (``search.restart`` is False) only refinements follow.

    Attributes:
        initial: images at the beginning, or as many as the budget pays for; None = the square root of that number, at least
            two where it pays for them. A given image is one of them, the others come from pure noise.
        width: trials under way at a time, or as many as the budget pays for; the more, the less they know of each other.
        worth: stop when no expected improvement reaches this share of the spread of new images' scores; 0 = never.
        unsure: do not refine where the mask's confidence is below this, 0..1.
    """

    source = "LoTTS, appendix F.2 (adaptive splits, early stop), with expected improvement (Mockus 1975)"
    formula = "at most the budget; a new image T, a refinement T - t0 or, confined, less, its parent's mask L once"
    space = tunable(ratio=Span(0.2, 0.7), initial=(2, 3, 4, 6), worth=(0.0, 0.05, 0.1))
    traces: ClassVar[bool] = True

    initial: int | None = None
    width: int = 1
    worth: float = 0.05
    unsure: float = 0.0

    def __post_init__(self) -> None:
        self.check_minimum(initial=1, width=1, worth=0)
        self.check_range("unsure", 0, 1)

    async def run(self, search: Search) -> None:
        whole = self.limits(search.budget.left, search.costs)
        given = int(search.image is not None)
        initial = self._initial(whole, search.costs, given) if search.restart else 0
        state = _State(self, search, whole, given + initial)
        await gather_completed(state.encode(), *(state.add_image() for _ in range(initial)))

        async def worker() -> None:
            while not search.budget.stopped and (arms := state.arms()):
                if max(arm.improvement for arm in arms) < self.worth * state.beliefs.spread:
                    search.budget.stop(f"no trial is expected to improve the score by {self.worth:g} of its spread")
                    return
                best = max(arms, key=lambda arm: (arm.rate, arm.parent is not None))
                await gather_completed(state.add_image() if best.parent is None else state.refine(best.parent))

        workers = whole.count(self.refinement(search.costs), self.width)
        await gather_completed(*(worker() for _ in range(workers)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        limits = self.limits(budget, costs)
        refinement = self.refinement(costs)
        possible = *self.image_costs(costs), refinement, self.localization(costs) + refinement
        return Plan.within(limits, *possible, trials={"sample": self._initial(limits, costs)})

    def limits(self, budget: Budget, costs: Costs) -> Budget:
        """Return what a search may spend under a budget."""
        return budget

    def image_cost(self, left: Budget, costs: Costs) -> Cost:
        """Return the cost of the next new image; the budget need not pay for it."""
        return costs.sample

    def image_costs(self, costs: Costs) -> tuple[Cost, ...]:
        """Return costs of new images, among them those that cost most in one currency for their cost in another."""
        return (costs.sample,)

    async def new_image(self, search: Search, seed: int, left: Budget) -> Candidate | None:
        """Make an image from pure noise for what :meth:`image_cost` says; None where that fails on the way."""
        return await search.sample(seed)

    def _initial(self, limits: Budget, costs: Costs, given: int = 0) -> int:
        """Return the number of new images at the beginning, where ``given`` images are there already."""
        limits = limits.minus(given * costs.encode)
        # Never start from one image where the budget pays for more: no refinement removes a defect of the whole image, and one
        # image does not tell how much new ones differ.
        count = limits.count(self.image_cost(limits, costs)) or 9
        wanted = max(1, (self.initial or max(min(2, count), round(count**0.5))) - given)
        return limits.count(costs.sample, wanted)


@dataclass
class _State:
    """What one search has so far.

    Attributes:
        whole: the budget at the beginning.
        promised: the cost of all trials begun so far, of which those under way have reserved only a part.
        initial: number of images at the beginning.
        images: all complete candidates.
        masks: localizations, by the key of their image.
        closed: keys of images that are not refined again, because their mask failed or is unsure.
    """

    strategy: AdaptiveLoTTS
    search: Search
    whole: Budget
    initial: int
    promised: Cost = field(default_factory=Cost)
    beliefs: Beliefs = field(default_factory=Beliefs)
    images: list[Candidate] = field(default_factory=list)
    masks: dict[str, Trial[Mask]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    sample_seeds: Iterator[int] = field(default_factory=itertools.count)
    refine_seeds: Iterator[int] = field(default_factory=itertools.count)

    @property
    def left(self) -> Budget:
        """The budget that is not promised yet."""
        return self.whole.minus(self.promised)

    def arms(self) -> list[Arm[Candidate]]:
        """Return the possible trials that the rest of the budget pays for."""
        left = self.left
        best = score_of(self.search.best)
        sample = self.strategy.image_cost(left, self.search.costs)
        localization = self.strategy.localization(self.search.costs)
        refinement = self.strategy.refinement(self.search.costs)
        arms: list[Arm[Candidate]] = []

        def add(improvement: float, cost: Cost, parent: Candidate | None = None) -> None:
            if left.pays(cost):
                arms.append(Arm(improvement, self.search.budget.price(cost), parent))

        alive = sorted((image for image in self.images if image.key not in self.closed), key=score_of, reverse=True)
        for image in alive[: survivors(self.initial, left.spent_of(self.whole))]:
            cost = refinement if image.key in self.masks else localization + refinement
            add(self.beliefs.refine(image.key, score_of(image), best), cost, image)
        if self.search.restart:
            add(self.beliefs.sample(best), sample)
            add(self.beliefs.refined_sample(best), sample + localization + refinement)
        return arms

    async def add_image(self) -> None:
        """Make a new image."""
        left = self.left
        self.promised += self.strategy.image_cost(left, self.search.costs)
        image = await self.strategy.new_image(self.search, next(self.sample_seeds), left)
        if image is not None:
            self.images.append(image)
            self.beliefs.samples.append(score_of(image))

    async def encode(self) -> None:
        """Make the given image a candidate, if there is one. Its score tells of new ones only where none is made."""
        if self.search.image is None:
            return
        self.promised += self.search.costs.encode
        image = await self.search.encode(self.search.image)
        self.images.append(image)
        if not self.search.restart:
            self.beliefs.samples.append(score_of(image))

    async def refine(self, parent: Candidate) -> None:
        """Refine an image once; its mask is located before its first refinement."""
        if parent.key not in self.masks:
            self.promised += self.strategy.localization(self.search.costs)
            self.masks[parent.key] = self.strategy.locate(self.search, parent)
        masks = await gather_completed(self.masks[parent.key])
        if not masks or masks[0].confidence < self.strategy.unsure:
            self.closed.add(parent.key)
            return
        self.promised += self.strategy.refinement(self.search.costs)
        self.beliefs.pending.append(parent.key)
        refined = await gather_completed(self.strategy.refine(self.search, parent, masks[0], next(self.refine_seeds)))
        self.beliefs.pending.remove(parent.key)
        for image in refined:
            self.images.append(image)
            self.beliefs.gains.append((parent.key, score_of(parent), score_of(image) - score_of(parent)))
