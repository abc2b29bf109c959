"""LoTTS that decides as it goes: new images or refinements, of which image, how deep, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from lotts_search.arithmetic.bandit import Arm, Beliefs, score_of, survivors
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import Budget, Candidate, Cost, Costs, Mask, Plan, Search, Trial, gather_completed, paid
from lotts_search.errors import BadInput


@dataclass
class AdaptiveLoTTS(Localized):
    """Localized search whose next trial is the one with the highest expected improvement over the best, per NFE.

    Arms are a new image (also one that will be refined) and a refinement of each surviving image inside its own
    mask, refined ones among them. What they bring is learned within the search, see :mod:`lotts_search.arithmetic.bandit`. The
    number of survivors is halved as the budget is spent.

    Attributes:
        initial: images from pure noise to begin with; None = the square root of the number that the budget pays.
        width: trials under way at a time; more of them know less of each other.
        worth: stop when no expected improvement reaches this share of the spread of new images' scores; 0 = never.
        unsure: do not refine where the mask's confidence is below this, 0..1.
    """

    takes_image = True
    source = "LoTTS, appendix F.2 (adaptive splits, early stop), with expected improvement (Mockus 1975)"
    formula = "at most the budget; a new image T, a refinement T - t0, its parent's mask L once"

    initial: int | None = None
    width: int = 1
    worth: float = 0.05
    unsure: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("initial", 1), ("width", 1), ("worth", 0), ("unsure", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise BadInput(f"{name} must be {least} or more, not {value}")

    async def run(self, search: Search) -> None:
        tree, whole = _Tree(search, self), search.budget.left
        initial = self._initial(whole, search.costs) if search.image is None else 1
        await gather_completed(*(tree.begin() for _ in range(initial)))

        async def worker() -> None:
            while not search.budget.stopped and (arms := tree.arms(initial, whole)):
                if max(arm.improvement for arm in arms) < self.worth * tree.beliefs.spread:
                    search.budget.stop(f"no trial is expected to improve the score by {self.worth:g} of its spread")
                    return
                best = max(arms, key=lambda arm: (arm.rate, arm.parent is not None))
                await gather_completed(tree.begin() if best.parent is None else tree.refine(best.parent))

        await gather_completed(*(worker() for _ in range(self.width)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        dearest = max(costs.sample.nfe, (self.localization(costs) + self.refinement(costs)).nfe)
        most = paid(budget, costs.sample) * dearest if budget.nfe is None else budget.nfe
        return Plan({"sample": self._initial(budget, costs)}, most, exact=False)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.localization(costs) + self.refinement(costs) if image else costs.sample

    def _initial(self, budget: Budget, costs: Costs) -> int:
        # One may have a defect of the whole image, that no refinement mends.
        return self.initial or max(1, round((budget.count(costs.sample) or 9) ** 0.5))


@dataclass
class _Tree:
    """What one search has so far."""

    search: Search
    how: AdaptiveLoTTS
    beliefs: Beliefs = field(default_factory=Beliefs)
    found: list[Candidate] = field(default_factory=list)
    masks: dict[str, Trial[Mask]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    samples: Iterator[int] = field(default_factory=count)
    refinements: Iterator[int] = field(default_factory=count)

    def arms(self, initial: int, whole: Budget) -> list[Arm[Candidate]]:
        """The trials that the rest of the ``whole`` budget pays for."""
        search, beliefs, best = self.search, self.beliefs, score_of(self.search.best)
        sample, refine = search.costs.sample, self.how.refinement(search.costs)
        locate, arms = self.how.localization(search.costs), list[Arm[Candidate]]()
        alive = sorted((one for one in self.found if one.key not in self.closed), key=score_of, reverse=True)
        for one in alive[: survivors(initial, search.budget.left.spent_of(whole))]:
            cost = refine if one.key in self.masks else locate + refine
            arms.append(Arm(beliefs.refine(one.key, score_of(one), best), cost, one))
        if search.image is None:
            arms.append(Arm(beliefs.sample(best), sample))
            arms.append(Arm(beliefs.refined_sample(best), sample + locate + refine))
        return [arm for arm in arms if search.budget.left.pays(arm.cost)]

    async def begin(self) -> None:
        """An image from pure noise, or the given one."""
        image = self.search.image
        made = await (self.search.sample(next(self.samples)) if image is None else self.search.encode(image))
        self.found.append(made)
        self.beliefs.samples.append(score_of(made))

    async def refine(self, parent: Candidate) -> None:
        """One more refinement of an image; its mask is located before the first."""
        if parent.key not in self.masks:
            self.masks[parent.key] = self.how.locate(self.search, parent)
        masks = await gather_completed(self.masks[parent.key])
        if not masks or masks[0].confidence < self.how.unsure:
            self.closed.add(parent.key)
            return
        self.beliefs.pending.append(parent.key)
        made = await gather_completed(self.how.refine(self.search, parent, masks[0], next(self.refinements)))
        self.beliefs.pending.remove(parent.key)
        self.found += made
        self.beliefs.gains += [(parent.key, score_of(parent), score_of(one) - score_of(parent)) for one in made]
