"""Distinct lineages: how many starts of a search its images descend from, so how far selection has collapsed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lotts_search.curves import Setup
from lotts_search.curves.trials import IMAGES

if TYPE_CHECKING:
    import pyarrow as pa

BRANCHES = ("branch@", "vary@", "compose@")
"""Entries of a lineage by which the descendants of one start differ."""
COLUMNS = ("model", "label", "budget_nfe", "budget_images", "search_id", "lineage", "image")


@dataclass(frozen=True)
class Lineages:
    """Means over the searches of a setup.

    Attributes:
        begun: starts, samples from pure noise or refinements.
        left: those that an image descends from.
        images: complete images.
    """

    setup: Setup
    begun: float
    left: float
    images: float

    @property
    def selected(self) -> bool:
        """Whether some starts ended early or branched; otherwise each start is one image."""
        return not self.begun == self.left == self.images


def start_of(lineage: Sequence[str]) -> tuple[str, ...]:
    """Return a lineage without the branches at its end: the start that it descends from."""
    end = len(lineage)
    while end and lineage[end - 1].startswith(BRANCHES):
        end -= 1
    return tuple(lineage[:end])


def lineages(table: pa.Table) -> list[Lineages]:
    """Count the lineages of each setup of a trial table, in its order; none where the table has no such columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not {"status", *COLUMNS} <= set(table.column_names):
        return []
    done = pc.and_(pc.is_in(table.column("kind"), pa.array(IMAGES)), pc.equal(table.column("status"), "done"))
    table = table.filter(done)
    limits = table.column("budget_flops").to_pylist() if "budget_flops" in table.column_names else [None] * len(table)
    rows = zip(*(table.column(name).to_pylist() for name in COLUMNS), limits, strict=True)
    searches: dict[Setup, dict[str, tuple[set[tuple[str, ...]], list[tuple[str, ...]]]]] = {}
    for model, label, nfe, images, search, lineage, image, flops in rows:
        begun, ends = searches.setdefault(Setup(model, label, nfe, images, flops), {}).setdefault(search, (set(), []))
        begun.add(start := start_of(lineage))
        if image is not None:
            ends.append(start)
    found = []
    for setup, of in searches.items():
        counts = np.array([(len(begun), len(set(ends)), len(ends)) for begun, ends in of.values()])
        found.append(Lineages(setup, *counts.mean(axis=0).tolist()))
    return found
