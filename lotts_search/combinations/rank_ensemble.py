"""Several verifiers on one scale: percentiles among the images of an earlier study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lotts_search.combinations.parts import call_size, filled, flops_of, load_parts
from lotts_search.errors import BadInput
from lotts_search.registry import check_verifier
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.requests import Bytes, Floats


class RankEnsemble:
    """``rank-ensemble``: the mean percentile, 0..1, of several verifiers' scores among the scores of a fixed reference.

    Ma et al. 2025 (arXiv 2501.09732) rank the candidates of one search among each other. Here the reference is the trial table of an
    earlier study, because a score must depend on no other image of its call and must keep its value during a search. A
    score beyond all of the reference is 0 or 1, so that part no longer tells such images apart.
    """

    name = "rank-ensemble"
    requirements: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Verifier], known: Sequence[npt.NDArray[np.float64]]):
        self.parts, self.known = parts, [np.sort(values) for values in known]
        self.batch, self.pad, self.flops = call_size(parts), filled(parts), flops_of(parts)

    @classmethod
    def load(cls, *, of: tuple[str, ...], reference: str) -> RankEnsemble:
        """Load the verifier and its parts.

        Args:
            of: the verifiers, each a name or package.module:Class with its own settings.
            reference: trial table (trials.parquet) of a study whose metrics were the parts; a part without a column
                metric_NAME is the one that guided the study, in the column score.

        Raises:
            BadInput: a name or a setting is wrong, or the table lacks a part's scores.
            Failure: a part cannot be loaded.
        """
        for text in of:
            check_verifier(text)
        known = _read(Path(reference), [VerifierSpec.parse(text).column for text in of])
        return cls(load_parts(of, "rank-ensemble"), known)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] in 0..1 of uint8 images [B, h, w, 3] for ``prompts`` [B]; ties count half."""
        total = np.zeros(len(images))
        for part, known in zip(self.parts, self.known, strict=True):
            # In float32, in which the part gave the scores of the reference.
            scores = np.asarray(part.score(prompts, images), dtype=np.float32).astype(np.float64)
            below, upto = (np.searchsorted(known, scores, side) for side in ("left", "right"))
            total += (below + upto) / (2 * len(known))
        return (total / len(self.parts)).astype(np.float32)


def _read(table: Path, names: Sequence[str]) -> list[npt.NDArray[np.float64]]:
    """Return the scores of each part."""
    import pyarrow.parquet as pq

    try:
        held = pq.read_schema(table).names
        columns = [name if (name := f"metric_{part}") in held else "score" for part in names]
        if columns.count("score") > 1 or not set(columns) <= set(held):
            missing = [f"metric_{part}" for part, column in zip(names, columns, strict=True) if column == "score"]
            raise BadInput(
                f"the reference {table} lacks the columns {', '.join(missing)}; only one part may be the verifier that "
                "guided the study, in the column score"
            )
        read = pq.read_table(table, columns=list(dict.fromkeys(columns)))
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"the reference {table} is not a trial table that can be read: {error}") from error
    found = [read.column(column).drop_null().to_numpy().astype(np.float64) for column in columns]
    for column, values in zip(columns, found, strict=True):
        if not (len(values) and np.isfinite(values).all()):
            raise BadInput(f"the column {column} of the reference {table} has no scores, or some that are not finite")
    return found
