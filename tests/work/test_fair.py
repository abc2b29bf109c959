"""The shares of searches on one pool, on a pool whose answers the test gives."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from lotts_search import asearch
from lotts_search.errors import BadInput, Failure
from lotts_search.testing import AnalyticPool
from lotts_search.testing.analytic import analytic_info
from lotts_search.work.fair import FairPool, Share
from lotts_search.work.requests import Encode, Fresh, Result, Sampling, Score, Segment, Usage, Work


class Manual:
    """A pool that answers when the test says so."""

    info = analytic_info()
    verifiers = ("judge",)
    rewriters = ()

    def __init__(self) -> None:
        self.works: list[tuple[Work, Future[Result]]] = []

    def submit(self, work: Work) -> Future[Result]:
        if isinstance(work, Score) and work.verifier != "judge":
            raise BadInput("no such verifier")
        self.works.append((work, Future()))
        return self.works[-1][1]

    def close(self) -> None:
        pass

    @property
    def open(self) -> list[tuple[Work, Future[Result]]]:
        return [(work, future) for work, future in self.works if not future.done()]

    def finish(self, count: int = 1) -> None:
        """Answer the oldest work."""
        for _, future in self.open[:count]:
            future.set_result(Result(Usage()))

    @property
    def seeds(self) -> list[int]:
        """The searches whose segments came in, in order."""
        return [work.search_seed for work, _ in self.works if isinstance(work, Segment)]


def segment(search: int, number: int = 0, steps: int = 10, guidance: float = 1.0) -> Segment:
    return Segment(search, Sampling("p", steps, guidance), (str(number),), steps, noise=Fresh(number))


def asks(share: Share, search: int, count: int, **options: Any) -> list[Future[Result]]:
    return [share.submit(segment(search, number, **options)) for number in range(count)]


def test_a_pool_gets_no_more_than_it_has_room_for() -> None:
    pool = Manual()
    fair = FairPool(pool, 4)
    futures = asks(fair.share(), 1, 10)
    assert len(pool.works) == 4 and (fair.running, fair.waiting) == (4, 6)
    pool.finish(3)
    assert len(pool.works) == 7
    while pool.open:
        pool.finish()
    assert all(future.done() for future in futures) and (fair.running, fair.waiting) == (0, 0)


def test_a_guided_segment_takes_two_rows() -> None:
    pool = Manual()
    asks(FairPool(pool, 5).share(), 1, 10, guidance=3.0)
    assert len(pool.works) == 2


def test_work_that_is_larger_than_the_room_runs_alone() -> None:
    pool = Manual()
    asks(FairPool(pool, 1).share(), 1, 2, guidance=3.0)
    assert len(pool.works) == 1


def test_a_small_search_is_not_behind_a_large_one() -> None:
    """One of 1000 trajectories was there first; one of 2 then gets every second place until it has all."""
    pool = Manual()
    fair = FairPool(pool, 4, turn=1)
    asks(fair.share(), 1, 1000)
    for _ in range(100):
        pool.finish()
    small = asks(fair.share(), 2, 2)
    pool.finish(4)
    assert pool.seeds[-4:].count(2) == 2
    while not all(future.done() for future in small):
        pool.finish()
    assert len(pool.works) <= 112


@pytest.mark.parametrize(("guidance", "taken"), [(1.0, 4), (3.0, 2)])
def test_in_its_turn_a_search_gets_a_batch(guidance: float, taken: int) -> None:
    """The first search is served as it comes; the others then get batches, and one with less passes its turn."""
    pool = Manual()
    fair = FairPool(pool, 2, turn=4)
    for search, count in enumerate((1, 20, 1, 20)):
        asks(fair.share(), search, count, guidance=guidance)
    while pool.open:
        pool.finish()
    assert pool.seeds[:2].count(0) == 1
    order = [search for search in pool.seeds if search in (1, 3)]
    assert order == ([1] * taken + [3] * taken) * (20 // taken)
    assert pool.seeds.index(2) <= taken + 1


@pytest.mark.parametrize("turn", [1, 8])
@pytest.mark.parametrize("steps", [(10, 10), (10, 40)])
def test_searches_get_equal_shares_of_steps(steps: tuple[int, int], turn: int) -> None:
    pool = Manual()
    fair = FairPool(pool, 2, turn)
    shares = fair.share(), fair.share()
    for search, (share, length) in enumerate(zip(shares, steps, strict=True)):
        asks(share, search, 400, steps=length)
    for _ in range(200):
        pool.finish()
    served = [sum(work.nfe for work, _ in pool.works if work.search_seed == search) for search in (0, 1)]  # type: ignore[union-attr]
    assert served[0] == pytest.approx(served[1], abs=2 * turn * max(steps))


def test_a_search_that_paused_has_no_claim_to_what_it_missed() -> None:
    pool = Manual()
    fair = FairPool(pool, 1, turn=1)
    early, late = fair.share(), fair.share()
    asks(late, 2, 1)
    asks(early, 1, 300)
    for _ in range(100):
        pool.finish()
    asks(late, 2, 100)
    before = len(pool.works)
    for _ in range(40):
        pool.finish()
    assert 18 <= pool.seeds[before:].count(2) <= 22


def test_what_a_search_waits_for_goes_before_its_segments() -> None:
    pool = Manual()
    share = FairPool(pool, 1).share()
    asks(share, 1, 5)
    share.submit(Encode(None, 10))  # type: ignore[arg-type]
    pool.finish()
    assert isinstance(pool.works[1][0], Encode)


def test_scores_have_a_queue_of_their_own() -> None:
    pool = Manual()
    share = FairPool(pool, 2).share()
    asks(share, 1, 5)
    share.submit(Score("judge", "p", None))  # type: ignore[arg-type]
    assert isinstance(pool.works[-1][0], Score)
    with pytest.raises(BadInput, match="no such verifier"):
        share.submit(Score("other", "p", None))  # type: ignore[arg-type]


def test_cancelled_work_leaves_the_queue_and_the_pool() -> None:
    pool = Manual()
    fair = FairPool(pool, 2)
    share, other = fair.share(), fair.share()
    futures = asks(share, 1, 10)
    waiting = asks(other, 2, 1)
    share.close()  # what waits is not started in the place of what is cancelled first
    assert all(future.cancel() for future in futures)
    assert [future.cancelled() for _, future in pool.works[:2]] == [True, True]
    assert pool.seeds == [1, 1, 2] and fair.waiting == 0
    pool.finish()
    assert waiting[0].done() and fair.running == 0


def test_errors_reach_the_search() -> None:
    class Broken(Manual):
        def submit(self, work: Work) -> Future[Result]:
            raise Failure("closed")

    future = FairPool(Broken(), 2).share().submit(segment(1))
    with pytest.raises(Failure, match="closed"):
        future.result(0)


def test_answers_at_once_do_not_pile_up_calls() -> None:
    """A pool that answers while it is asked is not asked from within its own answer: there may be thousands in a row."""

    class Instant(Manual):
        def submit(self, work: Work) -> Future[Result]:
            future = super().submit(work)
            if len(self.works) > 1:
                future.set_result(Result(Usage()))
            return future

    pool = Instant()
    futures = asks(FairPool(pool, 1).share(), 1, 5000)
    assert len(pool.works) == 1  # all others wait for it
    pool.finish()
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("strategy", ["lotts", "svdd", "adaptive-lotts"])
def test_a_search_on_a_share_is_the_search_alone(strategy: str) -> None:
    async def together() -> Any:
        shares = [fair.share() for _ in range(4)]
        searches = [
            asearch("red star", pool=share, seed=seed, nfe=60, strategy=strategy) for seed, share in enumerate(shares)
        ]
        return await asyncio.gather(*searches)

    with AnalyticPool(shuffle=3) as pool:
        fair = FairPool(pool, 3)
        results = asyncio.run(together())
    for seed, result in enumerate(results):
        with AnalyticPool() as alone:
            expected = asyncio.run(asearch("red star", pool=alone, seed=seed, nfe=60, strategy=strategy))
        assert [(t.trial_id, t.score) for t in result.trials] == [(t.trial_id, t.score) for t in expected.trials]
    assert (fair.running, fair.waiting) == (0, 0)
