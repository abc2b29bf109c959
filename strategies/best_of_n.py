"""Best-of-N: independent samples, of which the verifier picks the best.

Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps": random search. With
``template="A high-quality image of {}"`` it is the prompt baseline (p+) of the LoTTS paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import BadInput, Budget, Costs, Plan, Search, Strategy, repeat


@dataclass
class BestOfN(Strategy):
    """Sample independent images; the best one wins.

    Attributes:
        n: number of images; None = as many as the budget pays for.
        template: prompt of the images, where {} stands for the search's prompt; scores always use the search's prompt.
    """

    source = "Ma et al. 2025, Inference-time scaling for diffusion models (random)"
    formula = "n · T"
    nested = True

    n: int | None = None
    template: str = "{}"

    def __post_init__(self) -> None:
        self.check_minimum(n=1)
        if not self.template.strip():
            raise BadInput("template must not be empty")

    async def run(self, search: Search) -> None:
        (prompt,) = self.image_prompts(search.prompt)
        n = search.budget.left.count(search.costs.sample, self.n)
        await repeat(lambda seed: search.sample(seed, prompt=prompt), n)

    def image_prompts(self, prompt: str) -> list[str]:
        return [self.template.replace("{}", prompt)]

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", budget.paid(costs.sample, self.n), costs.sample))
