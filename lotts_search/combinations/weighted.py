"""The weighted sum of several verifiers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lotts_search.combinations.parts import LARGEST, call_size, filled, flops_of, load_parts
from lotts_search.errors import BadInput
from lotts_search.verifiers.base import Verifier
from lotts_search.work.requests import Bytes, Floats


class Weighted:
    """``weighted``: Σ wᵢ·scoreᵢ of other verifiers. The weights also bring the parts to one scale: the scores are not
    normalised.
    """

    name = "weighted"
    requirements: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Verifier], weights: Sequence[float]):
        self.parts, self.weights = parts, weights
        self.batch, self.pad, self.flops = call_size(parts), filled(parts), flops_of(parts)

    @classmethod
    def load(cls, *, of: dict[str, float]) -> Weighted:
        """Load the verifier and its parts.

        Args:
            of: weight of each verifier, a name or package.module:Class with its own settings.

        Raises:
            BadInput: a name, a setting or a weight is wrong.
            Failure: a part cannot be loaded.
        """
        if not all(abs(weight) <= LARGEST for weight in of.values()) or not any(of.values()):
            raise BadInput(f"weights must be within ±{LARGEST:g} and not all 0, not {of}")
        return cls(load_parts(list(of), "weighted"), list(of.values()))

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        total = np.zeros(len(images))
        for part, weight in zip(self.parts, self.weights, strict=True):
            total += weight * part.score(prompts, images).astype(np.float64)
        return total.astype(np.float32)
