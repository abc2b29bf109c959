"""From a call of the search handle to the rows of its trials: reserve the cost, start the work, enter the outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

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
"""Makes the request that follows as soon as there is an image."""


@dataclass(frozen=True)
class Draft:
    """What is known of a candidate before its trial has run."""

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

    def candidate(self, key: str, score: float | None) -> Candidate:
        """Make the candidate."""
        nfe = self.cost.nfe
        refined = self.kind == "refine"
        if self.parent is not None:
            nfe += self.parent.nfe
            refined = refined or self.parent.refined
        steps = self.sampling.steps
        return Candidate(key, self.kind, self.stop, steps, self.lineage, nfe, self.parent, refined, score)


class Calls:
    """Carries out the calls of one search.

    Args:
        verifier: name of the verifier that guides the search; images are scored against ``prompt``.
        rewriter: name of the rewriter of prompts.
        journal: answers what it knows instead of the pool, and records what the pool returns.
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
        self._pool = pool
        self._scheduler = scheduler
        self._book = book
        self._verifier = verifier
        self._prompt = prompt
        self._journal = journal
        self._rewriter = rewriter
        self._occurrences: Counter[str] = Counter()
        self._scored: dict[tuple[str, bool], Trial[float]] = {}
        self._shown: dict[tuple[str, bool], str] = {}

    def make(self, work: Segment | Encode, draft: Draft, arguments: tuple[object, ...]) -> Trial[Candidate]:
        """Make a candidate; a complete one is scored at once, by a trial of its own."""
        book, parent = self._book, draft.parent_key
        key = self._key(parent, draft.kind, arguments)
        score_key = self._key(key, "score", ())
        columns = {name: getattr(draft, name) for name in ("lineage", "start", "stop", "mask_ratio")}

        def settle(results: list[Result], error: LottsError | None) -> Candidate:
            if not results:
                assert error is not None
                book.broken(key, parent, draft.kind, draft.cost, error, **columns)
                raise error
            made, scored = results[0], results[1] if len(results) > 1 else None
            assert made.state is not None
            candidate = draft.candidate(key, scored.score if scored is not None else None)
            book.keep(candidate, made.state, draft.sampling)
            book.row(key, parent, draft.kind, made, score=candidate.score, **columns)
            if scored is not None:
                book.row(score_key, key, "score", scored, lineage=draft.lineage, score=scored.score)
            if error is not None:
                book.broken(score_key, key, "score", Cost(), error, lineage=draft.lineage)
                raise error
            return candidate

        return self._call(key, draft.cost, work, settle, self._score if draft.complete else None)

    def locate(self, work: Locate, candidate: Candidate, cost: Cost) -> Trial[Mask]:
        """Locate a region of a complete candidate."""
        key = self._key(candidate.key, "localize", (work.source,))

        def settle(results: list[Result], error: LottsError | None) -> Mask:
            self._raise(key, candidate, "localize", cost, error, results)
            located = results[0].located
            assert located is not None
            mask = Mask(key, work.source, float(located.mask.mean()), located.confidence)
            self._book.located[key] = located
            self._enter(key, candidate, "localize", results, mask_ratio=mask.ratio)
            return mask

        return self._call(key, cost, work, settle)

    def score(self, candidate: Candidate, last: bool = False) -> Trial[float]:
        """Score the x0 prediction of a partial candidate, which its next step then need not compute again, or with
        ``last`` the prediction that its last step was made of. A second call returns the same trial."""
        if (candidate.key, last) in self._scored:
            return self._scored[candidate.key, last]
        key = self._key(candidate.key, "score", ("last",) if last else ())
        work = self._predict(candidate, last)
        cost = Cost(work.nfe)

        def settle(results: list[Result], error: LottsError | None) -> float:
            self._keep_prediction(key, candidate, last, results)
            self._raise(key, candidate, "score", cost, error, results)
            score = results[-1].score
            assert score is not None
            if not last:
                candidate.score = score
            self._enter(key, candidate, "score", results, score=score)
            return score

        trial = self._call(key, cost, work, settle, self._score)
        if not trial.refused:
            self._scored[candidate.key, last] = trial
        return trial

    def rewrite(self, candidate: Candidate, count: int, last: bool = False) -> Trial[list[str]]:
        """Revise the prompt by the image of a complete candidate or the x0 prediction of a partial one. Where the
        rewriter fails, the branch continues with the original prompt."""
        key = self._key(candidate.key, "rewrite", (count, last))
        seeds = repr((self._book.labels.search_seed, candidate.lineage, candidate.step))
        seed = int.from_bytes(blake2b(seeds.encode(), digest_size=4).digest(), "little")

        def request(image: Bytes) -> Rewrite:
            return Rewrite(self._rewriter, self._prompt, image, count, seed)

        shown = candidate.key if candidate.complete else self._shown.get((candidate.key, last))
        work = self._predict(candidate, last) if shown is None else request(self._book.images[shown])
        cost = Cost(work.nfe)

        def settle(results: list[Result], error: LottsError | None) -> list[str]:
            if shown is None:
                self._keep_prediction(key, candidate, last, results)
            has_image = shown is not None or bool(results)
            if has_image and isinstance(error, Failure) and not isinstance(error, PoolClosed):
                usage = Usage(rewrites=1, fallbacks=count)
                results = [*results, Result(usage, prompts=(self._prompt,) * count, note=str(error))]
                error = None
            self._raise(key, candidate, "rewrite", cost, error, results)
            self._enter(key, candidate, "rewrite", results)
            return list(results[-1].prompts)

        return self._call(key, cost, work, settle, request if shown is None else None)

    def _score(self, image: Bytes) -> Score:
        return Score(self._verifier, self._prompt, image)

    def _predict(self, candidate: Candidate, last: bool) -> Predict:
        """Request the decoded x0 prediction of the candidate's own step, or the one that its last step was made of."""
        state = self._book.states[candidate.key]
        if last:
            state = replace(state, predicted=state.previous)
        return Predict(state, self._book.samplings[candidate.key])

    def _keep_prediction(self, key: str, candidate: Candidate, last: bool, results: list[Result]) -> None:
        """Keep the x0 prediction for the next step, and note which trial's image shows it."""
        if not results or results[0].state is None or results[0].image is None:
            return
        self._shown[candidate.key, last] = key
        self._book.images[key] = results[0].image
        if not last and self._book.states[candidate.key].predicted is None:
            self._book.states[candidate.key] = results[0].state
            candidate.nfe += 1.0

    def _enter(self, key: str, candidate: Candidate, kind: str, results: list[Result], **columns: Any) -> None:
        self._book.row(key, candidate.key, kind, *results, lineage=candidate.lineage, **columns)

    def _raise(
        self, key: str, candidate: Candidate, kind: str, cost: Cost, error: LottsError | None, results: list[Result]
    ) -> None:
        """Enter and raise the error of a trial, if it has one."""
        if error is not None:
            self._book.broken(key, candidate.key, kind, cost, error, *results, lineage=candidate.lineage)
            raise error

    def _key(self, parent: str | None, kind: str, arguments: tuple[object, ...]) -> str:
        first = trial_key(parent or "", kind, arguments, 0)
        occurrence = self._occurrences[first]
        self._occurrences[first] += 1
        return trial_key(parent or "", kind, arguments, occurrence)

    def _call(
        self, key: str, cost: Cost, work: Generate | Rewrite, settle: Settle[T], then: Next | None = None
    ) -> Trial[T]:
        try:
            self._book.ledger.reserve(cost)
        except BudgetExhausted as refusal:
            return Trial.settled(error=refusal)
        results: list[Result] = []
        real = asyncio.get_running_loop().create_task(self._work(key, self._submit(key, work), then, results))
        return self._scheduler.call(cost.nfe, real, results, settle)

    async def _work(self, key: str, first: Future[Result], then: Next | None, results: list[Result]) -> None:
        """Wait for the work and what follows its image, which starts in real time, without waiting for virtual order."""
        results.append(await self._result(key, first))
        if then is not None:
            image = results[0].image
            if image is None:
                raise Failure("the pool sent no image")
            work = then(image)
            name = f"{key} {type(work).__name__.lower()}"
            results.append(await self._result(name, self._submit(name, work)))

    def _submit(self, name: str, work: Work) -> Future[Result]:
        """Start a piece of work, unless the journal knows its outcome."""
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

    async def _result(self, name: str, submitted: Future[Result]) -> Result:
        """Wait for a piece of work, and record its outcome in the journal."""
        outcome: Result | Failure
        try:
            outcome = await asyncio.wrap_future(submitted)
        except Failure as failure:
            outcome = failure
        if self._journal is not None:
            self._journal.add(name, outcome)
        if isinstance(outcome, Failure):
            raise outcome
        return outcome
