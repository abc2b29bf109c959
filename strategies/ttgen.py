"""TTGen (Qiao et al. 2025): early steps are tried under revised prompts, and the one that fits the original best stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lotts_search.core.strategy import Budget, Candidate, Cost, Costs, Plan, Search, Strategy, gather_completed, repeat
from lotts_search.errors import BadInput


@dataclass
class TTGen(Strategy):
    """Test-time prompt revision: each early step is taken under several prompts, the best by its x0 prediction stays.

    The rewriter looks at the x0 prediction that the last step was made of and writes prompts against the original one.
    A step is taken under each of them, and the x0 predictions that these steps were made of are scored against the
    original prompt. So a step costs one NFE a prompt, and looking costs none. The first step goes by the original
    prompt, as there is nothing to look at before it, and so do the steps after the last revision. Prompts that are
    equal are tried once.

    The source has Stable Diffusion 1.5, DDIM (``--solver ddim --eta 0``), T = 50, guidance 7.5, InternVL2.5-26B as the
    rewriter and CLIP score as the verifier; it recommends 20 or 30 injection steps and does not give M.

    Attributes:
        prompts: M, revised prompts of each step, 1 or more.
        injection: early steps that are revised, 0 to T − 2; None = half of T.
        n: images; None = as many as the budget pays. What is left pays for one with fewer injection steps.
        original: the original prompt takes the place of the last of the revised ones.
    """

    rewrites: ClassVar[bool] = True
    source: ClassVar[str] = "Qiao et al. 2025, TTGen: Incorporating Test-time Scaling to Diffusion Models"
    formula: ClassVar[str] = "n · (T + injection · (prompts − 1))"

    prompts: int = 3
    injection: int | None = None
    n: int | None = None
    original: bool = False

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("injection", 0), ("n", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"{name} must be {least} or more, not {value}")

    async def run(self, search: Search) -> None:
        lengths = self._lengths(search.budget.left, search.costs)

        async def image(seed: int) -> None:
            length = self._injection(search.costs) if lengths is None else lengths[seed]
            candidate = await search.sample(seed, stop=1 if length else None)
            for _ in range(length):
                candidate = await self._step(search, candidate)
            if not candidate.complete:
                await search.advance(candidate, prompt=search.prompt)

        await repeat(image, None if lengths is None else len(lengths))

    async def _step(self, search: Search, parent: Candidate) -> Candidate:
        """One step under each prompt; the best one."""
        asked = self.prompts - self.original
        revised = await search.rewrite(parent, asked, last=True) if asked else []

        async def attempt(prompt: str) -> tuple[float, Candidate]:
            child = await search.advance(parent, parent.step + 1, prompt=prompt)
            return await search.score(child, last=True), child

        prompts = dict.fromkeys([*revised, search.prompt] if self.original else revised)
        tried = await gather_completed(*(attempt(prompt) for prompt in prompts))
        if not tried:
            return await search.advance(parent, parent.step + 1, prompt=search.prompt)
        return max(tried, key=lambda one: one[0])[1]

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        lengths = self._lengths(budget, costs)
        if lengths is None:
            raise BadInput("the number of images needs a budget in NFE or images")
        revised, steps = [length for length in lengths if length], sum(lengths)
        return Plan.of(
            ("sample", len(lengths) - len(revised), costs.sample),
            ("sample", len(revised), costs.segment(0, 1)),
            ("rewrite", steps if self.prompts > self.original else 0, Cost()),
            ("advance", steps * self.prompts, costs.segment(0, 1)),
            *(("advance", 1, costs.segment(1 + length, costs.steps)) for length in revised),
        )

    def _injection(self, costs: Costs) -> int:
        """Revised steps of an image: neither the first nor the last step."""
        wanted = costs.steps // 2 if self.injection is None else self.injection
        return max(0, min(wanted, costs.steps - 2))

    def _lengths(self, budget: Budget, costs: Costs) -> list[int] | None:
        """Revised steps of each image; None = images without end."""
        full, extra = self._injection(costs), self.prompts - 1
        whole = costs.sample + Cost(full * extra)
        counts = [count for count in (budget.count(whole), self.n) if count is not None]
        if not counts:
            return None
        count = min(counts)
        lengths, left = [full] * count, budget.minus(count * whole)
        while (self.n is None or len(lengths) < self.n) and left.nfe is not None and left.pays(costs.sample):
            lengths.append(int(left.nfe - costs.steps) // extra)
            left = left.minus(costs.sample + Cost(lengths[-1] * extra))
        return lengths
