"""What an answer and a stream tell of a search that is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lotts_search.core.budget import Ledger
from lotts_search.serve.answers import Usage
from lotts_search.serve.asked import Asked
from lotts_search.serve.service import Outcome


def found(wanted: Asked, number: int, outcome: Outcome) -> dict[str, Any]:
    """Return seed, score, recipe and status of search ``number`` of a request."""
    recipe = wanted.of(number)
    return {
        "seed": recipe.seed,
        "score": outcome.result.score,
        "recipe": recipe.line(),
        "status": outcome.status,
    }


def usage(ledgers: Sequence[Ledger]) -> Usage:
    """Return what searches used together."""
    names = ("nfe", "flops", "images", "scores", "device_s", "nfe_wasted")
    return Usage(**{name: sum(getattr(ledger, name) for ledger in ledgers) for name in names})
