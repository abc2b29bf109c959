"""The verifiers that a combination is made of."""

from __future__ import annotations

from collections.abc import Sequence

from lotts_search.errors import BadInput
from lotts_search.registry import check_verifier, load_verifier
from lotts_search.verifiers.base import Verifier

LARGEST = 1e30
"""Largest factor of a score: scores are float32, and greater products are infinite."""


def load_parts(texts: Sequence[str], what: str) -> list[Verifier]:
    """Load verifiers, once the names and settings of all of them are checked.

    Raises:
        BadInput: there is none, or a name or setting is wrong.
        Failure: one cannot be loaded.
    """
    if not texts:
        raise BadInput(f"{what} needs one verifier or more in its setting of")
    for text in texts:
        check_verifier(text)
    return [load_verifier(text) for text in texts]


def call_size(parts: Sequence[Verifier]) -> int | None:
    """Return the most images that all parts take in one call; None where no part has a limit of its own."""
    sizes = [size for part in parts if (size := getattr(part, "batch", None)) is not None]
    return min(sizes, default=None)


def flops_of(parts: Sequence[Verifier]) -> float:
    """Return the floating-point operations of one score of all parts."""
    return sum(float(getattr(part, "flops", 0.0)) for part in parts)


def filled(parts: Sequence[Verifier]) -> bool:
    """Return whether calls must be filled up, because a part wants it."""
    return any(getattr(part, "pad", True) for part in parts)
