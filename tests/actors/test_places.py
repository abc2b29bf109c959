"""The choice of a worker: that of looking at all of them, whatever happens in between."""

from __future__ import annotations

import gc
import random
import weakref
from concurrent.futures import Future

import pytest

from lotts_search.actors.crew import Member
from lotts_search.actors.places import Places
from lotts_search.actors.tasks import Task
from lotts_search.work.cancelling import when_cancelled
from lotts_search.work.requests import Result, Usage
from tests.actors.fakes import segment
from tests.actors.test_worker_group import Harness, ManualWorker


def of(number: int, steps: int, rows: int) -> Task:
    return Task(segment(number, steps=steps), Future(), rows, 0.0, number)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_place_is_that_of_looking_at_all_workers(seed: int) -> None:
    rng, paces = random.Random(seed), random.Random(seed)
    batch = rng.choice((2, 4, 16))
    members = [Member(ManualWorker(number), 0.0) for number in range(rng.choice((1, 3, 12)))]
    present = list(members)
    places = Places(batch)
    places.reset(present)
    full = 0
    for number in range(400):
        if rng.random() < 0.55:
            task = of(number, rng.choice((1, 3, 8)), rng.choice((1, 1, 2, 2, 2, min(batch, 5))))
            free = [member for member in present if member.takes(task, batch)]
            wanted = min(free, key=lambda member: member.load) if free else None
            assert places.best(task) is wanted
            if wanted is not None:
                wanted.tasks.add(task)
                places.changed(wanted)
            full += wanted is None
        elif any(member.tasks for member in members):
            member = rng.choice([member for member in members if member.tasks])
            member.tasks.discard(rng.choice(sorted(member.tasks, key=lambda task: task.order)))
            member.pace = paces.choice((0.5, 1.0, 2.0))
            places.changed(member)
        if rng.random() < 0.02:  # a worker is lost, or is back
            present = [member for member in members if rng.random() < 0.8]
            places.reset(present)
    assert full or batch > 4
    for member in members:
        assert member.tasks.rows == sum(task.rows for task in member.tasks)
        assert member.load == ((sum(task.work.nfe for task in member.tasks) + 1) * member.pace, len(member.tasks))


def test_a_company_that_is_limited_is_kept_while_other_tasks_come_and_go() -> None:
    member = Member(ManualWorker(0), 0.0)
    wary, others = of(0, 1, 1), [of(number, 1, 1) for number in range(1, 4)]
    wary.company = 2
    member.tasks.add(wary)
    member.tasks.add(others[0])
    assert not member.takes(others[1], 16)
    member.tasks.discard(wary)
    assert member.takes(others[1], 16)


def test_results_are_free_as_soon_as_nobody_holds_them() -> None:
    """Without the garbage collector: arrays would wait for it."""
    harness = Harness(size=1)
    gc.disable()
    try:
        future = harness.submit(segment(0))
        harness.workers[0].works[0][1].set_result(result := Result(Usage(nfe=1.0)))
        harness.workers[0].works.clear()
        harness.settle()
        gone = weakref.ref(result)
        assert future.result() is result
        del result, future
        assert gone() is None
    finally:
        gc.enable()


def test_cancelling_reaches_an_owner_that_still_exists() -> None:
    class Owner:
        pass

    called: list[Owner] = []
    owner, future, other = Owner(), Future[None](), Future[None]()
    when_cancelled(future, owner, called.append)
    when_cancelled(other, owner, called.append)
    other.set_result(None)
    future.cancel()
    assert called == [owner]
