"""EpsilonGreedy: at every step search for the best noise, near the best one so far or, now and then, anywhere.

Source: Ramesh and Mardani 2025, "Test-time scaling of diffusion models via noise trajectory search" (arXiv 2506.03164), the
ε-greedy search. A step of the paper: K times draw N candidates for the step's noise, each with probability ε a fresh one and
otherwise one at the distance λ·√d or less of the best so far, the pivot; score the x0 predictions. There N = 4, K = 20,
λ = 0.15 and ε = 0.4. Ours: a neighbour is ``√(1−λ²)·n + λ·ε``, about as far away and standard normal; the pivot is never
given up for a worse one; the start noise is not searched.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.chains import Chains
from lotts_search.core.strategy import Candidate, Scored, Search, Span, scored, tunable


@dataclass
class EpsilonGreedy(Chains):
    """At every step draw children in rounds: neighbours of the best child's noise, and with probability ε fresh ones.

    The first round of a step is all fresh. Where the budget pays for fewer children than ``children``, there are fewer rounds.

    Attributes:
        children: children per step, K rounds of N; the source has 80.
        candidates: N, children per round.
        epsilon: ε, probability of fresh noise, 0..1; 1 is SVDD.
        share: λ, the share of a neighbour's noise that is new, 0..1.
    """

    source = (
        "Ramesh and Mardani 2025, Test-time scaling of diffusion models via noise trajectory search (epsilon-greedy: "
        "N = 4, K = 20, lambda = 0.15, epsilon = 0.4)"
    )
    formula = "chains · (1 + children · (T - 1))"
    space = tunable(children=(4, 8, 16, 80), candidates=(1, 2, 4), epsilon=(0.2, 0.4, 0.7, 1.0), share=Span(0.1, 0.9))

    children: int = 80
    candidates: int = 4
    epsilon: float = 0.4
    share: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_minimum(candidates=1)
        self.check_range("epsilon", 0, 1)
        self.check_range("share", 0, 1)

    async def choose(self, search: Search, children: list[Scored]) -> Candidate:
        return max(children, key=lambda child: child.score).candidate

    async def step(self, search: Search, state: Candidate, count: int) -> Candidate | None:
        pivot: list[Scored] = []  # at most one
        for first in range(0, count, self.candidates):
            trials = []
            for number in range(first, min(first + self.candidates, count)):
                if not pivot or search.rng.random() < self.epsilon:
                    trials.append(search.child(state, state.step + 1, number))
                else:
                    trials.append(search.vary(pivot[0].candidate, self.share, number))
            found = pivot + await scored(search, trials)
            pivot = [max(found, key=lambda child: child.score)] if found else []
        return await self.choose(search, pivot) if pivot else None
