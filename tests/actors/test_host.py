"""The thread that drives an engine."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotts_search.actors.host import EngineBroken, Host, Ticking
from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Result
from tests.actors.fakes import INFO, FakeEngine, segment


def host(begun: Path | None = None) -> Host:
    return Host("h", lambda: (FakeEngine(4, begun), INFO))


def test_new_work_joins_while_other_work_runs(tmp_path: Path) -> None:
    mine = host()
    held = mine.submit(segment(0, prompt=f"hold {tmp_path / 'go'}"))
    assert mine.submit(segment(1)).result(30).actor == "h"  # arrives although the first is still running
    assert not held.done()
    (tmp_path / "go").touch()
    assert held.result(30).usage.nfe == 6
    mine.close()


def test_an_answer_does_not_depend_on_its_company() -> None:
    mine = host()
    together = [mine.submit(segment(i)) for i in range(9)]
    latents = [f.result(30).state for f in together]
    alone = host().submit(segment(4)).result(30).state
    assert alone is not None and latents[4] is not None
    assert np.array_equal(alone.latent, latents[4].latent)


def test_a_work_fails_alone_and_with_its_own_type() -> None:
    mine = host()
    bad, nan, good = (mine.submit(segment(0, prompt=prompt)) for prompt in ("", "nan", "fine"))
    with pytest.raises(BadInput, match="prompt is empty"):
        bad.result(30)
    with pytest.raises(Failure, match="NaN latents"):
        nan.result(30)
    assert good.result(30).started > 0


def test_a_broken_engine_gives_up_all_work_and_takes_no_more(tmp_path: Path) -> None:
    mine = host()
    held = mine.submit(segment(0, prompt=f"hold {tmp_path / 'never'}"))
    with pytest.raises(EngineBroken, match="RuntimeError: device lost"):
        mine.submit(segment(1, prompt="break")).result(30)
    with pytest.raises(EngineBroken, match="device lost"):
        held.result(30)
    with pytest.raises(EngineBroken, match="device lost"):
        mine.submit(segment(2)).result(30)


def test_an_error_of_the_device_breaks_the_engine_although_it_is_told_of_one_work() -> None:
    class AcceleratorError(RuntimeError):
        """Of the name of torch's own."""

    class Doomed(FakeEngine):
        def submit(self, work: Any) -> Future[Result]:
            future: Future[Result] = Future()
            failure = Failure("model fake failed")
            failure.__cause__ = AcceleratorError("illegal access")
            future.set_exception(failure)
            return future

    with pytest.raises(EngineBroken, match="AcceleratorError: illegal access"):
        Host("h", lambda: (Doomed(4, None), INFO)).submit(segment(0)).result(30)


@pytest.mark.parametrize("error", [BadInput("no such folder"), OSError("disk gone")])
def test_what_cannot_be_built_says_why(error: Exception) -> None:
    def factory() -> tuple[Ticking, Any]:
        raise error

    with pytest.raises((BadInput, Failure), match=str(error)) as caught:
        Host("h", factory).ready.result(30)
    assert isinstance(error, BadInput) == isinstance(caught.value, BadInput)


def test_an_engine_that_refuses_a_work_fails_that_work_only() -> None:
    class Picky(FakeEngine):
        def submit(self, work: Any) -> Future[Result]:
            if work is None:
                raise TypeError("not a work")
            return super().submit(work)

    mine = Host("h", lambda: (Picky(4, None), INFO))
    with pytest.raises(Failure, match="TypeError: not a work"):
        mine.submit(None).result(30)
    assert mine.submit(segment(0)).result(30).usage.nfe == 6
