"""The life of one search: check its arguments, run its strategy in virtual time, say why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from lotts_search.core.book import Book
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Costs
from lotts_search.core.failures import Failures
from lotts_search.core.localized import Localized
from lotts_search.core.result import Status
from lotts_search.core.strategy import Strategy
from lotts_search.core.virtual_time import Scheduler
from lotts_search.errors import BadInput, BudgetTooSmall, check_text, notice
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Bytes, Check, Sampling, Usage

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


def check_start(strategy: Strategy, name: str, image: bool) -> None:
    """Raise BadInput if a search starts from a given image and the strategy cannot."""
    if image and not strategy.takes_image:
        raise BadInput(f"strategy {name!r} cannot start from an image")


def check(strategy: Strategy, name: str, budget: Budget, costs: Costs, info: ModelInfo, image: Bytes | None) -> None:
    """Refuse what can be known to be wrong before any work.

    Raises:
        BadInput: the strategy cannot start from the given image, the image does not fit the model, or the strategy's
            settings cannot work.
        BudgetTooSmall: the budget does not pay for the first image.
    """
    check_start(strategy, name, image is not None)
    if image is not None and (image.shape != (*info.image, 3) or image.dtype != np.uint8):
        height, width = info.image
        raise BadInput(
            f"the image must be uint8 [{height}, {width}, 3] for {info.name}, not {image.dtype} {list(image.shape)}"
        )
    strategy.check_choices()
    strategy.check(costs, info)
    if budget.flops is not None and not costs.prices.row:
        raise BadInput(f"{info.name} does not say how many FLOPs a network row takes: give the budget in NFE or images")
    check_budget(strategy, budget, costs, image is not None)


def check_budget(strategy: Strategy, budget: Budget, costs: Costs, image: bool) -> None:
    """Refuse a budget that is too small or too large, at the costs that are known.

    Raises:
        BadInput, BudgetTooSmall: see above.
    """
    count = budget.count(costs.sample)
    if count is not None and count > MOST_IMAGES:
        raise BadInput(
            f"a budget of {budget} pays for {count:.3g} images; a search keeps all of its images: at most {MOST_IMAGES}"
        )
    least = strategy.least(costs, image)
    if not budget.pays(least):
        what = "one refinement" if image else "one sample"
        raise BudgetTooSmall(f"a budget of {budget} does not pay for {what}, which costs {budget.words(least)}")


async def probe(
    pool: Pool, verifier: str, sampling: Sampling, strategy: Strategy, costs: Costs, budget: Budget, image: bool
) -> Costs:
    """Let the pool refuse or report what it knows to be wrong before the first trial: a verifier that cannot score
    images of the model's size, a mask source that does not fit the model, a prompt that is cut.

    Returns:
        The costs with all that the pool knows of them: what a score of the verifier takes, and what a localization takes
        beside its network rows.

    Raises:
        BadInput, Failure: the search cannot work.
        BudgetTooSmall: the budget does not pay for the first image.
    """
    if isinstance(pool, Checking):
        works = [
            Check(replace(sampling, prompt=prompt), verifier) for prompt in strategy.image_prompts(sampling.prompt)
        ]
        # A strategy of another kind may localize with its own `blank`: then a blank map is reported, not refused.
        blank = strategy.blank if isinstance(strategy, Localized) else "whole"
        works += [Check(sampling, verifier, source, blank) for source in strategy.mask_sources(costs)]
        beside: dict[str, Usage] = {}
        for work, answers in [(work, pool.check(work)) for work in works]:
            # Several searches may wait for one answer: a search that is cancelled must not cancel it.
            results = [await asyncio.shield(asyncio.wrap_future(answer)) for answer in answers]
            for note in (result.note for result in results if result.note):
                notice(note)
            if results and costs.prices.rows_per_step is None:
                costs = replace(costs, prices=replace(costs.prices, score=results[0].usage.flops))
            if results and work.source is not None:
                beside[repr(work.source)] = results[-1].usage
        costs = replace(costs, beside=beside)
    if budget.flops is not None:
        check_budget(strategy, budget, costs, image)
        if not costs.prices.score:
            notice(f"verifier {verifier} does not say how many FLOPs a score takes: its scores count as 0")
    return costs


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
