"""Who gets which work, and what happens when a worker dies: without Ray, in an order that the tests choose."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lotts_search.actors.crew import SPARE, START_ATTEMPTS, Crew, Died, Limits, Unavailable, rows
from lotts_search.actors.host import Ready
from lotts_search.errors import BadInput, Failure
from lotts_search.work.masks import AttentionMask, ErrorContrastMask, RandomMask
from lotts_search.work.requests import Encode, Generate, Locate, Predict, Result, Sampling, Score, Segment, State, Usage
from tests.actors.fakes import INFO, segment


class HandWorker:
    """A worker whose every answer the test gives by hand."""

    def __init__(self, number: int) -> None:
        self.name = f"w{number}"
        self.starting: Future[Ready] = Future()
        self.works: list[tuple[Segment, Future[Result]]] = []
        self.pings: list[Future[None]] = []
        self.killed = False

    def start(self) -> Future[Ready]:
        return self.starting

    def run(self, work: Any) -> Future[Result]:
        self.works.append((work, Future()))
        return self.works[-1][1]

    def ping(self) -> Future[None]:
        self.pings.append(Future())
        return self.pings[-1]

    def kill(self) -> None:
        self.killed = True

    def open_works(self) -> list[tuple[Segment, Future[Result]]]:
        return [(work, answer) for work, answer in self.works if not answer.done()]

    def die(self) -> None:
        for _, answer in self.open_works():
            answer.set_exception(Died("killed"))


class Desk:
    """A crew with its inbox and clock in the test's hands."""

    def __init__(self, size: int = 1, batch: int = 4, limits: Limits | None = None, started: bool = True) -> None:
        self.now = 0.0
        self.inbox: deque[Callable[[], None]] = deque()
        self.workers: list[HandWorker] = []
        self.crew: Crew[Generate] = Crew(
            "hand", size, batch, self.spawn, self.inbox.append, limits or Limits(), lambda: self.now
        )
        self.crew.open()
        if started:
            self.start_all()

    def spawn(self, number: int) -> HandWorker:
        self.workers.append(HandWorker(number))
        return self.workers[-1]

    def start_all(self) -> None:
        for worker in self.workers:
            if not worker.starting.done():
                worker.starting.set_result(Ready(INFO, worker.name, "here", 1))
        self.settle()

    def settle(self) -> None:
        while self.inbox:
            self.inbox.popleft()()

    def ask(self, work: Generate) -> Future[Result]:
        future: Future[Result] = Future()
        self.crew.add(work, future)
        return future

    def finish(self, worker: HandWorker) -> None:
        for work, answer in worker.open_works():
            answer.set_result(Result(Usage(nfe=work.nfe)))
        self.settle()

    def tend(self, at: float) -> None:
        self.now = at
        self.crew.tend()
        self.settle()


def test_work_goes_where_the_least_nfe_is_outstanding() -> None:
    desk = Desk(size=2)
    first, second = desk.workers
    for steps in (10, 3, 3, 3, 2):
        desk.ask(segment(steps, steps=steps))
    assert [work.nfe for work, _ in first.works] == [10]
    assert [work.nfe for work, _ in second.works] == [3, 3, 3, 2]


def test_no_worker_holds_more_than_its_batch_and_two_works_and_the_rest_waits_for_whoever_is_free_first() -> None:
    desk = Desk(size=2, batch=2)
    futures = [desk.ask(segment(i)) for i in range(14)]
    first, second = desk.workers
    assert [len(w.works) for w in desk.workers] == [4, 4]
    desk.finish(second)
    assert [len(w.works) for w in desk.workers] == [4, 8]
    desk.finish(second)
    assert [len(w.works) for w in desk.workers] == [4, 10]
    desk.finish(second)
    desk.finish(first)
    assert all(f.result(0).usage.nfe == 6 for f in futures)


def test_work_of_the_dead_is_done_by_a_replacement_and_charged_once() -> None:
    desk = Desk(batch=1)
    futures = [desk.ask(segment(i, steps=4 + i)) for i in range(4)]
    desk.now = 5.0
    desk.workers[0].die()
    desk.settle()
    assert desk.workers[0].killed and len(desk.workers) == 2
    desk.start_all()
    assert [work.lineage[0] for work, _ in desk.workers[1].works] == ["seed 0", "seed 1", "seed 2"]  # the lost go first
    desk.finish(desk.workers[1])
    desk.finish(desk.workers[1])
    results = [f.result(0) for f in futures]
    assert [r.usage.nfe for r in results] == [4, 5, 6, 7]
    assert [r.usage.nfe_wasted for r in results] == [4, 5, 6, 0]
    assert [r.attempts for r in results] == [2, 2, 2, 1]
    assert [r.queue_s for r in results] == [5, 5, 5, 5]


def test_only_the_work_that_kills_runs_out_of_tries() -> None:
    desk = Desk(size=1, batch=4)
    innocent = [desk.ask(segment(i)) for i in range(3)]
    poison = desk.ask(segment(9, prompt="kill"))
    for _ in range(20):
        desk.start_all()
        worker = desk.workers[-1]
        works = worker.open_works()
        if any(work.sampling.prompt == "kill" for work, _ in works):
            worker.die()
            desk.settle()
        else:
            desk.finish(worker)
    assert [f.result(0).usage.nfe for f in innocent] == [6, 6, 6]
    assert max(f.result(0).attempts for f in innocent) == 3
    with pytest.raises(Failure, match=r"given up after 3 tries: .*killed"):
        poison.result(0)


