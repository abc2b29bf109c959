"""The failed trials of a search or of a study, in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lotts_search.core.trial_table import TrialRecord

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Failures:
    """How many trials failed. ``str()`` also says of which kinds they are, and why the first one failed.

    Attributes:
        count: number of failed trials.
        trials: number of all trials, failed or not.
        kinds: number of failed trials of each kind, the most frequent kind first.
        error: first line of the first failed trial's error; "" where none failed.
    """

    count: int = 0
    trials: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of_records(cls, trials: Sequence[TrialRecord]) -> Failures:
        """Count the failed trials of a search."""
        return cls._of(len(trials), [(trial.kind, trial.error) for trial in trials if trial.status == "failed"])

    @classmethod
    def of_table(cls, table: pa.Table | None) -> Failures:
        """Count the failed trials in a trial table; None is a table without rows."""
        import pyarrow.compute as pc

        if table is None or "status" not in table.column_names:
            return cls()
        failed = table.filter(pc.equal(table.column("status"), "failed")).select(["kind", "error"])
        return cls._of(len(table), [(row["kind"], row["error"] or "") for row in failed.to_pylist()])

    @classmethod
    def _of(cls, trials: int, failed: Sequence[tuple[str, str]]) -> Failures:
        error = failed[0][1].strip().partition("\n")[0] if failed else ""
        return cls(len(failed), trials, dict(Counter(kind for kind, _ in failed).most_common()), error)

    def __str__(self) -> str:
        if not self.count:
            return f"none of {self.trials} trials failed"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return f"{self.count} of {self.trials} trials failed ({kinds}), the first because: {self.error}"
