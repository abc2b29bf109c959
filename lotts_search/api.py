"""``lotts_search.search(prompt, …)``: one search from a prompt to an image."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from lotts_search import registry
from lotts_search.core.book import Book, Labels
from lotts_search.core.budget import Budget, Costs, Ledger, count_images
from lotts_search.core.calls import Calls
from lotts_search.core.handle import Search
from lotts_search.core.journal import Journal
from lotts_search.core.result import Interrupted, SearchFailed, SearchResult, Status
from lotts_search.core.strategy import Strategy
from lotts_search.core.trial_table import TrialRecord, image_hash
from lotts_search.core.virtual_time import Scheduler
from lotts_search.errors import BadInput, BudgetTooSmall
from lotts_search.work.masks import MaskSource, mask_to_dict
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes, Sampling, Solver

P = ParamSpec("P")
DEFAULT_IMAGES = 9
"""Images of a search that is given no budget at all: the paper's N."""


async def asearch(
    prompt: str,
    *,
    model: str = "shapes-sd",
    strategy: str | Strategy = "lotts",
    verifier: str = "shapes-reward",
    rewriter: str = "shapes-rewriter",
    nfe: float | None = None,
    seconds: float | None = None,
    images: int | None = None,
    target: float | None = None,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    pool: Pool | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    eta: float | None = None,
    solver: Solver | None = None,
    image: Bytes | None = None,
    workers: int = 8,
    on_trial: Callable[[TrialRecord], None] | None = None,
    run_id: str = "",
    prompt_id: str | None = None,
    label: str = "",
    search_id: str | None = None,
    journal: Path | str | Journal | None = None,
) -> SearchResult:
    """Search for an image of ``prompt``. Many searches may run at once on one pool.

    Args:
        prompt: what to draw.
        model: a registered name, or a diffusers folder or hub id; not used where there is a ``pool``.
        strategy: a registered name, ``package.module:Class``, or a strategy.
        verifier: registered name of the verifier that guides the search; it must be in the ``pool``.
        rewriter: registered name of what revises prompts, for strategies that ask for it; it must be in the ``pool``.
        nfe, images, seconds, target: the budget, see :class:`~lotts_search.core.budget.Budget`; together any of them.
            Without ``nfe``, ``images`` and ``seconds`` it is 9 images.
        seed: decides all noise and all choices: equal arguments give equal searches.
        settings: the strategy's settings, values or text as on the command line.
        pool: where the work runs; None = a :class:`~lotts_search.engine.local_pool.LocalPool` for this search alone.
        steps, guidance, eta, solver: other than the model's own (see :class:`~lotts_search.work.requests.Sampling`). With
            another solver than the model's, eta is 1 unless given.
        negative: negative prompt.
        image: an image [h, w, 3] uint8 of the model's size to begin from, for strategies that can.
        workers: virtual workers, see :class:`~lotts_search.core.virtual_time.Scheduler`.
        on_trial: called with each finished trial, in virtual order.
        run_id, prompt_id, label, search_id: for the trial table; by default the prompt's hash, the strategy's name, and
            the hash of all that decides the search.
        journal: file that keeps what finished trials returned. Where it is there, the search is replayed: trials that
            are in it cost nothing now, and the others run. Budgets in seconds begin anew. It is not deleted.

    Raises:
        BudgetTooSmall: the budget does not pay for the first image; nothing was run.
        BadInput: something given is wrong, e.g. the journal is that of another search.
        SearchFailed: no image was finished.
        Interrupted: the search was cancelled. Both carry what was computed.
    """
    if not prompt.strip():
        raise BadInput("the prompt is empty")
    if workers < 1:
        raise BadInput(f"workers must be 1 or more, not {workers}")
    if isinstance(strategy, Strategy):
        if settings:
            raise BadInput("settings go with a strategy's name; this strategy has its own")
        name, chosen = registry.name_of(strategy), strategy
    else:
        name, chosen = strategy, registry.make_strategy(strategy, settings or {})
    if nfe is None and images is None and seconds is None:
        images = DEFAULT_IMAGES
    budget = Budget(nfe, images, seconds, target)
    given = image_hash(image) if image is not None else None
    if not chosen.rewrites:
        rewriter = ""
    with _pool(pool, model, verifier, rewriter) as where, ExitStack() as opened:
        sampling = Sampling.of(
            where.info, prompt, steps=steps, guidance=guidance, negative=negative, eta=eta, solver=solver
        )
        costs = Costs.of(where.info, sampling)
        _check(chosen, name, budget, costs, where.info, image)
        arguments = plain_settings(chosen)
        which = (where.info, name, arguments, verifier, seed, sampling, budget, workers, given)
        search_id = search_id or _hash(*which, *([rewriter] if rewriter else []))
        labels = Labels(
            run_id, search_id, prompt_id or _hash(prompt), prompt, where.info.name, name, arguments, seed, label or name,
            nfe, images, sampling.steps,
        )  # fmt: skip
        if journal is not None and not isinstance(journal, Journal):
            journal = opened.enter_context(Journal(journal, search_id))
        book = Book(labels, Ledger(limits=budget, costs=costs), on_trial)
        scheduler = Scheduler(workers)
        handle = Search(Calls(where, scheduler, book, verifier, prompt, journal, rewriter), book, sampling, seed, image)
        status = await _run(scheduler, book, chosen.run(handle), budget)
    result = SearchResult(
        prompt=prompt,
        model=where.info,
        strategy=name,
        settings=chosen.settings(),
        verifier=verifier,
        seed=seed,
        sampling=sampling,
        budget=budget,
        status=status,
        ledger=book.ledger,
        trials=book.trials,
        images=book.images,
        located=book.located,
        best=book.find(book.best),
        best_refined=book.find(book.best_refined),
        rewriter=rewriter,
    )
    if status == "interrupted":
        raise Interrupted(result)
    if result.best is None:
        raise SearchFailed(_why(result.trials), result)
    return result


