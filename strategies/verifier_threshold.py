"""VerifierThreshold: a step ends with the first child that scores above a threshold, not with the first new record.

Source: Sundaresha et al. 2025, "Verifier Threshold: an efficient test-time scaling approach for image generation" (arXiv
2512.08985), which moves on to the next denoising step only when the verifier's score is above a threshold. Where the
threshold lies is ours, and so are its default and what follows where no child is above it: steps are then those of
rollover budget forcing (Kim et al. 2025), to which the source compares itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.arithmetic.smc import spread
from lotts_search.core.strategy import Scored, Span, tunable
from lotts_search.strategies.rollover_budget import RolloverBudget


@dataclass
class VerifierThreshold(RolloverBudget):
    """At each step draw children one by one until one scores above a threshold, which stays the same over all steps.

    The threshold lies above the mean of the scores of the start noises' x0 predictions. Predictions get better from step to
    step, so late steps need few children, and what they leave starts another image.

    Attributes:
        threshold: how far it lies above the mean, in standard deviations of these scores.
    """

    source = "Sundaresha et al. 2025, Verifier Threshold: an efficient test-time scaling approach for image generation"
    space = tunable(initial=(2, 4, 8), quota=(1, 2, 4, 8), threshold=Span(1.0, 30.0, log=True))

    threshold: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_minimum(threshold=0)

    def bar(self, starts: list[Scored], record: float) -> float:
        scores = [start.score for start in starts]
        return float(np.mean(scores)) + self.threshold * spread(scores)
