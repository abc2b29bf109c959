"""From a call of the search handle to its rows: reserve its cost, begin the real work, enter the outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TypeAlias, TypeVar

from lotts_search.core.book import Book
from lotts_search.core.budget import Cost
from lotts_search.core.candidate import Candidate, Mask, trial_key
from lotts_search.core.journal import Journal
from lotts_search.core.virtual_time import Scheduler, Settle, Trial
from lotts_search.errors import BudgetExhausted, Failure, LottsError, PoolClosed
from lotts_search.work.pool import Pool
from lotts_search.work.requests import (
    Bytes,
    Encode,
    Generate,
    Lineage,
    Locate,
    Predict,
    Result,
    Rewrite,
    Sampling,
    Score,
    Segment,
    Usage,
    Work,
)

T = TypeVar("T")
Next: TypeAlias = Callable[[Bytes], Score | Rewrite]
"""What is asked for as soon as there is an image."""


@dataclass(frozen=True)
class Making:
    """What is known of a candidate before it is made."""

    kind: str
    lineage: Lineage
    start: int
    stop: int
    sampling: Sampling
    cost: Cost
    parent: Candidate | None = None
    mask_ratio: float | None = None

    @property
    def complete(self) -> bool:
        return self.stop == self.sampling.steps

    @property
    def parent_key(self) -> str | None:
        return self.parent.key if self.parent is not None else None


class Calls:
    """Carries out the calls of one search.

    Args:
        verifier: name of the guiding verifier; images are scored against ``prompt``.
        rewriter: name of what revises prompts.
        journal: answers what it knows in the pool's place, and takes in what the pool returns.
    """

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        book: Book,
        verifier: str,
        prompt: str,
        journal: Journal | None = None,
        rewriter: str = "",
    ):
        self._pool, self._scheduler, self._book = pool, scheduler, book
        self._verifier, self._prompt, self._journal, self._rewriter = verifier, prompt, journal, rewriter
        self._occurrences: Counter[str] = Counter()
        self._judged: dict[tuple[str, bool], Trial[float]] = {}
        self._looks: dict[tuple[str, bool], str] = {}

    def make(self, work: Segment | Encode, making: Making, arguments: tuple[object, ...]) -> Trial[Candidate]:
        """A candidate; a complete one is scored at once, by a trial of its own."""
        key, parent = self._key(making.parent_key, making.kind, arguments), making.parent_key
        score_key = self._key(key, "score", ())

        def settle(results: list[Result], error: LottsError | None) -> Candidate:
            columns = {
                "lineage": making.lineage,
                "start": making.start,
                "stop": making.stop,
                "mask_ratio": making.mask_ratio,
            }
            if not results:
                assert error is not None
                self._book.broken(key, parent, making.kind, making.cost, error, **columns)
                raise error
            made, scored = results[0], results[1] if len(results) > 1 else None
            assert made.state is not None
            candidate = Candidate(
                key,
                making.kind,
                making.stop,
                making.sampling.steps,
                making.lineage,
                making.cost.nfe + (making.parent.nfe if making.parent is not None else 0.0),
                making.parent,
                making.kind == "refine" or (making.parent is not None and making.parent.refined),
                scored.score if scored is not None else None,
            )
            self._book.keep(candidate, made.state, making.sampling)
            self._book.row(key, parent, making.kind, made, score=candidate.score, **columns)
            if scored is not None:
                self._book.row(score_key, key, "score", scored, lineage=making.lineage, score=scored.score)
            if error is not None:
                self._book.broken(score_key, key, "score", Cost(), error, lineage=making.lineage)
                raise error
            return candidate

        return self._call(key, making.cost, work, settle, self._score if making.complete else None)

    def locate(self, work: Locate, candidate: Candidate, cost: Cost) -> Trial[Mask]:
        """A mask of a complete candidate."""
        key = self._key(candidate.key, "localize", (work.source,))

        def settle(results: list[Result], error: LottsError | None) -> Mask:
            if error is not None:
                self._book.broken(key, candidate.key, "localize", cost, error, lineage=candidate.lineage)
                raise error
            located = results[0].located
            assert located is not None
            mask = Mask(key, work.source, float(located.mask.mean()), located.confidence)
            self._book.located[key] = located
            self._book.row(key, candidate.key, "localize", results[0], lineage=candidate.lineage, mask_ratio=mask.ratio)
            return mask

        return self._call(key, cost, work, settle)

    def judge(self, candidate: Candidate, last: bool = False) -> Trial[float]:
        """The score of a partial candidate's x0 prediction, which its next step need not compute again, or with
        ``last`` of the prediction that its last step was made of. Asked for again while it is under way, it is the same
        trial."""
        if (candidate.key, last) in self._judged:
            return self._judged[candidate.key, last]
        book, key = self._book, self._key(candidate.key, "score", ("last",) if last else ())
        work = self._look(candidate, last)
        cost = Cost(work.nfe)

        def settle(results: list[Result], error: LottsError | None) -> float:
            self._keep_look(key, candidate, last, results)
            if error is not None:
                book.broken(key, candidate.key, "score", cost, error, *results, lineage=candidate.lineage)
                raise error
            score = results[-1].score
            assert score is not None
            if not last:
                candidate.score = score
            book.row(key, candidate.key, "score", *results, lineage=candidate.lineage, score=score)
            return score

        trial = self._call(key, cost, work, settle, self._score)
        if not trial.refused:
            self._judged[candidate.key, last] = trial
        return trial

    def rewrite(self, candidate: Candidate, count: int, last: bool = False) -> Trial[list[str]]:
        """Revised prompts, by the image of a complete candidate or by the x0 prediction of a partial one. A rewriter
        that is lost does not end the branch: the original prompt stands in."""
        book, key = self._book, self._key(candidate.key, "rewrite", (count, last))
        digest = blake2b(repr((book.labels.search_seed, candidate.lineage, candidate.step)).encode(), digest_size=4)
        seed = int.from_bytes(digest.digest(), "little")

        def ask(image: Bytes) -> Rewrite:
            return Rewrite(self._rewriter, self._prompt, image, count, seed)

        known = candidate.key if candidate.complete else self._looks.get((candidate.key, last))
        work = self._look(candidate, last) if known is None else ask(book.images[known])
        cost = Cost(work.nfe)

        def settle(results: list[Result], error: LottsError | None) -> list[str]:
            if known is None:
                self._keep_look(key, candidate, last, results)
            looked = known is not None or bool(results)
            if looked and isinstance(error, Failure) and not isinstance(error, PoolClosed):
                lost = Usage(rewrites=1, fallbacks=count)
                results, error = [*results, Result(lost, prompts=(self._prompt,) * count, note=str(error))], None
            if error is not None:
                book.broken(key, candidate.key, "rewrite", cost, error, *results, lineage=candidate.lineage)
                raise error
            book.row(key, candidate.key, "rewrite", *results, lineage=candidate.lineage)
            return list(results[-1].prompts)

        return self._call(key, cost, work, settle, ask if known is None else None)

    def _score(self, image: Bytes) -> Score:
        return Score(self._verifier, self._prompt, image)

    def _look(self, candidate: Candidate, last: bool) -> Predict:
        """The decoding of an x0 prediction: of the candidate's own step, or the one that its last step was made of."""
        state = self._book.states[candidate.key]
        if last:
            state = replace(state, predicted=state.previous)
        return Predict(state, self._book.samplings[candidate.key])

    def _keep_look(self, key: str, candidate: Candidate, last: bool, results: list[Result]) -> None:
        """Keep the x0 prediction for the next step, and remember whose image shows it."""
        if not results or results[0].state is None or results[0].image is None:
            return
        self._looks[candidate.key, last] = key
        self._book.images[key] = results[0].image
        if not last and self._book.states[candidate.key].predicted is None:
            self._book.states[candidate.key] = results[0].state
            candidate.nfe += 1.0

    def _key(self, parent: str | None, kind: str, arguments: tuple[object, ...]) -> str:
        first = trial_key(parent or "", kind, arguments, 0)
        self._occurrences[first] += 1
        occurrence = self._occurrences[first] - 1
        return trial_key(parent or "", kind, arguments, occurrence) if occurrence else first

    def _call(
        self, key: str, cost: Cost, work: Generate | Rewrite, settle: Settle[T], then: Next | None = None
    ) -> Trial[T]:
        try:
            self._book.ledger.reserve(cost)
        except BudgetExhausted as refusal:
            return Trial.settled(error=refusal)
        results: list[Result] = []
        real = asyncio.get_running_loop().create_task(self._work(key, self._ask(key, work), then, results))
        return self._scheduler.call(cost.nfe, real, results, settle)

    async def _work(self, key: str, first: Future[Result], then: Next | None, results: list[Result]) -> None:
        """What follows an image is begun in real time, without waiting for the virtual order."""
        results.append(await self._answer(key, first))
        if then is not None:
            image = results[0].image
            if image is None:
                raise Failure("the pool sent no image")
            work = then(image)
            name = f"{key} {type(work).__name__.lower()}"
            results.append(await self._answer(name, self._ask(name, work)))

    def _ask(self, name: str, work: Work) -> Future[Result]:
        """Begin a piece of work, unless the journal knows what came of it."""
        known: Result | LottsError | None = self._journal.find(name) if self._journal is not None else None
        if known is None:
            try:
                return self._pool.submit(work)
            except LottsError as error:
                known = error
        settled: Future[Result] = Future()
        if isinstance(known, Result):
            settled.set_result(known)
        else:
            settled.set_exception(known)
        return settled

    async def _answer(self, name: str, asked: Future[Result]) -> Result:
        try:
            result = await asyncio.wrap_future(asked)
        except Failure as failure:
            if self._journal is not None:
                self._journal.add(name, failure)
            raise
        if self._journal is not None:
            self._journal.add(name, result)
        return result
