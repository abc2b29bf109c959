"""Images that a strategy left without a score, so that the verifier did not choose among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lotts_search.curves.trials import IMAGES

if TYPE_CHECKING:
    import pyarrow as pa


def unscored(table: pa.Table) -> dict[str, float]:
    """Return by label the share, above 0 to 1, of the complete images of a trial table that their strategy left unscored.
    Images whose score failed or was cancelled do not count, nor do tables without these columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not {"status", "trial_id", "parent_id"} <= set(table.column_names):
        return {}
    kind = table.column("kind")
    made = table.filter(pc.and_(pc.is_in(kind, pa.array(IMAGES)), pc.is_valid(table.column("image"))))
    tried = table.filter(pc.and_(pc.equal(kind, "score"), pc.not_equal(table.column("status"), "done")))
    lost = set(zip(tried.column("search_id").to_pylist(), tried.column("parent_id").to_pylist(), strict=True))
    totals: dict[str, list[int]] = {}
    names = ("label", "search_id", "trial_id", "score")
    for label, search, trial, score in zip(*(made.column(name).to_pylist() for name in names), strict=True):
        of = totals.setdefault(label, [0, 0])
        of[0] += score is None and (search, trial) not in lost
        of[1] += 1
    return {label: left / every for label, (left, every) in totals.items() if left}
