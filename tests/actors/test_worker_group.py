"""Distribution of tasks and the death of workers, without Ray, in an order that the tests control."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lotts_search.actors.crew import START_ATTEMPTS, Died, Limits, Unavailable
from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.tasks import SPARE, rows
from lotts_search.actors.watch import LAST, LEAST_S
from lotts_search.actors.worker_group import WorkerGroup
from lotts_search.errors import BadInput, Failure, LostWork
from lotts_search.work.masks import AttentionMask, ErrorContrastMask, RandomMask
from lotts_search.work.requests import Encode, Generate, Locate, Predict, Result, Sampling, Score, Segment, State, Usage
from tests.actors.fakes import INFO, segment


class ManualWorker:
    """A worker whose answers are set by the test, those of pings only if it is ``mute``."""

    def __init__(self, number: int) -> None:
        self.name = f"w{number}"
        self.starting: Future[Ready] = Future()
        self.place: Future[Any] = Future()
        self.works: list[tuple[Segment, Future[Result]]] = []
        self.pings: list[Future[int]] = []
        self.killed = self.mute = False
        self.ticks = 0

    def placed(self) -> Future[Any]:
        return self.place

    def start(self) -> Future[Ready]:
        return self.starting

    def run(self, work: Any) -> Future[Result]:
        self.works.append((work, Future()))
        return self.works[-1][1]

    def ping(self) -> Future[int]:
        self.pings.append(Future())
        if not self.mute:
            self.pings[-1].set_result(self.ticks)
        return self.pings[-1]

    def kill(self) -> None:
        self.killed = True

    def open_works(self) -> list[tuple[Segment, Future[Result]]]:
        return [(work, answer) for work, answer in self.works if not answer.done()]

    def die(self) -> None:
        for _, answer in self.open_works():
            answer.set_exception(Died("killed"))


class Harness:
    """A worker group whose inbox and clock are controlled by the test."""

    def __init__(self, size: int = 1, batch: int = 4, limits: Limits | None = None, started: bool = True) -> None:
        self.now = 0.0
        self.inbox: deque[Callable[[], None]] = deque()
        self.workers: list[ManualWorker] = []
        self.group: WorkerGroup = WorkerGroup(
            "manual worker", size, batch, self.spawn, self.inbox.append, limits or Limits(), lambda: self.now
        )
        self.group.open()
        if started:
            self.start_all()

    def spawn(self, number: int) -> ManualWorker:
        self.workers.append(ManualWorker(number))
        return self.workers[-1]

    def start_all(self) -> None:
        for worker in self.workers:
            if not worker.starting.done():
                worker.starting.set_result(Ready(INFO, worker.name, "here", 1))
        self.settle()

    def settle(self) -> None:
        while self.inbox:
            self.inbox.popleft()()

    def submit(self, work: Generate) -> Future[Result]:
        future: Future[Result] = Future()
        self.group.add(work, future)
        return future

    def finish(self, worker: ManualWorker) -> None:
        for work, answer in worker.open_works():
            answer.set_result(Result(Usage(nfe=work.nfe)))
        self.settle()

    def check(self, at: float, step: float = 1.0) -> None:
        """Check at a time, and every ``step`` seconds until then."""
        while True:
            self.now = min(at, self.now + step)
            self.group.check_timeouts()
            self.settle()
            if self.now == at:
                return


def test_a_task_goes_to_the_worker_with_the_least_outstanding_nfe() -> None:
    harness = Harness(size=2)
    first, second = harness.workers
    for steps in (10, 3, 3, 3, 2):
        harness.submit(segment(steps, steps=steps))
    assert [work.nfe for work, _ in first.works] == [10]
    assert [work.nfe for work, _ in second.works] == [3, 3, 3, 2]


def test_a_fast_worker_gets_more_work_and_the_first_of_it() -> None:
    """Two workers, one four times as fast: it has about four times the steps in flight, and one task goes to it."""
    harness = Harness(size=2, batch=64)
    slow, fast = harness.workers
    for _ in range(60):
        for number in range(2):
            harness.submit(segment(number, steps=5))
        for worker, seconds in ((slow, 4.0), (fast, 1.0)):
            for work, answer in worker.open_works():
                answer.set_result(Result(Usage(nfe=work.nfe), started=10.0, finished=10.0 + seconds * work.nfe))
        harness.settle()
    harness.submit(segment(0, steps=5))
    assert [len(worker.open_works()) for worker in harness.workers] == [0, 1]
    for number in range(49):
        harness.submit(segment(number, steps=5))
    assert 9 <= len(slow.open_works()) <= 12 and len(slow.open_works() + fast.open_works()) == 50


def test_workers_without_work_are_given_back_and_hired_again_when_work_waits() -> None:
    harness = Harness(size=3, batch=2, limits=Limits(idle_s=60))
    future = harness.submit(segment(0))
    busy = next(worker for worker in harness.workers if worker.works)
    harness.check(60)
    assert not any(worker.killed for worker in harness.workers)
    harness.check(62)
    assert [worker for worker in harness.workers if not worker.killed] == [busy]
    assert str(harness.group.crew) == "manual worker: 1 of 3 ready, 2 had no work and are given back"
    harness.finish(busy)
    harness.check(1000)
    assert future.done() and not busy.killed  # the last one stays
    futures = [harness.submit(segment(number)) for number in range(5)]
    harness.check(1001)
    assert len(harness.workers) == 4  # one task waits, so one worker is hired
    harness.start_all()
    futures += [harness.submit(segment(number)) for number in range(5, 20)]
    harness.check(1002)
    assert len(harness.workers) == 5 and str(harness.group.crew).endswith("1 have no place yet")
    harness.start_all()
    for _ in range(4):
        for worker in harness.workers:
            harness.finish(worker)
    assert all(future.result(0).attempts == 1 for future in futures)
    assert [len(worker.works) > 2 for worker in harness.workers].count(True) == 3


def test_workers_without_work_stay_unless_a_limit_says_otherwise() -> None:
    harness = Harness(size=3)
    harness.check(100_000, step=1000.0)
    assert len(harness.workers) == 3 and not any(worker.killed for worker in harness.workers)


def test_a_worker_holds_its_batch_and_two_spare_tasks_and_the_rest_waits_for_the_first_free_worker() -> None:
    harness = Harness(size=2, batch=2)
    futures = [harness.submit(segment(i)) for i in range(14)]
    first, second = harness.workers
    assert [len(w.works) for w in harness.workers] == [4, 4]
    harness.finish(second)
    assert [len(w.works) for w in harness.workers] == [4, 8]
    harness.finish(second)
    assert [len(w.works) for w in harness.workers] == [4, 10]
    harness.finish(second)
    harness.finish(first)
    assert all(f.result(0).usage.nfe == 6 for f in futures)


def test_a_replacement_does_the_tasks_of_a_dead_worker_and_each_is_charged_once() -> None:
    harness = Harness(batch=1)
    futures = [harness.submit(segment(i, steps=4 + i)) for i in range(4)]
    harness.now = 5.0
    harness.workers[0].die()
    harness.settle()
    assert harness.workers[0].killed and len(harness.workers) == 2
    harness.start_all()
    for _ in range(3):
        harness.finish(harness.workers[1])
    # Lost tasks go first.
    assert [work.lineage[0] for work, _ in harness.workers[1].works] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    results = [f.result(0) for f in futures]
    assert [r.usage.nfe for r in results] == [4, 5, 6, 7]
    assert [r.usage.nfe_wasted for r in results] == [4, 5, 6, 0]
    assert [r.attempts for r in results] == [2, 2, 2, 1]
    assert [r.queue_s for r in results] == [5, 5, 5, 5]


def test_only_the_task_that_kills_its_worker_runs_out_of_tries() -> None:
    harness = Harness(size=1, batch=4)
    innocent = [harness.submit(segment(i)) for i in range(5)]
    poison = harness.submit(segment(9, prompt="kill"))
    for _ in range(40):
        harness.start_all()
        worker = harness.workers[-1]
        works = worker.open_works()
        if any(work.sampling.prompt == "kill" for work, _ in works):
            worker.die()
            harness.settle()
        else:
            harness.finish(worker)
    assert [f.result(0).usage.nfe for f in innocent] == [6] * 5
    with pytest.raises(LostWork, match=r"^lost work: a segment .*: 3 workers died that ran nothing else, .*killed"):
        poison.result(0)
    assert len(harness.workers) - 1 == 2 + 3  # with five others, with two others, and three times alone


@pytest.mark.parametrize("seed", range(5))
def test_deaths_in_company_are_held_against_no_task(seed: int) -> None:
    """Whatever workers are killed, all work is done, each charged once."""
    chance = random.Random(seed)
    harness = Harness(size=3, batch=4)
    futures = [harness.submit(segment(i)) for i in range(60)]
    kills = 0
    for _ in range(1000):
        if all(future.done() for future in futures):
            break
        harness.start_all()
        worker = chance.choice([worker for worker in harness.workers if not worker.killed])
        if chance.random() < 0.4 and len(worker.open_works()) > 1:
            kills += 1
            worker.die()
            harness.settle()
        else:
            for work, answer in worker.open_works()[: chance.randrange(1, 5)]:
                answer.set_result(Result(Usage(nfe=work.nfe)))
            harness.settle()
    results = [future.result(0) for future in futures]
    assert kills > 5
    assert sum(result.usage.nfe for result in results) == 360
    assert max(result.attempts for result in results) > 3


def test_two_kills_of_all_workers_halve_the_company_twice() -> None:
    """Tasks that were lost twice take a few rounds on each of two workers, not one round each."""
    harness = Harness(size=2, batch=16)
    futures = [harness.submit(segment(i)) for i in range(36)]
    for _ in range(2):
        for worker in [worker for worker in harness.workers if not worker.killed]:
            assert worker.open_works()
            worker.die()
        harness.settle()
        harness.start_all()
    rounds = 0
    while not all(future.done() for future in futures):
        rounds += 1
        for worker in [worker for worker in harness.workers if not worker.killed]:
            assert len(worker.open_works()) <= 9
            harness.finish(worker)
    assert rounds <= 4


def test_several_works_are_alone_at_once_and_newer_ones_use_the_other_workers() -> None:
    harness = Harness(size=1, batch=2, limits=Limits(attempts=2))
    lone = [harness.submit(segment(i)) for i in range(2)]
    harness.workers[0].die()  # now each must be alone
    harness.settle()
    for _ in range(2):
        harness.group.crew.hire()
    harness.start_all()
    assert [[work.lineage[0] for work, _ in worker.open_works()] for worker in harness.workers[1:]] == [
        ["seed 0"],
        ["seed 1"],
        [],
    ]
    newer = [harness.submit(segment(10 + i)) for i in range(6)]
    assert [len(worker.open_works()) for worker in harness.workers[1:]] == [1, 1, 4]
    harness.finish(harness.workers[1])
    assert [len(worker.open_works()) for worker in harness.workers[1:]] == [2, 1, 4]
    for _ in range(3):
        for worker in harness.workers:
            harness.finish(worker)
    assert all(future.result(0) for future in [*lone, *newer])


def test_a_worker_is_held_free_for_a_task_that_must_be_alone() -> None:
    harness = Harness(size=2, batch=2)
    first, second = harness.workers
    futures = [harness.submit(segment(i)) for i in range(4)]
    first.die()  # two of the four; each must be alone now
    harness.settle()
    futures += [harness.submit(segment(10 + i)) for i in range(4)]
    alone = []
    for _ in range(6):
        alone += [work.lineage[0] for work, _ in second.open_works() if len(second.open_works()) == 1]
        harness.finish(second)
    assert {"seed 0", "seed 2"} <= set(alone)
    assert all(future.done() for future in futures)


def test_a_cancelled_lost_task_holds_no_worker() -> None:
    harness = Harness(size=2, batch=2)
    first, second = harness.workers
    futures = [harness.submit(segment(i)) for i in range(4)]
    first.die()
    harness.settle()
    assert futures[0].cancel() and futures[2].cancel()
    harness.settle()
    newer = [harness.submit(segment(10 + i)) for i in range(2)]
    assert len(second.open_works()) == 4
    harness.finish(second)
    assert all(future.done() for future in newer)


def test_an_unavailable_worker_keeps_its_tasks_and_gets_no_more_until_it_answers() -> None:
    harness = Harness(size=2, batch=2)
    futures = [harness.submit(segment(i)) for i in range(4)]
    first, second = harness.workers
    first.mute = True
    first.works[0][1].set_exception(Unavailable("network"))
    harness.settle()
    futures += [harness.submit(segment(4 + i)) for i in range(2)]
    assert (len(first.works), len(second.works)) == (2, 4)  # one more was lost and is retried, one waits
    first.pings[0].set_exception(Unavailable("network"))
    harness.settle()
    harness.check(at=1.0)
    assert len(first.pings) == 2 and not first.killed
    first.pings[1].set_result(0)
    harness.settle()
    assert len(first.works) == 3 and len(harness.workers) == 2
    harness.finish(first)
    harness.finish(second)
    assert [f.result(0).usage.nfe for f in futures] == [6] * 6
    assert sum(f.result(0).usage.nfe_wasted for f in futures) == 6


def test_a_worker_that_stays_unreachable_is_replaced() -> None:
    harness = Harness(limits=Limits(return_s=10))
    future = harness.submit(segment(0))
    harness.workers[0].mute = True
    harness.workers[0].works[0][1].set_exception(Unavailable("network"))
    harness.settle()
    harness.check(at=11.0)
    assert harness.workers[0].killed
    harness.start_all()
    harness.finish(harness.workers[1])
    assert future.result(0).attempts == 2


def test_a_worker_that_does_nothing_is_replaced_and_its_late_answer_ignored() -> None:
    harness = Harness(limits=Limits(answer_s=30))
    future = harness.submit(segment(0))
    worker = harness.workers[0]
    for at in range(2, 40, 2):
        worker.ticks = min(at, 6)
        harness.check(at=at)
        assert not worker.killed
    harness.check(at=40)
    assert worker.killed, "it last did something before the ping of the sixth second, and was alive in the 38th"
    harness.start_all()
    harness.finish(worker)
    assert not future.done()
    harness.finish(harness.workers[1])
    assert future.result(0).usage.nfe_wasted == 6


@pytest.mark.parametrize("works", [0, 1])
def test_a_process_that_answers_no_ping_is_replaced_at_work_and_idle(works: int) -> None:
    harness = Harness(limits=Limits(ping_s=10))
    futures = [harness.submit(segment(i)) for i in range(works)]
    worker = harness.workers[0]
    harness.check(at=2)
    worker.mute = True
    harness.check(at=3.9)
    assert len(worker.pings) == 1  # it has been heard of
    harness.check(at=4)
    harness.check(at=14)
    assert len(worker.pings) == 2 and not worker.killed
    harness.check(at=14.1)
    assert worker.killed and len(harness.workers) == 2
    harness.start_all()
    harness.finish(harness.workers[1])
    assert [future.result(0).attempts for future in futures] == [2] * works


def test_what_this_process_slept_through_is_held_against_no_worker() -> None:
    harness = Harness(limits=Limits(ping_s=10))
    worker = harness.workers[0]
    worker.mute = True
    harness.check(at=2)
    harness.check(at=600, step=598)
    assert len(worker.pings) == 1 and not worker.killed
    worker.pings[0].set_result(0)
    harness.settle()
    harness.check(at=640)
    assert len(worker.pings) == 2 and worker.killed


def test_where_pings_are_slow_a_worker_may_take_longer_to_answer_one() -> None:
    harness = Harness(size=2, limits=Limits(ping_s=10))
    slow, other = harness.workers
    slow.mute = other.mute = True
    harness.check(at=2)
    harness.check(at=5)
    slow.pings[0].set_result(0)
    harness.settle()
    harness.check(at=32)
    assert not other.killed
    harness.check(at=32.1)
    assert other.killed and not slow.killed


def test_a_worker_that_starts_may_take_longer_to_answer_a_ping() -> None:
    harness = Harness(limits=Limits(ping_s=10, return_s=60), size=2, started=False)
    worker = harness.workers[0]
    worker.mute = True
    worker.place.set_result(None)
    harness.settle()
    harness.check(at=2)
    harness.check(at=62)
    assert len(worker.pings) == 1 and not worker.killed
    harness.check(at=62.1)
    assert worker.killed and not harness.workers[1].pings  # the other has no process yet


def test_the_limit_follows_what_work_of_a_kind_has_taken() -> None:
    """Three times the longest of late, at least LEAST_S; unlimited by the pace of other kinds of work."""
    limits, queue = Limits(answer_s=900), [200.0, 30.0]
    harness = Harness(batch=1, limits=limits)
    worker = harness.workers[0]
    watch, (member,) = harness.group._watch, harness.group.crew.members
    assert watch.limit(member) == LEAST_S
    harness.submit(segment(0))
    assert watch.limit(member) == 900, "nothing is known of it"
    for took in queue:
        harness.now += took
        harness.finish(worker)
        harness.submit(segment(1))
    assert watch.limit(member) == 600
    encode = Encode(np.zeros((8, 8, 3), np.uint8), 6)
    harness.submit(encode)
    assert watch.limit(member) == 900
    harness.finish(worker)
    for number in range(LAST):
        harness.submit(segment(number))
        harness.now += 1
        harness.finish(worker)
    harness.submit(segment(0))
    assert watch.limit(member) == LEAST_S
    worker.die()
    harness.settle()
    harness.start_all()
    (member,) = harness.group.crew.members
    assert watch.limit(member) == 900, "a new worker may have to compile"


def test_a_failure_of_the_task_itself_is_not_retried() -> None:
    harness = Harness()
    future = harness.submit(segment(0))
    harness.workers[0].works[0][1].set_exception(BadInput("no such step"))
    harness.settle()
    with pytest.raises(BadInput, match="no such step"):
        future.result(0)
    assert len(harness.workers) == 1 and len(harness.workers[0].works) == 1


def test_an_error_that_a_retry_cannot_fix_closes_the_group_at_once() -> None:
    harness = Harness(size=2, started=False)
    harness.workers[0].starting.set_exception(BadInput("broken folder"))
    harness.workers[1].starting.set_exception(BadInput("broken folder"))
    harness.settle()
    assert len(harness.workers) == 2
    with pytest.raises(BadInput, match=r"^broken folder$"):
        harness.group.ready.result(0)
    with pytest.raises(Failure, match="no manual worker is left: broken folder"):
        harness.submit(segment(0)).result(0)


def test_a_worker_that_dies_during_start_up_is_retried_a_few_times() -> None:
    harness = Harness(started=False)
    for number in range(START_ATTEMPTS):
        harness.workers[number].starting.set_exception(Died("out of memory"))
        harness.settle()
        harness.check(at=harness.now + 2.0**number)
    assert len(harness.workers) == START_ATTEMPTS
    with pytest.raises(Failure, match="died during start-up: out of memory"):
        harness.group.ready.result(0)


@pytest.mark.parametrize("error", [Died("out of memory"), BadInput("there are no weights on this node")])
def test_a_crew_begins_with_what_is_ready_and_hires_again_with_longer_and_longer_pauses(error: Exception) -> None:
    harness = Harness(size=2, limits=Limits(together_s=30), started=False)
    harness.workers[0].starting.set_result(Ready(INFO, "w0", "here", 1))
    harness.settle()
    harness.workers[1].starting.set_exception(error)
    harness.settle()
    assert not harness.group.ready.done()
    hired = []
    while len(hired) < 9:
        harness.check(at=harness.now + 0.5)
        if len(harness.workers) > 2 + len(hired):
            hired.append(harness.now)
            harness.workers[-1].starting.set_exception(error)
            harness.settle()
    assert [round(b - a) for a, b in itertools.pairwise([0.0, *hired])] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert harness.group.ready.result(0).name == "w0"
    assert str(harness.group.crew) == "manual worker: 1 of 2 ready, 1 will be tried again"
    harness.check(at=harness.now + 61)
    harness.start_all()
    assert str(harness.group.crew) == "manual worker: 2 of 2 ready"


def test_a_worker_without_a_place_is_waited_for_while_others_work() -> None:
    harness = Harness(size=2, limits=Limits(start_s=10, together_s=3), started=False)
    harness.workers[0].starting.set_result(Ready(INFO, "w0", "here", 1))
    harness.settle()
    assert str(harness.group.crew) == "manual worker: 1 of 2 ready, 1 have no place yet"
    harness.check(at=2.9)
    assert not harness.group.ready.done()
    harness.check(at=3.1)
    assert harness.group.ready.done()
    harness.check(at=500)
    assert len(harness.workers) == 2 and not harness.workers[1].killed
    harness.workers[1].place.set_result(None)
    harness.settle()
    harness.check(at=509)
    assert not harness.workers[1].killed
    harness.check(at=511)  # it has a place, and did not load in time
    assert harness.workers[1].killed


def test_a_crew_without_any_place_gives_up() -> None:
    harness = Harness(size=2, limits=Limits(start_s=10), started=False)
    harness.check(at=11)
    with pytest.raises(Failure, match="w0 found no place within 11 s"):
        harness.group.ready.result(0)


def test_a_crew_gives_its_places_to_another_and_takes_them_again_later() -> None:
    harness = Harness(size=3, batch=1, started=False)
    for worker in harness.workers[:2]:
        worker.starting.set_result(Ready(INFO, worker.name, "here", 1))
    harness.settle()
    futures = [harness.submit(segment(i, steps=4 + i)) for i in range(3)]  # the first worker has two of them
    harness.group.give_way()
    assert [worker.killed for worker in harness.workers] == [False, False, True]  # the one without a place
    harness.group.give_way()
    assert [worker.killed for worker in harness.workers] == [False, True, True]  # the less busy one
    harness.group.give_way()
    assert not harness.workers[0].killed, "the last one stays"
    harness.finish(harness.workers[0])
    assert [future.result(0).attempts for future in futures] == [1, 2, 1]
    harness.check(at=59)
    assert len(harness.workers) == 3
    harness.check(at=61)
    assert len(harness.workers) == 5


def test_a_crew_starves_while_it_has_no_worker_and_no_place() -> None:
    harness = Harness(size=1, started=False)
    starved = []
    for at in (29.0, 31.0):
        harness.check(at=at)
        starved.append(harness.group.crew.starved())
    harness.workers[0].place.set_result(None)
    harness.settle()
    assert (*starved, harness.group.crew.starved()) == (False, True, False)


def test_a_replacement_that_cannot_start_fails_the_tasks_that_wait_for_it() -> None:
    harness = Harness(limits=Limits(start_s=10))
    future = harness.submit(segment(0))
    harness.workers[0].die()
    harness.settle()
    harness.check(at=11.0)
    with pytest.raises(Failure, match="no manual worker is left: w1 found no place within 11 s"):
        future.result(0)


def test_a_cancelled_task_is_never_sent() -> None:
    harness = Harness(batch=1)
    futures = [harness.submit(segment(seed)) for seed in range(4)]
    assert futures[3].cancel()
    harness.finish(harness.workers[0])
    assert len(harness.workers[0].works) == 3


def test_a_task_that_is_cancelled_at_a_worker_stops_there_and_makes_room() -> None:
    harness = Harness(batch=1)
    futures = [harness.submit(segment(seed)) for seed in range(5)]
    (worker,) = harness.workers
    assert len(worker.works) == 3 and futures[1].cancel()
    harness.settle()
    assert worker.works[1][1].cancelled() and len(worker.works) == 4
    harness.finish(worker)
    harness.finish(worker)
    assert [future.cancelled() for future in futures] == [False, True, False, False, False]
    assert all(future.result(0).attempts == 1 for future in futures if not future.cancelled())


def test_a_cancelled_task_is_not_retried() -> None:
    harness = Harness(batch=1)
    first, second = (harness.submit(segment(seed)) for seed in range(2))
    first.cancel()
    harness.workers[0].die()
    harness.settle()
    harness.start_all()
    assert [work.lineage for work, _ in harness.workers[1].works] == [("seed 1",)]
    harness.finish(harness.workers[1])
    assert second.result(0).attempts == 2


def test_closing_fails_unfinished_tasks_and_kills_the_workers() -> None:
    harness = Harness(batch=1)
    futures = [harness.submit(segment(i)) for i in range(5)]
    harness.group.close("closed")
    assert harness.workers[0].killed
    for future in futures:
        with pytest.raises(Failure, match="closed"):
            future.result(0)


def test_a_guided_segment_takes_two_rows_of_the_batch() -> None:
    harness = Harness(batch=4)
    for seed in range(9):
        harness.submit(replace(segment(seed), sampling=Sampling("p", 6, 3.0)))
    assert len(harness.workers[0].works) == 4 / 2 + SPARE


def test_nfe_and_rows_of_each_kind_of_request() -> None:
    unguided, guided = Sampling("p", 6, 1.0), Sampling("p", 6, 3.0)
    latent = np.zeros(INFO.latent, dtype=np.float32)
    state = State(latent, 3, 6)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    expected: list[tuple[Generate | Score, float, int]] = [
        (segment(0), 6, 1),
        (Predict(state, guided), 1, 2),
        (Predict(replace(state, predicted=latent), guided), 0, 2),
        (Locate(0, ("seed 0",), state, guided, AttentionMask()), 1.5, 3),
        (Locate(0, ("seed 0",), state, unguided, AttentionMask()), 3, 3),
        (Locate(0, ("seed 0",), state, unguided, ErrorContrastMask()), 6, 4),
        (Locate(0, ("seed 0",), state, guided, RandomMask()), 0, 1),
        (Encode(image, 6), 0, 1),
        (Score("v", "p", image), 0, 1),
    ]
    assert [(work.nfe, rows(work, batch=4)) for work, _, _ in expected] == [(n, r) for _, n, r in expected]
