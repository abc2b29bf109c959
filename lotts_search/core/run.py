"""The life of one search: check its arguments, run its strategy in virtual time, say why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from lotts_search.core.book import Book
from lotts_search.core.budget import Budget, Costs, count_images
from lotts_search.core.failures import Failures
from lotts_search.core.localized import Localized
from lotts_search.core.result import Status
from lotts_search.core.strategy import Strategy
from lotts_search.core.virtual_time import Scheduler
from lotts_search.errors import BadInput, BudgetTooSmall, check_text, notice
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Bytes, Check, Sampling

MOST_IMAGES = 1_000_000
"""Images of one search. All of its trials are begun at once, and all of its images are kept."""


def check_arguments(prompt: str, negative: str, seed: int, workers: int) -> None:
    """Refuse arguments of a search that no model can work with.

    Raises:
        BadInput: an empty prompt, a text that cannot be stored, or a number out of its range.
    """
    if not prompt.strip():
        raise BadInput("the prompt is empty")
    check_text(prompt, "prompt")
    check_text(negative, "negative")
    for name, value, low, high in (("seed", seed, -(2**63), 2**63 - 1), ("workers", workers, 1, 2**31 - 1)):
        if not isinstance(value, int | np.integer) or not low <= value <= high:
            raise BadInput(f"{name} must be a whole number within {low}..{high}, not {value!r}")


def check(strategy: Strategy, name: str, budget: Budget, costs: Costs, info: ModelInfo, image: Bytes | None) -> None:
    """Refuse what can be known to be wrong before any work.

    Raises:
        BadInput: the strategy cannot start from the given image, the image does not fit the model, or the strategy's
            settings cannot work.
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
    strategy.check_choices()
    strategy.check(costs, info)
    count = budget.count(costs.sample)
    if count is not None and count > MOST_IMAGES:
        raise BadInput(
            f"a budget of {budget} pays for {count:.3g} images; a search keeps all of its images: at most {MOST_IMAGES}"
        )
    least = strategy.least(costs, image is not None)
    if not budget.pays(least):
        what = "one sample" if image is None else "one refinement"
        raise BudgetTooSmall(
            f"a budget of {budget} does not pay for {what}, which costs {least.nfe:g} NFE and {count_images(least.images)}"
        )


async def probe(pool: Pool, verifier: str, sampling: Sampling, strategy: Strategy, costs: Costs) -> None:
    """Let the pool refuse or report what it knows to be wrong before the first trial: a verifier that cannot score
    images of the model's size, a mask source that does not fit the model, a prompt that is cut.

    Raises:
        BadInput, Failure: the search cannot work.
    """
    if not isinstance(pool, Checking):
        return
    works = [Check(replace(sampling, prompt=prompt), verifier) for prompt in strategy.image_prompts(sampling.prompt)]
    # A strategy of another kind may localize with its own `blank`: then a blank map is reported, not refused.
    blank = strategy.blank if isinstance(strategy, Localized) else "whole"
    works += [Check(sampling, verifier, source, blank) for source in strategy.mask_sources(costs)]
    for answer in [answer for work in works for answer in pool.check(work)]:
        # Several searches may wait for one answer: a search that is cancelled must not cancel it.
        result = await asyncio.shield(asyncio.wrap_future(answer))
        if result.note:
            notice(result.note)


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


def why_no_image(failures: Failures) -> str:
    """Return the message of a search that ended without an image."""
    return f"no image was finished: {failures if failures.count else 'the strategy made none'}"
