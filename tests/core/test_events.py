"""What a search tells while it runs: the events, their order, the preview, and the iterator over them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, Interrupted, asearch, search, stream
from lotts_search.core.events import (
    Event,
    MaskFound,
    NewBest,
    Preview,
    SearchEnded,
    SearchStarted,
    TrialFinished,
    TrialStarted,
)
from lotts_search.errors import Failure
from lotts_search.testing import AnalyticPool
from tests.scripted import Scripted


def told(pool: AnalyticPool, **arguments: Any) -> list[Event]:
    """The events of a search by LoTTS."""
    events: list[Event] = []
    with pool:
        search("red star", pool=pool, **{"images": 9} | arguments, on_event=events.append)
    return events


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def seen(event: Event) -> Any:
    """An event without what differs from run to run."""
    match event:
        case TrialFinished(record, image, spent):
            return record.trial_id, record.status, record.score, image is not None, spent
        case MaskFound(trial, parent, located):
            return trial, parent, located.mask.tobytes()
        case NewBest(trial, score, image, spent):
            return trial, score, image.tobytes(), spent
        case SearchEnded(result):
            return result.status, result.score
    return event


def test_events_tell_the_whole_search() -> None:
    events = told(AnalyticPool(shuffle=1))
    assert isinstance(events[0], SearchStarted) and isinstance(events[-1], SearchEnded)
    result = events[-1].result
    assert [event.record for event in of(TrialFinished, events)] == result.trials
    assert {event.trial_id for event in of(MaskFound, events)} == set(result.located)
    assert events[0].search_id == result.trials[0].search_id and events[0].budget == result.budget

    best: list[float] = []
    for event in events:
        match event:
            case TrialFinished(record, image, spent):
                assert (image is None) == (record.image is None) and spent == pytest.approx(
                    record_share(result, record)
                )
            case NewBest(trial, score, image, _):
                assert not best or score > best[-1]
                assert np.array_equal(image, result.images[trial])
                best.append(score)
    assert best[-1] == result.score and len(best) > 1


def record_share(result: Any, record: Any) -> float:
    """The share of the budget's images up to a row, counted from the rows."""
    rows = result.trials[: result.trials.index(record) + 1]
    return min(1.0, sum(row.images for row in rows) / result.budget.images)


def test_every_trial_starts_once_before_it_finishes() -> None:
    events = told(AnalyticPool())
    started = {
        event.trial_id: (number, event) for number, event in enumerate(events) if isinstance(event, TrialStarted)
    }
    assert len(started) == len(of(TrialStarted, events))
    for number, event in enumerate(events):
        if isinstance(event, TrialFinished) and event.record.trial_id in started:
            before, start = started.pop(event.record.trial_id)
            row = event.record
            assert before < number and (start.parent_id, start.kind, start.nfe) == (row.parent_id, row.kind, row.nfe)
    assert not started


@pytest.mark.parametrize("strategy", ["lotts", "svdd", "mosaic"])
def test_events_do_not_depend_on_the_order_of_real_completion(strategy: str) -> None:
    one, other = (told(AnalyticPool(shuffle=shuffle), strategy=strategy, nfe=60, images=None) for shuffle in (1, 2))
    assert list(map(seen, one)) == list(map(seen, other))


def test_a_failed_trial_is_told() -> None:
    async def script(handle: Any) -> None:
        await handle.sample(0)
        await handle.sample(1)

    class Breaking(AnalyticPool):
        def submit(self, work: Any) -> Any:
            if getattr(work, "lineage", ()) != ("seed 1",):
                return super().submit(work)
            broken: Future[Any] = Future()
            broken.set_exception(Failure("broken"))
            return broken

    events = told(Breaking(), strategy=Scripted(script))
    (failed,) = [event for event in of(TrialFinished, events) if event.record.status == "failed"]
    assert failed.record.error == "broken" and failed.image is None


@pytest.mark.parametrize("strategy", ["lotts", "best-of-n", "svdd", "mosaic", "particle"])
def test_a_preview_changes_nothing_but_one_decoding(strategy: str) -> None:
    (plain,), (shown,) = (
        of(SearchEnded, told(AnalyticPool(), strategy=strategy, nfe=80, images=None, preview=preview))
        for preview in (False, True)
    )
    assert np.array_equal(plain.result.image, shown.result.image)
    columns = ("trial_id", "parent_id", "kind", "status", "nfe", "rows", "images", "scores", "score")
    assert [[getattr(t, c) for c in columns] for t in plain.result.trials] == [
        [getattr(t, c) for c in columns] for t in shown.result.trials
    ]
    assert shown.result.ledger.previews - plain.result.ledger.previews == (strategy in ("lotts", "best-of-n"))


def test_the_preview_is_the_prediction_of_the_first_trajectory() -> None:
    events = told(AnalyticPool(), strategy="best-of-n", images=3, steps=20, preview=True)
    (preview,) = of(Preview, events)
    assert (preview.step, preview.steps) == (4, 20)
    assert events.index(preview) < min(map(events.index, of(TrialFinished, events)))

    async def script(handle: Any) -> None:
        part = await handle.sample(0, stop=4)
        await handle.score(part, last=True)
        await handle.advance(part)

    (ended,) = of(SearchEnded, told(AnalyticPool(), strategy=Scripted(script), steps=20, images=3))
    (looked,) = [row for row in ended.result.trials if row.kind == "score" and row.previews]
    assert np.array_equal(preview.image, ended.result.images[looked.trial_id])


def test_an_error_of_the_listener_ends_the_search() -> None:
    def listen(event: Event) -> None:
        if isinstance(event, TrialFinished):
            raise ZeroDivisionError

    with AnalyticPool() as pool, pytest.raises(ZeroDivisionError):
        search("red star", pool=pool, images=9, on_event=listen)


def test_stream_yields_the_same_events() -> None:
    async def collect() -> list[Event]:
        return [event async for event in stream("red star", pool=pool, images=9)]

    with AnalyticPool() as pool:
        events = asyncio.run(collect())
    assert list(map(seen, events)) == list(map(seen, told(AnalyticPool())))


def test_stream_raises_what_the_search_raises() -> None:
    async def first() -> None:
        await anext(stream("", pool=pool))

    with AnalyticPool() as pool, pytest.raises(BadInput, match="prompt is empty"):
        asyncio.run(first())


def test_closing_the_iterator_cancels_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[BaseException] = []

    async def watched(*arguments: Any, **options: Any) -> Any:
        try:
            return await asearch(*arguments, **options)
        except Interrupted as interrupted:
            ended.append(interrupted)
            raise

    async def leave() -> None:
        events = stream("red star", pool=pool, nfe=100_000, strategy="best-of-n")
        async for event in events:
            if isinstance(event, NewBest):
                break
        await events.aclose()

    monkeypatch.setattr("lotts_search.api.asearch", watched)
    with AnalyticPool() as pool:
        asyncio.run(leave())
    assert len(ended) == 1


def test_a_strategy_that_is_refused_tells_nothing() -> None:
    events: list[Event] = []
    with AnalyticPool() as pool, pytest.raises(BadInput):
        search("red star", pool=pool, nfe=1, on_event=events.append)
    assert not events
