"""The verifier ``http``: every score has the identity of its image."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_verifier
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.work.requests import Result, Score
from tests.serving import Server, serving

IMAGES = np.stack([np.full((6, 4, 3), level, np.uint8) for level in (10, 20, 30)])
PROMPTS = ["a", "bb", "ccc"]


def scored(asked: Any) -> Any:
    """The mean of an image plus the length of its prompt."""
    found = []
    for one in asked["images"]:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))
        found.append({"id": one["id"], "score": float(image.mean() + len(one["prompt"]))})
    return {"scores": found}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(scored) as state:
        yield state


class TestHttp(VerifierConformance):
    wrong = ({"url": "ftp://127.0.0.1"}, {"timeout": 0}, {"retries": -1}, {"batch": 0})

    @pytest.fixture(autouse=True)
    def serve(self, no_proxy: None) -> Iterator[None]:
        with serving(scored) as state:
            type(self).text = f"http:url={state.url}"
            yield

    def verifier(self) -> Verifier:
        return load_verifier(self.text)


def test_images_and_prompts_arrive_and_scores_return(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTS_VERIFIER_KEY", "secret")
    verifier = load_verifier(f"http:url={server.url}/score,batch=5")
    assert server.requests == [{"images": []}] and server.keys == ["Bearer secret"]
    assert verifier.score(PROMPTS, IMAGES).tolist() == [11, 22, 33]
    assert verifier.batch == 5  # type: ignore[attr-defined]


def test_scores_in_another_order_find_their_images(server: Server) -> None:
    server.answer = lambda asked: {"scores": scored(asked)["scores"][::-1]}
    assert load_verifier(f"http:url={server.url}").score(PROMPTS, IMAGES).tolist() == [11, 22, 33]


def change(edit: Callable[[list[Any]], object]) -> Callable[[Any], Any]:
    """Edit the scores of requests that hold the prompt ``bb``."""

    def answer(asked: Any) -> Any:
        found = scored(asked)["scores"]
        for place, one in enumerate(asked["images"]):
            if one["prompt"] == "bb":
                edit([found, place])
        return {"scores": found}

    return answer


def put(found: list[Any], **fields: Any) -> None:
    scores, place = found
    scores[place] |= fields


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it[0].pop(it[1]), "no scores for an image"),
        (lambda it: it[0].append(it[0][it[1]]), "2 scores for an image"),
        (lambda it: put(it, id="another"), "not sent: id another"),
        (lambda it: put(it, score=None), "None, which is not a finite number"),
        (lambda it: put(it, score="1"), "'1', which is not a finite number"),
        (lambda it: put(it, score=True), "True, which is not a finite number"),
        (lambda it: put(it, score=float("nan")), "nan, which is not a finite number"),
        (lambda it: it[0][it[1]].pop("id"), "must answer"),
    ],
)
def test_only_the_image_with_the_wrong_answer_fails(server: Server, edit: Any, message: str) -> None:
    verifier = load_verifier(f"http:url={server.url}")
    server.answer = change(edit)
    batcher = ScoreBatcher(verifier, 16)
    futures: list[Future[Result]] = [batcher.submit(Score("http", *one)) for one in zip(PROMPTS, IMAGES, strict=True)]
    batcher.tick()
    assert [futures[i].result(0).score for i in (0, 2)] == [11, 33]
    with pytest.raises(Failure, match=message):
        futures[1].result(0)


def test_an_unreachable_or_foreign_server_is_refused_at_load(server: Server) -> None:
    with pytest.raises(Failure, match="ConnectError"):
        load_verifier("http:url=http://127.0.0.1:9/score,retries=0")
    server.answer = lambda asked: 404
    with pytest.raises(Failure, match="status 404"):
        load_verifier(f"http:url={server.url}")
    server.answer = lambda asked: [1]
    with pytest.raises(Failure, match="must answer"):
        load_verifier(f"http:url={server.url}")
    with pytest.raises(BadInput, match="needs url"):
        load_verifier("http")


def test_temporary_errors_are_retried(server: Server) -> None:
    verifier = load_verifier(f"http:url={server.url},retries=2")
    answers = iter([503, 429])
    server.answer = lambda asked: next(answers, None) or scored(asked)
    assert verifier.score(PROMPTS[:1], IMAGES[:1]).tolist() == [11]
    assert len(server.requests) == 4