def test_a_last_try_has_its_worker_to_itself() -> None:
    desk = Desk(size=1, batch=4, limits=Limits(attempts=2))
    desk.ask(segment(0))
    desk.ask(segment(1))
    desk.workers[0].die()
    desk.settle()
    desk.start_all()
    desk.ask(segment(2))
    seen = []
    for _ in range(3):
        seen.append([work.lineage[0] for work, _ in desk.workers[1].open_works()])
        desk.finish(desk.workers[1])
    assert seen == [["seed 0"], ["seed 1"], ["seed 2"]]


def test_an_unavailable_worker_gets_no_work_until_it_answers_and_keeps_what_it_has() -> None:
    desk = Desk(size=2, batch=2)
    futures = [desk.ask(segment(i)) for i in range(4)]
    first, second = desk.workers
    first.works[0][1].set_exception(Unavailable("network"))
    desk.settle()
    futures += [desk.ask(segment(4 + i)) for i in range(2)]
    assert (len(first.works), len(second.works)) == (2, 4)  # one more lost and retried, one waits
    first.pings[0].set_exception(Unavailable("network"))
    desk.settle()
    desk.tend(at=1.0)
    assert len(first.pings) == 2 and not first.killed
    first.pings[1].set_result(None)
    desk.settle()
    assert len(first.works) == 3 and len(desk.workers) == 2
    desk.finish(first)
    desk.finish(second)
    assert [f.result(0).usage.nfe for f in futures] == [6] * 6
    assert sum(f.result(0).usage.nfe_wasted for f in futures) == 6


def test_a_worker_that_stays_away_is_replaced() -> None:
    desk = Desk(limits=Limits(return_s=10))
    future = desk.ask(segment(0))
    desk.workers[0].works[0][1].set_exception(Unavailable("network"))
    desk.settle()
    desk.tend(at=11.0)
    assert desk.workers[0].killed
    desk.start_all()
    desk.finish(desk.workers[1])
    assert future.result(0).attempts == 2


def test_a_worker_that_hangs_is_replaced_and_its_late_answer_ignored() -> None:
    desk = Desk(limits=Limits(answer_s=10))
    future = desk.ask(segment(0))
    desk.tend(at=9.0)
    assert not desk.workers[0].killed
    desk.tend(at=11.0)
    assert desk.workers[0].killed
    desk.start_all()
    desk.finish(desk.workers[0])
    assert not future.done()
    desk.finish(desk.workers[1])
    assert future.result(0).usage.nfe_wasted == 6


def test_failures_of_the_work_itself_are_not_tried_again() -> None:
    desk = Desk()
    future = desk.ask(segment(0))
    desk.workers[0].works[0][1].set_exception(BadInput("no such step"))
    desk.settle()
    with pytest.raises(BadInput, match="no such step"):
        future.result(0)
    assert len(desk.workers) == 1 and len(desk.workers[0].works) == 1


def test_a_clear_reason_not_to_start_ends_the_crew_at_once() -> None:
    desk = Desk(size=2, started=False)
    desk.workers[0].starting.set_exception(BadInput("broken folder"))
    desk.workers[1].starting.set_exception(BadInput("broken folder"))
    desk.settle()
    assert len(desk.workers) == 2
    with pytest.raises(BadInput, match=r"^broken folder$"):
        desk.crew.ready.result(0)
    with pytest.raises(Failure, match="no hand is left: broken folder"):
        desk.ask(segment(0)).result(0)


def test_dying_while_starting_is_tried_a_few_times() -> None:
    desk = Desk(started=False)
    for number in range(START_ATTEMPTS):
        desk.workers[number].starting.set_exception(Died("out of memory"))
        desk.settle()
    assert len(desk.workers) == START_ATTEMPTS
    with pytest.raises(Failure, match="dies while it starts: out of memory"):
        desk.crew.ready.result(0)


def test_a_replacement_that_cannot_start_fails_the_work_that_waits_for_it() -> None:
    desk = Desk(limits=Limits(start_s=10))
    future = desk.ask(segment(0))
    desk.workers[0].die()
    desk.settle()
    desk.tend(at=11.0)
    with pytest.raises(Failure, match="no hand is left: w1 did not start within 11 s"):
        future.result(0)


def test_cancelled_work_is_never_sent() -> None:
    desk = Desk(batch=1)
    futures = [desk.ask(segment(seed)) for seed in range(4)]
    assert futures[3].cancel()
    desk.finish(desk.workers[0])
    assert len(desk.workers[0].works) == 3


def test_closing_fails_what_is_not_done_and_kills_the_workers() -> None:
    desk = Desk(batch=1)
    futures = [desk.ask(segment(i)) for i in range(5)]
    desk.crew.close("closed")
    assert desk.workers[0].killed
    for future in futures:
        with pytest.raises(Failure, match="closed"):
            future.result(0)


def test_a_guided_work_takes_two_rows_of_the_batch() -> None:
    desk = Desk(batch=4)
    for seed in range(9):
        desk.ask(replace(segment(seed), sampling=Sampling("p", 6, 3.0)))
    assert len(desk.workers[0].works) == 4 / 2 + SPARE


def test_nfe_and_rows_of_each_kind_of_work() -> None:
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
