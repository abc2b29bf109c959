"""Critique: a vision-language model says what an image lacks, and the image is refined with a prompt that stresses it.

Source: Jaiswal et al. 2026, "Iterative refinement improves compositional image generation" (arXiv 2601.15286). A round of the
paper: a critic compares the image with the prompt and writes a revised one, an editor changes the image; then the loop continues
from the new image, returns to an earlier one or starts again. Here the critic is the rewriter, the editor is a refinement
inside a mask (LoTTS, Algorithm 2), and the verifier decides how to continue. With ``mask=judged`` a judge also says where.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    MOST_PROMPTS,
    Budget,
    Candidate,
    Costs,
    Plan,
    Search,
    gather_completed,
    score_of,
    tunable,
)


@dataclass
class Critique(Localized):
    """Ask for revised prompts for an image, and refine it with one after the other until it is better; then ask again.

    A refinement that scores higher than its parent takes its place. Where none of the prompts helps, another image is
    sampled; what does not pay for that, and a given image, goes into further refinements with the same prompts.

    Attributes:
        prompts: revised prompts per image, 1..100.
    """

    rewrites = True
    source = "Jaiswal et al. 2026, Iterative refinement improves compositional image generation"
    formula = "at most n · (T + L) + refinements · (L + T - t0); confined steps cost less"
    space = tunable(prompts=(1, 2, 3, 4), ratio=(0.2, 0.3, 0.5, 0.7))

    prompts: int = 2

    def __post_init__(self) -> None:
        self.check_range("prompts", 1, MOST_PROMPTS)

    async def run(self, search: Search) -> None:
        for seed in itertools.count() if search.image is None else range(1):
            if seed and not self._pays_for_another(search):
                return
            await gather_completed(self._improve(search, seed))

    async def _improve(self, search: Search, seed: int) -> None:
        image = await self.root(search, seed)
        while search.budget.left.pays(self.located_refinement(search.costs)):
            better = await self._better(search, image)
            if better is None:
                return
            image = better

    async def _better(self, search: Search, image: Candidate) -> Candidate | None:
        """Return the first refinement that is better than the image; None where another image is to be sampled, or the budget
        is spent."""
        mask = await self.locate(search, image)
        revised = await search.rewrite(image, self.prompts)
        for number in itertools.count():
            if not search.budget.left.pays(self.refinement(search.costs)):
                return None
            if number >= self.prompts and search.image is None and self._pays_for_another(search):
                return None
            prompt = revised[number % self.prompts]
            refined = await gather_completed(self.refine(search, image, mask, number, prompt=prompt))
            if refined and score_of(refined[0]) > score_of(image):
                return refined[0]
        raise AssertionError("unreachable")

    def _pays_for_another(self, search: Search) -> bool:
        return search.budget.left.pays(search.costs.sample + self.located_refinement(search.costs))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.within(budget, costs.sample, self.located_refinement(costs), self.refinement(costs))
