"""TTGen: take early steps under several revised prompts and keep the step that fits the original prompt best.

Source: Qiao et al. 2025, "TTGen: Incorporating Test-time Scaling to Diffusion Models", section 2. A step of the paper: the
rewriter compares the approximate clean latent x_0^t (Eq. 2) with the initial prompt q and writes M revised prompts; a
candidate latent is sampled under each (Eq. 3); the one whose clean latent has the highest score against q is the input of
the next step (2.2, BoN selection). The paper has Stable Diffusion 1.5, DDIM (``--solver ddim --eta 0``), T = 50, guidance
7.5, InternVL2.5-26B as the rewriter and CLIP score as the verifier; it recommends 20 or 30 injection steps and does not
give M, which is ours. Half of the steps, the default of ``injection``, is the middle of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import (
    MOST_PROMPTS,
    Budget,
    Candidate,
    Cost,
    Costs,
    Plan,
    Search,
    Span,
    Strategy,
    gather_completed,
    repeat,
    tunable,
)
from lotts_search.errors import BadInput


@dataclass
class TTGen(Strategy):
    """Test-time prompt revision: take each early step under several prompts and keep the best by its x0 prediction.

    The rewriter looks at the x0 prediction that the last step was made of, and the scores are those of the x0
    predictions that the new steps were made of. So a step costs one NFE per prompt, and looking is free. The first step
    uses the original prompt, as there is nothing to look at before it, and so do the steps after the last revision.
    Equal prompts are tried once, and what that saves goes into further images.

    Attributes:
        prompts: M, revised prompts per step, 1..100.
        injection: share of the T steps that is revised, from the second step on, 0 or more and below 1; at most T − 2 steps.
        n: images; None = as many as the budget pays for. What is left over pays for one with fewer injection steps.
        original: the original prompt replaces the last of the revised ones.
    """

    rewrites = True
    source = "Qiao et al. 2025, TTGen: Incorporating Test-time Scaling to Diffusion Models"
    formula = "at most n · (T + injection · T · (prompts − 1))"
    space = tunable(prompts=(2, 3, 4), injection=Span(0.2, 0.7), original=(False, True))

    prompts: int = 3
    injection: float = 0.5
    n: int | None = None
    original: bool = False

    def __post_init__(self) -> None:
        self.check_minimum(n=1)
        self.check_range("prompts", 1, MOST_PROMPTS)
        if self.injection != 0:
            self.check_share("injection", "the steps")

    async def run(self, search: Search) -> None:
        made = 0
        while lengths := self._lengths(search.budget.left, search.costs, made):
            await gather_completed(*(self._image(search, made + i, length) for i, length in enumerate(lengths)))
            made += len(lengths)
        if lengths is None:
            await repeat(lambda seed: self._image(search, seed, self._injection(search.costs)), None)

    async def _image(self, search: Search, seed: int, injection: int) -> None:
        """Make an image with this number of revised steps."""
        latent = await search.sample(seed, stop=1 if injection else None)
        for _ in range(injection):
            latent = await self._step(search, latent)
        if not latent.complete:
            await search.advance(latent, prompt=search.prompt)

    async def _step(self, search: Search, latent: Candidate) -> Candidate:
        """Return the best of the steps under the revised prompts."""
        count = self.prompts - 1 if self.original else self.prompts
        revised = await search.rewrite(latent, count, last=True) if count else []
        if self.original:
            revised.append(search.prompt)

        async def attempt(prompt: str) -> tuple[float, Candidate]:
            candidate = await search.advance(latent, latent.step + 1, prompt=prompt)
            return await search.score(candidate, last=True), candidate

        attempts = await gather_completed(*(attempt(prompt) for prompt in dict.fromkeys(revised)))
        if not attempts:
            return await search.advance(latent, latent.step + 1, prompt=search.prompt)
        _, best = max(attempts, key=lambda pair: pair[0])
        return best

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        lengths = self._lengths(budget, costs)
        if lengths is None:
            raise BadInput("the number of images needs a budget in NFE, images or FLOPs")
        revised = [length for length in lengths if length > 0]
        steps = sum(lengths)
        rewrites = self.prompts > self.original
        plan = Plan.of(
            ("sample", len(lengths) - len(revised), costs.sample),
            ("sample", len(revised), costs.step),
            ("rewrite", len(revised) * rewrites, costs.preview),
            ("rewrite", (steps - len(revised)) * rewrites, Cost()),
            ("advance", steps, costs.step),
            ("score", steps, costs.known_score),
            *(("advance", 1, costs.segment(1 + length, costs.steps)) for length in revised),
        )
        if self.prompts == 1 or not steps:
            return plan
        # Where more images may follow, all NFE can be spent, however many of the revised prompts are equal.
        if len(lengths) in (self.n, budget.images):
            total = sum((self._cost(costs, length) for length in lengths), Cost())
            return Plan(plan.trials, total.nfe, False, total.images, total.flops)
        costs_ = [self._cost(costs, length) for length in range(self._injection(costs) + 1)]
        return Plan.within(budget, *costs_, trials=plan.trials)

    def _injection(self, costs: Costs) -> int:
        """Return the number of revised steps of an image; the first and the last step never are."""
        return max(0, min(round(self.injection * costs.steps), costs.steps - 2))

    def _lengths(self, budget: Budget, costs: Costs, made: int = 0) -> list[int] | None:
        """Return the number of revised steps of each image after those ``made``; None = images without end."""
        injection = self._injection(costs)
        whole = self._cost(costs, injection)
        most = None if self.n is None else self.n - made
        count = budget.count(whole, most)
        if count is None:
            return None
        lengths = [injection] * count
        left = budget.minus(count * whole)
        while left.pays(costs.sample) and (most is None or len(lengths) < most):
            length = max(length for length in range(injection + 1) if left.pays(self._cost(costs, length)))
            lengths.append(length)
            left = left.minus(self._cost(costs, length))
        return lengths

    def _cost(self, costs: Costs, length: int) -> Cost:
        """Return the cost of an image with this many revised steps, whose prompts all differ."""
        if not length:
            return costs.sample
        # The rewriter looks at the step that was scored last; before the first revised step there is none.
        looked = costs.preview if self.prompts > self.original else Cost()
        revised = length * self.prompts * (costs.step + costs.known_score)
        return costs.step + looked + revised + costs.segment(1 + length, costs.steps)
