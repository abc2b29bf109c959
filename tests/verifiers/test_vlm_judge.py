"""The verifier ``vlm-judge`` and the mask source ``judged``, against a local endpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lotts_search.endpoints import judge as memory
from lotts_search.endpoints.judge import RUBRIC, criteria_of
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure
from lotts_search.localization.judged import judge_of
from lotts_search.registry import load_verifier
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.vlm_judge import VlmJudge
from lotts_search.work.masks import FusionMask, JudgedMask, QualityMask, mask_from_dict, mask_to_dict
from lotts_search.work.requests import Check, Locate, Result, Sampling
from tests.serving import Server, completion, serving
from tests.tiny import run, sample, tiny_backbone

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
BOX = {"box": [0, 500, 500, 1000], "reason": "the tail"}


def reply(*scores: float, problems: Any = (), names: Any = None) -> Any:
    rated = dict(zip(names or criteria_of(RUBRIC), scores, strict=True))
    return completion({"scores": rated, "problems": list(problems)})


def located(engine: Engine, work: Locate) -> Result:
    """Return the result of a localization, which another thread finishes."""
    future = engine.submit(work)
    while engine.tick():
        pass
    return future.result(timeout=30)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    memory._replies.clear()
    judge_of.cache_clear()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda asked: reply(10, 8, 6, 4, problems=[BOX])) as state:
        yield state


def judge(server: Server, settings: str = "") -> VlmJudge:
    found = load_verifier(f"vlm-judge:base_url={server.url}{settings}")
    assert isinstance(found, VlmJudge)
    return found


class TestVlmJudge(VerifierConformance):
    wrong = (
        {"base_url": "localhost"},
        {"rubric": "no-such-file.txt"},
        {"side": 0},
        {"parallel": 0},
        {"timeout": 0},
    )

    @pytest.fixture(autouse=True)
    def serve(self, fresh: None) -> Iterator[None]:
        with serving(lambda asked: reply(*[len(asked["messages"][0]["content"][0]["text"]) % 11] * 4)) as state:
            type(self).text = f"vlm-judge:base_url={state.url}"
            yield

    def verifier(self) -> Verifier:
        return load_verifier(self.text)


def test_the_score_is_the_mean_of_the_criteria(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTS_JUDGE_KEY", "secret")
    found = judge(server)
    assert found.score(["a red fox"], IMAGE).tolist() == [pytest.approx(0.7)]
    (asked,) = server.requests
    assert set(server.keys) == {"Bearer secret"} and asked["model"] == "first-model" and asked["temperature"] == 0
    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["scores", "problems"]
    assert schema["properties"]["scores"]["required"] == ["objects", "attributes", "relations", "quality"]
    text, image = asked["messages"][0]["content"]
    assert "a red fox" in text["text"] and image["image_url"]["url"].startswith("data:image/png;base64,")
    assert found.judge.ask("a red fox", IMAGE[0]).problems[0].box == (0, 0.5, 0.5, 1)


def test_one_image_is_judged_once_per_prompt_and_settings(server: Server) -> None:
    repeated = np.concatenate([IMAGE] * 3)
    judge(server).score(["a", "a", "b"], repeated)
    judge(server).score(["b"], IMAGE)
    assert len(server.requests) == 2
    judge(server, ",boxes=no").score(["a"], IMAGE)
    assert len(server.requests) == 3 and "problems" not in json.dumps(server.requests[2])


def test_a_failed_judgement_is_asked_again_later(server: Server) -> None:
    found, good = judge(server, ",retries=0"), server.answer
    server.answer = lambda asked: 500
    with pytest.raises(Failure, match="status 500"):
        found.score(["a"], IMAGE)
    server.answer = good
    assert found.score(["a"], IMAGE).tolist() == [pytest.approx(0.7)]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (completion("It is fine."), "no JSON object"),
        (reply(1, names=["objects"]), "exactly the criteria"),
        (reply(1, 2, 3, 11), "the score of quality must be a number 0 to 10, not 11"),
        (reply(1, 2, 3, "4"), "not '4'"),  # type: ignore[arg-type]
        (reply(1, 2, 3, 4, problems=[{"box": [0, 0, 1]}]), "four numbers"),
        (reply(1, 2, 3, 4, problems=[{"box": [9, 0, 1, 1]}]), "left, top, right, bottom"),
        (reply(1, 2, 3, 4, problems=[{"box": [0, 0, 1, 1001]}]), "an edge of a box must be a number 0 to 1000"),
    ],
)
def test_a_wrong_reply_is_asked_for_once_more(server: Server, bad: Any, problem: str) -> None:
    good = server.answer
    server.answer = lambda asked: bad if len(asked["messages"]) == 1 else good(asked)
    assert judge(server).score(["a"], IMAGE).tolist() == [pytest.approx(0.7)]
    assert problem in server.requests[1]["messages"][2]["content"]
    server.answer = lambda asked: bad
    with pytest.raises(Failure, match="twice gave no judgement"):
        judge(server).score(["b"], IMAGE)


def test_an_endpoint_without_schemas_is_asked_without(server: Server) -> None:
    server.answer = lambda asked: 400 if "response_format" in asked else reply(5, 5, 5, 5)
    assert judge(server).score(["a"], IMAGE).tolist() == [0.5]


def test_a_rubric_of_the_user_replaces_the_criteria(server: Server, tmp_path: Any) -> None:
    server.answer = lambda asked: reply(3, names=["mood"])
    file = tmp_path / "rubric.txt"
    file.write_text("- mood: it is gloomy\n\n")
    for rubric in ("mood: it is gloomy", str(file)):
        memory._replies.clear()
        assert judge(server, f",rubric={rubric}").score(["a"], IMAGE).tolist() == [pytest.approx(0.3)]
    with pytest.raises(BadInput, match="each name once"):
        criteria_of("a: b\na: c")


def test_the_probability_of_yes(server: Server) -> None:
    tokens = [("Yes", 0.5), (" yes", 0.25), ("No", 0.125)]
    top = [{"token": token, "logprob": math.log(chance)} for token, chance in tokens]
    logged = completion("Yes")
    server.answer = lambda asked: {
        "choices": [{**logged["choices"][0], "logprobs": {"content": [{"top_logprobs": top}]}}]
    }
    assert judge(server, ",mode=yes-probability").score(["a fox"], IMAGE).tolist() == [0.75]
    asked = server.requests[0]
    assert asked["logprobs"] and asked["max_tokens"] == 1
    assert asked["messages"][0]["content"][0]["text"] == 'Does this image show "a fox"? Please answer yes or no.'
    top[:] = [{"token": "Maybe", "logprob": 0.0}]
    with pytest.raises(Failure, match="neither yes nor no"):
        judge(server, ",mode=yes-probability").score(["a hen"], IMAGE)
    server.answer = lambda asked: completion("Yes")
    with pytest.raises(BadInput, match="needs log-probabilities"):
        judge(server, ",mode=yes-probability").score(["a cat"], IMAGE)


def test_an_unreachable_endpoint_is_refused_at_load() -> None:
    with pytest.raises(Failure, match="ConnectError"):
        load_verifier("vlm-judge:base_url=http://127.0.0.1:9/v1,retries=0,model=m")


def test_boxes_become_a_mask_and_the_judge_of_the_search_is_not_asked_twice(server: Server) -> None:
    backbone = tiny_backbone()
    sampling = Sampling("a red circle", 4, 3.0)
    engine = Engine(backbone, 2)
    (result,) = run(engine, sample(0, sampling))
    assert result.state is not None and result.image is not None
    source = JudgedMask(0.25, f"vlm-judge:base_url={server.url}", smooth=0)
    judge(server).score([sampling.prompt], result.image[None])
    assert len(server.requests) == 1
    work = Locate(5, ("seed 0",), result.state, sampling, source, result.image)
    answer = located(engine, work)
    assert len(server.requests) == 1 and answer.located is not None and answer.usage.nfe == 0
    height, width = backbone.info.latent[1:]
    expected = np.zeros((height, width), bool)
    expected[height // 2 :, : width // 2] = True
    assert np.array_equal(answer.located.mask, expected)
    fused = FusionMask(0.25, (source, QualityMask()), (1.0, 0.0))
    answer = located(engine, Locate(5, ("seed 0",), result.state, sampling, fused, result.image))
    assert answer.located is not None and np.array_equal(answer.located.mask, expected)


def test_what_cannot_judge_a_mask_is_refused_before_the_search(server: Server) -> None:
    engine, sampling = Engine(tiny_backbone(), 2), Sampling("a red circle", 4, 3.0)
    for text, message in [
        ("vlm-judg", "did you mean 'vlm-judge'"),
        (f"vlm-judge:base_url={server.url},boxes=no", "boxes=true"),
        ("vlm-judge:base_url=http://127.0.0.1:9/v1,retries=0", "cannot be used"),
        ("vlm-judge:sides=3", "did you mean 'side'"),
    ]:
        with pytest.raises(BadInput, match=message):
            run(engine, Check(sampling, "", JudgedMask(judge=text)))
    run(engine, Check(sampling, "", JudgedMask(judge=f"vlm-judge:base_url={server.url}")))
    assert server.requests == []
    assert mask_from_dict(mask_to_dict(JudgedMask(0.3))) == JudgedMask(0.3)
