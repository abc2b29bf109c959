"""``lotts_search.search(prompt, …)``: one search from a prompt to an image."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lotts_search import fingerprint, registry
from lotts_search.core.book import Book, Labels
from lotts_search.core.budget import Budget, Ledger
from lotts_search.core.calls import Calls
from lotts_search.core.costs import Costs
from lotts_search.core.events import Event, SearchEnded, SearchStarted
from lotts_search.core.handle import Search
from lotts_search.core.journal import Journal
from lotts_search.core.previews import Previewing
from lotts_search.core.result import Interrupted, SearchFailed, SearchResult
from lotts_search.core.run import check, check_arguments, probe, run, why_no_image
from lotts_search.core.strategy import Strategy
from lotts_search.core.trial_table import image_hash
from lotts_search.core.virtual_time import Scheduler
from lotts_search.errors import BadInput, notice
from lotts_search.shapes.world.vocabulary import report_unknown_words
from lotts_search.work.masks import MaskSource, mask_to_dict
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.prices import published
from lotts_search.work.requests import Bytes, Sampling, Solver

P = ParamSpec("P")
T = TypeVar("T")
DEFAULT_IMAGES = 9
"""Images of a search without a budget: N in the LoTTS paper."""


async def asearch(
    prompt: str,
    *,
    model: str = "shapes-sd",
    strategy: str | Strategy | None = None,
    verifier: str | None = None,
    rewriter: str | None = None,
    nfe: float | None = None,
    seconds: float | None = None,
    images: int | None = None,
    flops: float | None = None,
    target: float | None = None,
    as_: str | None = None,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    pool: Pool | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    eta: float | None = None,
    solver: Solver | None = None,
    image: Bytes | None = None,
    restart: bool = False,
    workers: int = 8,
    on_event: Callable[[Event], object] | None = None,
    preview: bool = False,
    run_id: str = "",
    prompt_id: str | None = None,
    label: str = "",
    search_id: str | None = None,
    journal: Path | str | Journal | None = None,
) -> SearchResult:
    """Search for an image of ``prompt``. Many searches may run at once on one pool.

    Args:
        prompt: what to draw.
        model: a registered name, a diffusers folder or a Hub id; not used with a ``pool``.
        strategy: a registered name, ``package.module:Class``, or a strategy object; None = as
            :func:`~lotts_search.registry.default_strategy` chooses for the verifier.
        verifier: the verifier that guides the search, as for :func:`~lotts_search.registry.load_verifier`; a ``pool``
            must have it under this text. None = the pool's only one, or without a pool the one that the model names in its
            ``lotts.json``, see :func:`~lotts_search.registry.default_verifier`.
        rewriter: registered name of the rewriter, for strategies that revise prompts; a ``pool`` must have it. None = as for
            the verifier.
        nfe, images, flops, seconds, target: the budget, in any combination, see :class:`~lotts_search.core.budget.Budget`.
            Without ``nfe``, ``images``, ``flops`` and ``seconds`` it is 9 images.
        as_: count FLOPs as on a published model, see :data:`~lotts_search.work.prices.PUBLISHED`: ``sd21``, ``sdxl`` or
            ``flux``, or with ``+tiny`` by its tiny decoder; None = as on the model itself.
        seed: decides all noise and all choices: equal arguments give equal searches.
        settings: the strategy's settings, as values or as text like on the command line.
        pool: where the work runs; None = a :class:`~lotts_search.engine.local_pool.LocalPool` for this search only.
        steps, guidance, eta, solver: replace the model's defaults, see :class:`~lotts_search.work.requests.Sampling`. With
            a solver other than the model's, eta defaults to 1.
        negative: negative prompt.
        image: an image [h, w, 3] uint8 of the model's size to start from, for strategies that accept one.
        restart: let images from pure noise take its place, for strategies that choose between them and refinements.
        workers: number of virtual workers, see :class:`~lotts_search.core.virtual_time.Scheduler`.
        on_event: called with what happens, see :mod:`lotts_search.core.events`. An exception of it ends the search.
        preview: let the events include an unfinished image; it costs up to one decoding.
        run_id, prompt_id, label, search_id: columns of the trial table. The last three default to the hash of the prompt,
            the strategy's name, and the hash of everything that decides the search.
        journal: file that records what finished trials return. If it exists, the search is replayed: recorded trials take
            no time, the others run. A budget in seconds starts again. The file is not deleted. In a journal that the caller
            has opened, large images and states are left: the result's ``images`` reads them from there while it is open.

    Returns:
        The result. Trials that failed, e.g. by an exception in a plug-in, ended their branch and not the search: its
        ``failures`` names them.

    Raises:
        BudgetTooSmall: the budget does not pay for the first image; nothing was run.
        BadInput: an argument is wrong, e.g. the journal is that of another search.
        SearchFailed: no image was finished; the error carries the result.
        Interrupted: the search was cancelled; the error carries the result so far.
    """
    check_arguments(prompt, negative, seed, workers)
    seed = int(seed)  # one of numpy is not written to JSON
    if verifier is not None and not isinstance(verifier, str):
        raise BadInput(
            f"verifier must be a text, a name or package.module:Class, not {verifier!r}; an object goes to a pool, "
            'as in pool=LocalPool(backbone, {"mine": object})'
        )
    verifier = verifier or (registry.default_verifier(model) if pool is None else _only(pool.verifiers, "verifier"))
    if isinstance(strategy, Strategy):
        if settings:
            raise BadInput("settings apply to a strategy given by its name; this strategy has its own")
        name, chosen = registry.name_of(strategy), strategy
    else:
        name = strategy or registry.default_strategy(verifier)
        chosen = registry.make_strategy(name, settings or {})
    if nfe is None and images is None and flops is None and seconds is None:
        images = DEFAULT_IMAGES
    budget = Budget(nfe, images, seconds, target, flops)
    prices = None if as_ is None else published(as_)
    registry.check_judging(verifier, [prompt], [(model, {})] if pool is None else ())
    if not chosen.rewrites:
        rewriter = ""
    elif rewriter is None:
        rewriter = registry.default_rewriter(model) if pool is None else _only(pool.rewriters, "rewriter")
    if pool is None:
        report_unknown_words(model, [prompt])
    given = None if image is None else (image_hash(image), "restart") if restart else image_hash(image)
    with _pool(pool, model, verifier, rewriter) as where, ExitStack() as opened:
        sampling = Sampling.of(
            where.info, prompt, steps=steps, guidance=guidance, negative=negative, eta=eta, solver=solver
        )
        costs = Costs.of(where.info, sampling, image=image is not None, prices=prices)
        check(chosen, name, budget, costs, where.info, image)
        costs = await probe(where, verifier, sampling, chosen, costs, budget, image is not None)
        arguments = plain_settings(chosen)
        which = (where.info, name, arguments, verifier, seed, sampling, budget, workers, given)
        flops_by = [("flops", budget.flops, as_)] if budget.flops is not None or as_ is not None else []
        search_id = search_id or _hash(fingerprint.FORMAT, *which, *flops_by, *([rewriter] if rewriter else []))
        labels = Labels(
            run_id, search_id, prompt_id or _hash(prompt), prompt, where.info.name, name, arguments, seed, label or name,
            nfe, images, budget.flops, sampling.steps,
        )  # fmt: skip
        lasting = journal if isinstance(journal, Journal) else None
        if journal is not None and not isinstance(journal, Journal):
            decided = _contents(where.info, chosen, verifier, rewriter)
            journal = opened.enter_context(Journal(journal, search_id, contents=fingerprint.combined(decided)))
        book = Book(labels, Ledger(limits=budget, costs=costs), on_event)
        if lasting is not None:
            book.leave_in(lasting)
        scheduler = Scheduler(workers)
        works = Previewing(where, on_event) if preview and on_event is not None else where
        calls = Calls(works, scheduler, book, verifier, prompt, journal, rewriter)
        handle = Search(calls, book, sampling, seed, where.info.latent, image, restart)
        if on_event is not None:
            on_event(SearchStarted(search_id, budget, sampling))
        status = await run(scheduler, book, chosen.run(handle), budget)
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
        priced_as=as_,
    )
    if on_event is not None:
        on_event(SearchEnded(result))
    if status == "interrupted":
        raise Interrupted(result)
    if result.best is None:
        raise SearchFailed(why_no_image(result.failures), result)
    return result


async def stream(prompt: str, **options: Any) -> AsyncIterator[Event]:
    """Iterate over the events of a search, of which the last, :class:`~lotts_search.core.events.SearchEnded`, has its result.
    Closing the iterator cancels the search.

    Args:
        options: those of :func:`asearch` but ``on_event``.

    Raises:
        LottsError: as :func:`asearch`.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    search = asyncio.ensure_future(asearch(prompt, **options, on_event=events.put_nowait))
    search.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        search.result()
    finally:
        search.cancel()
        await asyncio.wait({search})


