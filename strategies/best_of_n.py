"""Best-of-N: independent samples, the verifier picks; ``template="A high-quality image of {}"`` is its p+ baseline."""

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, paid, repeat


@dataclass
class BestOfN(Strategy):
    """Independent images; the best one wins.

    Attributes:
        n: number of images; None = as many as the budget pays.
        template: prompt of the images, {} being the search's own prompt, by which they are scored."""

    source, formula, nested = "Ma et al. 2025, Inference-time scaling for diffusion models (random)", "n · T", True
    n: int | None = None
    template: str = "{}"

    async def run(self, search: Search) -> None:
        n = search.budget.left.count(search.costs.sample) if self.n is None else self.n
        await repeat(lambda seed: search.sample(seed, prompt=self.template.replace("{}", search.prompt)), n)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", paid(budget, costs.sample, self.n), costs.sample))
