"""SVDD, soft value-based decoding: at every step draw several children and continue with the best by its x0 prediction.

Source: Li et al. 2024, "Derivative-free guidance in continuous and discrete diffusion models with soft value-based
decoding", algorithm SVDD-PM. A step of the paper: draw M children of the current state, estimate the value of each by the
reward of its x0 prediction, draw one child with probability ∝ exp(value / alpha). There M = 20 and alpha = 0. That alpha is
measured in spreads is ours, so that it means the same with every verifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.arithmetic.smc import spread
from lotts_search.core.chains import Chains
from lotts_search.core.strategy import Candidate, Scored, Search, tunable


@dataclass
class SVDD(Chains):
    """At every step draw M children by new noise; one of them continues, chosen by the score of its x0 prediction.

    A child's score pays for the next step of all of its children. Under a budget of N images without NFE, the chains
    take the steps of N samples. What whole chains leave over funds one more chain with fewer children per step.

    Attributes:
        alpha: temperature in standard deviations of the scores of the children to choose from: a child is drawn with
            probability ∝ exp(score / (alpha · deviation)); 0 = the best one.
    """

    source = (
        "Li et al. 2024, Derivative-free guidance in continuous and discrete diffusion models with soft value-based "
        "decoding (SVDD-PM: M = 20, alpha = 0)"
    )
    formula = "chains · (1 + children · (T - 1))"
    space = tunable(children=(2, 4, 8, 20), choose_start=(False, True), alpha=(0.0, 0.25, 0.5, 1.0))

    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_minimum(alpha=0)

    async def choose(self, search: Search, children: list[Scored]) -> Candidate:
        values = np.array([found.score for found in children])
        temperature = self.alpha * spread(values)
        if temperature == 0:
            return children[int(np.argmax(values))].candidate
        weights = np.exp((values - values.max()) / temperature)
        return children[int(search.rng.choice(len(children), p=weights / weights.sum()))].candidate