def blocking(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, in a notebook too, where an event loop already runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(main())).result()


def _blocking(function: Callable[P, Coroutine[Any, Any, SearchResult]]) -> Callable[P, SearchResult]:
    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> SearchResult:
        async def main() -> SearchResult:
            try:
                return await function(*arguments, **options)
            except Interrupted as interrupted:
                return interrupted.result

        result = blocking(main)
        if result.failures.count:
            notice(str(result.failures))
        return result

    return called


search = _blocking(asearch)
"""The same as :func:`asearch`, for programs without asyncio. On Ctrl-C it returns the result so far, with the status
``interrupted``, which may have no image yet. Failed trials are reported by a :class:`~lotts_search.errors.Notice`."""


def _only(names: Sequence[str], kind: str) -> str:
    """Return the verifier or rewriter of a pool that has one; raise BadInput for others."""
    if not names:
        raise BadInput(f"this pool has no {kind}")
    if len(names) > 1:
        raise BadInput(f"this pool has several {kind}s, choose one with {kind}=…: {', '.join(names)}")
    return names[0]


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


def _contents(info: ModelInfo, strategy: Strategy, verifier: str, rewriter: str) -> list[object]:
    """Return the fingerprints of all that decides a search beside its arguments."""
    models, rewriters = registry.models(), registry.rewriters()
    folder = Path(models[info.name].target) if info.name in models else None
    options = json.loads(info.loaded or "{}")
    return [
        fingerprint.of_model(info.name, options.get("revision"), folder),
        fingerprint.of_options(options),
        fingerprint.of_settings(strategy),
        registry.verifier_contents(verifier),
        fingerprint.of_named(rewriters[rewriter].target if rewriter in rewriters else rewriter) if rewriter else "",
    ]


def plain_settings(strategy: Strategy) -> str:
    """Return all settings of a strategy as JSON, as in the column ``strategy_args``."""
    return json.dumps(strategy.settings(), default=_plain, sort_keys=True)


def _plain(value: object) -> object:
    return mask_to_dict(value) if isinstance(value, MaskSource) else str(value)


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()
