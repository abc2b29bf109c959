"""One colour per strategy, the same in curves, tables, trees and figures, and in all pages where possible."""

from __future__ import annotations

import re
from collections.abc import Sequence

COLOURS = ("#d5541c", "#2f66c4", "#3d8b4f", "#8a4fb0", "#b7791f", "#1b8a8f", "#b33771", "#63636e")
"""The colours of figures. The style sheet has them as ``--series-1`` to ``--series-8``, with others for dark mode."""
USUAL = ("bestofn", "lotts", "adaptivelotts", "treesearch", "particle", "svdd", "zeroorder", "moresteps")
"""Strategies with a colour of their own, by its place."""


def colours(labels: Sequence[str]) -> dict[str, int]:
    """Return the place of each label's colour in :data:`COLOURS`; at most as many labels as colours have one.

    A strategy has its usual colour, whatever else is shown; the other labels take what is left, in their order.
    """
    names = {label: re.sub("[^a-z]", "", label.split(" ")[0].lower()) for label in labels[: len(COLOURS)]}
    places: dict[str, int] = {}
    for label, name in names.items():
        if name in USUAL and USUAL.index(name) not in places.values():
            places[label] = USUAL.index(name)
    free = [place for place in range(len(COLOURS)) if place not in places.values()]
    return places | dict(zip((label for label in names if label not in places), free, strict=False))


def css(place: int) -> str:
    """Return a colour of the style sheet."""
    return f"var(--series-{place + 1})"
