"""The thread that runs an engine."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotts_search.actors.engine_thread import EngineBroken, EngineThread, Tickable
from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Result
from tests.actors.fakes import INFO, FakeEngine, segment


def start(begun: Path | None = None) -> EngineThread:
    return EngineThread("h", lambda: (FakeEngine(4, begun), INFO))


def test_new_work_joins_while_other_work_runs(tmp_path: Path) -> None:
    thread = start()
    held = thread.submit(segment(0, prompt=f"hold {tmp_path / 'go'}"))
    assert thread.submit(segment(1)).result(30).actor == "h"  # arrives although the first is still running
    assert not held.done()
    (tmp_path / "go").touch()
    assert held.result(30).usage.nfe == 6
    thread.close()


def test_a_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    thread = start()
    together = [thread.submit(segment(i)) for i in range(9)]
    latents = [f.result(30).state for f in together]
    alone = start().submit(segment(4)).result(30).state
    assert alone is not None and latents[4] is not None
    assert np.array_equal(alone.latent, latents[4].latent)


def test_a_cancelled_task_stops_in_the_engine(tmp_path: Path) -> None:
    """The engine advances one task at a time, so the second ends only if the first stops."""
    thread = EngineThread("h", lambda: (FakeEngine(1, tmp_path), INFO))
    held = thread.submit(segment(0, prompt=f"hold {tmp_path / 'never'}"))
    while not any(tmp_path.iterdir()):
        time.sleep(0.001)
    assert held.cancel()
    assert thread.submit(segment(1)).result(30).usage.nfe == 6
    thread.close()


def test_a_task_fails_alone_and_keeps_its_error_type() -> None:
    thread = start()
    bad, nan, good = (thread.submit(segment(0, prompt=prompt)) for prompt in ("", "nan", "fine"))
    with pytest.raises(BadInput, match="prompt is empty"):
        bad.result(30)
    with pytest.raises(Failure, match="NaN latents"):
        nan.result(30)
    assert good.result(30).started > 0


def test_a_broken_engine_fails_all_tasks_and_accepts_no_more(tmp_path: Path) -> None:
    thread = start()
    held = thread.submit(segment(0, prompt=f"hold {tmp_path / 'never'}"))
    with pytest.raises(EngineBroken, match="RuntimeError: device lost"):
        thread.submit(segment(1, prompt="break")).result(30)
    with pytest.raises(EngineBroken, match="device lost"):
        held.result(30)
    with pytest.raises(EngineBroken, match="device lost"):
        thread.submit(segment(2)).result(30)


def test_a_device_error_breaks_the_engine_although_one_task_reports_it() -> None:
    class AcceleratorError(RuntimeError):
        """Has the name of torch's class."""

    class Doomed(FakeEngine):
        def submit(self, work: Any) -> Future[Result]:
            future: Future[Result] = Future()
            failure = Failure("model fake failed")
            failure.__cause__ = AcceleratorError("illegal access")
            future.set_exception(failure)
            return future

    with pytest.raises(EngineBroken, match="AcceleratorError: illegal access"):
        EngineThread("h", lambda: (Doomed(4, None), INFO)).submit(segment(0)).result(30)


@pytest.mark.parametrize("error", [BadInput("no such folder"), OSError("disk gone")])
def test_a_failed_build_reports_its_reason(error: Exception) -> None:
    def factory() -> tuple[Tickable, Any]:
        raise error

    with pytest.raises((BadInput, Failure), match=str(error)) as caught:
        EngineThread("h", factory).ready.result(30)
    assert isinstance(error, BadInput) == isinstance(caught.value, BadInput)


def test_an_engine_that_refuses_a_task_fails_that_task_only() -> None:
    class Picky(FakeEngine):
        def submit(self, work: Any) -> Future[Result]:
            if work is None:
                raise TypeError("not a task")
            return super().submit(work)

    thread = EngineThread("h", lambda: (Picky(4, None), INFO))
    with pytest.raises(Failure, match="TypeError: not a task"):
        thread.submit(None).result(30)
    assert thread.submit(segment(0)).result(30).usage.nfe == 6
