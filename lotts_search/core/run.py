"""The life of one search: check its arguments, run its strategy in virtual time, say why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from lotts_search.core.book import Book
from lotts_search.core.budget import Budget, Costs, count_images
from lotts_search.core.result import Status
from lotts_search.core.strategy import Strategy
from lotts_search.core.trial_table import TrialRecord
from lotts_search.core.virtual_time import Scheduler
from lotts_search.errors import BadInput, BudgetTooSmall
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Bytes


def check(strategy: Strategy, name: str, budget: Budget, costs: Costs, info: ModelInfo, image: Bytes | None) -> None:
    """Refuse what can be known to be wrong before any work.

    Raises:
        BadInput: the strategy cannot start from the given image, or the image does not fit the model.
        BudgetTooSmall: the budget does not pay for the first image.
    """
    if image is not None:
        if not strategy.takes_image:
            raise BadInput(f"strategy {name!r} cannot start from an image")
        if image.shape != (*info.image, 3) or image.dtype != np.uint8:
            height, width = info.image
            raise BadInput(
                f"the image must be uint8 [{height}, {width}, 3] for {info.name}, not {image.dtype} {list(image.shape)}"
            )
    least = strategy.least(costs, image is not None)
    if not budget.pays(least):
        what = "one sample" if image is None else "one refinement"
        raise BudgetTooSmall(
            f"a budget of {budget} does not pay for {what}, which costs {least.nfe:g} NFE and {count_images(least.images)}"
        )


async def run(scheduler: Scheduler, book: Book, main: Coroutine[Any, Any, None], budget: Budget) -> Status:
    """Run a strategy to its end, enter all that is finished by then into the book, and return why it ended."""

    def reached() -> bool:
        return budget.target is not None and book.best is not None and (book.best.score or 0.0) >= budget.target

    try:
        ending, _ = await scheduler.run(
            main, seconds=budget.seconds, enough=lambda: book.best is not None, reached=reached
        )
    except asyncio.CancelledError:
        await scheduler.abandon("the search was interrupted", keep=True)
        return "interrupted"
    except BaseException:
        await scheduler.abandon("the search broke", keep=False)
        raise
    # What else happens to be finished when the target is reached depends on the machine: it does not count.
    await scheduler.abandon(f"stopped: {ending}", keep=ending != "target")
    return ending


def why_no_image(trials: Sequence[TrialRecord]) -> str:
    """Return the message of a search that ended without an image."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if not failed:
        return "no image was finished: the strategy made none"
    return f"no image was finished: {len(failed)} of {len(trials)} trials failed, the first because: {failed[0].error}"
