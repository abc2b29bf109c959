"""From a call of the search handle to the rows of its trials: request the work, enter the outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.core.book import Book
from lotts_search.core.candidate import Candidate, Mask
from lotts_search.core.composing import check_siblings, checked, composed, digest
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.dispatch import Dispatch
from lotts_search.core.journal import Journal
from lotts_search.core.virtual_time import Scheduler, Trial
from lotts_search.errors import BadInput, Failure, LottsError, PoolClosed
from lotts_search.work.masks import MaskSource, replaced
from lotts_search.work.mosaics import mosaic
from lotts_search.work.pool import Pool
from lotts_search.work.requests import (
    Bytes,
    Encode,
    Lineage,
    Locate,
    Predict,
    Result,
    Rewrite,
    Sampling,
    Score,
    ScoreMosaics,
    Segment,
    Usage,
)


@dataclass(frozen=True)
class Draft:
    """What is known of a candidate before its trial has run.

    Attributes:
        score: whether a complete one is scored at once, and so can win.
    """

    kind: str
    lineage: Lineage
    start: int
    stop: int
    sampling: Sampling
    parent: Candidate | None = None
    mask_ratio: float | None = None
    score: bool = True

    @property
    def complete(self) -> bool:
        return self.stop == self.sampling.steps

    @property
    def parent_key(self) -> str | None:
        return self.parent.key if self.parent is not None else None

    def candidate(self, key: str, nfe: float, score: float | None) -> Candidate:
        """Make the candidate; ``nfe`` is the cost of its trial."""
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
        self._dispatch = Dispatch(pool, scheduler, book.ledger, journal, book.on_event)
        self._book = book
        self._verifier = verifier
        self._prompt = prompt
        self._rewriter = rewriter
        self._scored: dict[tuple[str, bool], Trial[float]] = {}
        self._shown: dict[tuple[str, bool], str] = {}

    def make(self, work: Segment | Encode, draft: Draft, arguments: tuple[object, ...]) -> Trial[Candidate]:
        """Make a candidate; a complete one is scored at once, by a trial of its own, unless its draft leaves it unscored."""
        book, parent = self._book, draft.parent_key
        key = self._dispatch.key(parent, draft.kind, arguments)
        score_key = self._dispatch.key(key, "score", ())
        columns = {name: getattr(draft, name) for name in ("lineage", "start", "stop", "mask_ratio")}
        costs = self._costs(draft.sampling)
        scored = draft.complete and draft.score
        cost = Cost(flops=int(costs.prices.encode)) + costs.scores(int(scored))
        if isinstance(work, Segment):
            confined = None if work.resampled is None else work.resampled.confined
            cost = (
                costs.steps_of(work.calls, work.confined, confined)
                + (costs.decode if draft.complete else Cost())
                + costs.scores(int(scored))
            )

        def settle(results: list[Result], error: LottsError | None) -> Candidate:
            if not results:
                assert error is not None
                book.broken(key, parent, draft.kind, cost, error, **columns)
                raise error
            made, scored = results[0], results[1] if len(results) > 1 else None
            assert made.state is not None
            candidate = draft.candidate(key, work.nfe, scored.score if scored is not None else None)
            book.keep(candidate, made.state, draft.sampling)
            book.row(key, parent, draft.kind, made, score=candidate.score, **columns)
            if scored is not None:
                book.row(score_key, key, "score", scored, lineage=draft.lineage, score=scored.score)
            if error is not None:
                book.broken(score_key, key, "score", costs.scores(1), error, lineage=draft.lineage)
                raise error
            return candidate

        then = self._score if scored else None
        return self._dispatch.call(key, parent, draft.kind, cost, work, settle, then)

    def locate(self, work: Locate, candidate: Candidate, cost: Cost, wanted: MaskSource) -> Trial[Mask]:
        """Locate a region of a complete candidate. The trial's row says where another source replaces the wanted one."""
        key = self._dispatch.key(candidate.key, "localize", (work.source,))

        def settle(results: list[Result], error: LottsError | None) -> Mask:
            self._raise(key, candidate, "localize", cost, error, results)
            located = results[0].located
            assert located is not None
            mask = Mask(key, work.source, float(located.mask.mean()), located.confidence)
            self._book.located[key] = located
            notes = "; ".join(filter(None, (replaced(wanted, work.source), results[0].note)))
            self._enter(key, candidate, "localize", [replace(results[0], note=notes)], mask_ratio=mask.ratio)
            return mask

        return self._dispatch.call(key, candidate.key, "localize", cost, work, settle)

    def score(self, candidate: Candidate, last: bool = False) -> Trial[float]:
        """Score the x0 prediction of a partial candidate, which its next step then need not compute again, or with
        ``last`` the prediction that its last step was made of; or a complete candidate that was left unscored, which from
        then on can win. A second call returns the same trial."""
        if (candidate.key, last) in self._scored:
            return self._scored[candidate.key, last]
        key = self._dispatch.key(candidate.key, "score", ("last",) if last else ())
        whole = candidate.complete
        work: Predict | Score
        if whole:
            work = self._score(self._book.images[candidate.key])
            cost = self._book.ledger.costs.scores(1)
        else:
            work = self._predict(candidate, last)
            costs = self._costs(work.sampling)
            cost = costs.score if work.nfe else costs.known_score

        def settle(results: list[Result], error: LottsError | None) -> float:
            self._keep_prediction(key, candidate, last, results)
            self._raise(key, candidate, "score", cost, error, results)
            score = results[-1].score
            assert score is not None
            if not last:
                candidate.score = score
            if whole:
                self._book.rank(candidate)
            self._enter(key, candidate, "score", results, score=score)
            return score

        trial = self._dispatch.call(key, candidate.key, "score", cost, work, settle, None if whole else self._score)
        if not trial.refused:
            self._scored[candidate.key, last] = trial
        return trial

    def rewrite(self, candidate: Candidate, count: int, last: bool = False) -> Trial[list[str]]:
        """Revise the prompt by the image of a complete candidate or the x0 prediction of a partial one. Where the
        rewriter fails, the branch continues with the original prompt."""
        key = self._dispatch.key(candidate.key, "rewrite", (count, last))
        seeds = repr((self._book.labels.search_seed, candidate.lineage, candidate.step))
        seed = int.from_bytes(blake2b(seeds.encode(), digest_size=4).digest(), "little")

        def request(image: Bytes) -> Rewrite:
            return Rewrite(self._rewriter, self._prompt, image, count, seed)

        shown = candidate.key if candidate.complete else self._shown.get((candidate.key, last))
        work = self._predict(candidate, last) if shown is None else request(self._book.images[shown])
        cost = Cost()
        if isinstance(work, Predict):
            costs = self._costs(work.sampling)
            cost = int(work.nfe) * costs.step + costs.preview

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

        return self._dispatch.call(
            key, candidate.key, "rewrite", cost, work, settle, request if shown is None else None
        )

    def compare(self, candidates: Sequence[Candidate], choices: npt.ArrayLike) -> Trial[list[float]]:
        """Score mosaics of candidates' images; the trial is a child of the first candidate."""
        choices = checked(choices, len(candidates), 3)
        key = self._dispatch.key(candidates[0].key, "compare", (digest(candidates, choices),))
        images = np.stack([self._image(candidate) for candidate in candidates])
        cost = self._book.ledger.costs.scores(len(choices))

        def settle(results: list[Result], error: LottsError | None) -> list[float]:
            self._raise(key, candidates[0], "compare", cost, error, results)
            self._enter(key, candidates[0], "compare", results)
            return list(results[-1].scores)

        work = ScoreMosaics(self._verifier, self._prompt, images, choices)
        return self._dispatch.call(key, candidates[0].key, "compare", cost, work, settle)

    def compose(self, candidates: Sequence[Candidate], choice: npt.ArrayLike, exact: bool) -> Trial[Candidate]:
        """Compose candidates by region. That is arithmetic on what is known: no pool works, and no journal records it."""
        book, choice = self._book, checked(choice, len(candidates), 2)
        if choice.min() == choice.max():
            return Trial.settled(candidates[int(choice.flat[0])])
        samplings = [book.samplings[candidate.key] for candidate in candidates]
        check_siblings(candidates, samplings)
        parent = candidates[0].parent.key if candidates[0].parent is not None else None
        key = self._dispatch.key(parent, "compose", (digest(candidates, choice), exact))
        states = [book.states[candidate.key] for candidate in candidates]
        candidate, state = composed(key, candidates, states, choice, exact)
        images = [self._image(one) for one in candidates] if state.predicted is not None else []
        columns = {"lineage": candidate.lineage, "start": max(0, candidate.step - 1), "stop": candidate.step}
        if images:
            book.images[key], self._shown[key, False] = mosaic(np.stack(images), choice), key

        def settle(results: list[Result], error: LottsError | None) -> Candidate:
            if error is not None:
                book.broken(key, parent, "compose", Cost(), error, **columns)
                raise error
            book.keep(candidate, state, samplings[0])
            book.row(key, parent, "compose", results[0], **columns)
            return candidate

        now = time.time()
        return self._dispatch.known(Result(Usage(), state, book.images.get(key), started=now, finished=now), settle)

    def _costs(self, sampling: Sampling) -> Costs:
        return self._book.ledger.costs.under(sampling)

    def _image(self, candidate: Candidate) -> Bytes:
        """Return the image of a complete candidate, or of a partial one's x0 prediction.

        Raises:
            BadInput: the prediction was never decoded.
        """
        shown = candidate.key if candidate.complete else self._shown.get((candidate.key, False))
        if shown is None:
            raise BadInput(f"candidate {candidate.key} has no image yet: score it first")
        return self._book.images[shown]

    def _score(self, image: Bytes) -> Score:
        return Score(self._verifier, self._prompt, image)

    def _predict(self, candidate: Candidate, last: bool) -> Predict:
        """Request the decoded x0 prediction of the candidate's own step, or the one that its last step was made of."""
        state = self._book.states[candidate.key]
        if last:
            if state.previous is None:
                raise BadInput(f"candidate {candidate.key} has taken no step yet: there is no last prediction")
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