def _blocking(function: Callable[P, Coroutine[Any, Any, SearchResult]]) -> Callable[P, SearchResult]:
    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> SearchResult:
        async def main() -> SearchResult:
            try:
                return await function(*arguments, **options)
            except Interrupted as interrupted:
                return interrupted.result

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(main())
        # A notebook has a running loop already: use one of another thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(main())).result()

    return run


search = _blocking(asearch)
"""The same as :func:`asearch` for programs without asyncio. Ctrl-C, and nothing else, returns what was computed until
then, with the status ``interrupted``; there may be no image yet."""


async def _run(scheduler: Scheduler, book: Book, main: Coroutine[Any, Any, None], budget: Budget) -> Status:
    """Run a strategy to its end, and take what is finished by then into the book."""

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
    # What else happened to be finished when the target was reached depends on the machine: it does not count.
    await scheduler.abandon(f"stopped: {ending}", keep=ending != "target")
    return ending


@contextmanager
def _pool(pool: Pool | None, model: str, verifier: str, rewriter: str) -> Iterator[Pool]:
    if pool is not None:
        yield pool
        return
    from lotts_search.engine.local_pool import LocalPool

    rewriters = {rewriter: registry.load_rewriter(rewriter)} if rewriter else {}
    verifiers = {verifier: registry.load_verifier(verifier)}
    with LocalPool(registry.load_backbone(model), verifiers, rewriters=rewriters) as made:
        yield made


def _check(strategy: Strategy, name: str, budget: Budget, costs: Costs, info: ModelInfo, image: Bytes | None) -> None:
    """What can be known to be wrong before any work."""
    if image is not None:
        if not strategy.takes_image:
            raise BadInput(f"strategy {name!r} cannot begin from an image")
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


def _why(trials: list[TrialRecord]) -> str:
    failed = [trial for trial in trials if trial.status == "failed"]
    if not failed:
        return "no image was finished: the strategy made none"
    return f"no image was finished: {len(failed)} of {len(trials)} trials failed, the first because: {failed[0].error}"


def plain_settings(strategy: Strategy) -> str:
    """All settings of a strategy as JSON, as in the column ``strategy_args``."""
    return json.dumps(strategy.settings(), default=_plain, sort_keys=True)


def _plain(value: object) -> object:
    return mask_to_dict(value) if isinstance(value, MaskSource) else str(value)


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()
