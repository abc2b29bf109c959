"""Generations and edits with the official client, against a real server over the analytic model."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shlex
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import openai
import pytest
from PIL import Image

from lotts_search import search
from lotts_search.core.events import NewBest, TrialFinished
from lotts_search.serve.shown import Partials
from lotts_search.testing import AnalyticPool
from tests.serve.running import PROMPT, Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def pixels(b64: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def alone(**arguments: Any) -> Any:
    """The same search without a server."""
    with AnalyticPool() as pool:
        return search(PROMPT, pool=pool, **arguments)


def test_an_image_is_that_of_the_search(server: Running) -> None:
    answer = server.openai().images.generate(model="analytic", prompt=PROMPT, quality="medium", extra_body={"seed": 3})
    result = alone(seed=3, images=9)
    (image,) = answer.data
    assert np.array_equal(pixels(image.b64_json), result.image)
    assert image.score == result.score and image.seed == 3
    assert (answer.quality, answer.size, answer.output_format) == ("medium", "6x6", "png")
    assert (answer.usage.nfe, answer.usage.images) == (result.ledger.nfe, result.ledger.images)
    assert answer.usage.flops == result.ledger.flops and answer.usage.total_tokens == 0


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"quality": "low"}, {"images": 1}),
        ({}, {"images": 9}),
        ({"quality": "hd"}, {"images": 36}),
        ({"budget": 2}, {"images": 2}),
        ({"images": 3}, {"images": 3}),
        ({"nfe": 40}, {"nfe": 40}),
        ({"nfe": 40, "quality": "auto"}, {"nfe": 40}),
        ({"nfe": 40, "images": 2}, {"nfe": 40, "images": 2}),
    ],
)
def test_a_quality_or_a_budget_decides_the_cost(
    server: Running, fields: dict[str, Any], budget: dict[str, Any]
) -> None:
    answer = server.generate(seed=1, **fields).json()
    assert answer["usage"]["nfe"] == alone(seed=1, **budget).ledger.nfe
    words = shlex.split(answer["data"][0]["recipe"])
    given = {word[2:]: value for word, value in itertools.pairwise(words) if word in ("--nfe", "--images")}
    assert {name: float(value) for name, value in given.items()} == budget


def test_flops_are_a_budget(server: Running) -> None:
    answer = server.generate(seed=1, flops=4e14, priced_as="sdxl").json()
    result = alone(seed=1, nfe=29, flops=4e14, as_="sdxl")  # no more steps than FLOPs pay for: 2 rows of 6.76e12 each
    assert answer["usage"]["flops"] == result.ledger.flops <= 4e14 and answer["usage"]["nfe"] == result.ledger.nfe
    assert "--flops 400000000000000" in answer["data"][0]["recipe"] and "--as sdxl" in answer["data"][0]["recipe"]
    refused = server.generate(flops=4e14, priced_as="sd3").json()["error"]["message"]
    assert "unknown price list 'sd3'" in refused and "sdxl+tiny" in refused


def test_the_header_is_a_budget(server: Running) -> None:
    answer = server.http.post(
        "/v1/images/generations", json={"prompt": PROMPT, "seed": 1}, headers={"X-ITS-Budget": "4"}
    ).json()
    assert answer["usage"]["nfe"] == alone(seed=1, images=4).ledger.nfe and "quality" not in answer


def test_a_recipe_names_all_that_was_asked(server: Running) -> None:
    answer = server.generate(
        seed=5, strategy="lotts", settings={"refinements": 3, "mask": {"kind": "random", "ratio": 0.25}}, nfe=60,
        num_inference_steps=4, guidance_scale=2.0, negative_prompt="blue", target=2.0,
    ).json()  # fmt: skip
    assert shlex.split(answer["data"][0]["recipe"]) == [
        "lotts-search", "generate", PROMPT, "--model", "analytic", "--strategy", "lotts", "--verifier", "shapes-reward",
        "--nfe", "60.0", "--target", "2.0", "--seed", "5", "--steps", "4", "--guidance", "2.0", "--negative", "blue",
        "--set", "refinements=3", "--set", 'mask={"kind": "random", "ratio": 0.25}',
    ]  # fmt: skip


def test_n_images_have_consecutive_seeds(server: Running) -> None:
    answer = server.openai().images.generate(model="analytic", prompt=PROMPT, n=3, extra_body={"seed": 7, "nfe": 30})
    assert [image.seed for image in answer.data] == [7, 8, 9]
    for image in answer.data:
        assert np.array_equal(pixels(image.b64_json), alone(seed=image.seed, nfe=30).image)
    assert answer.usage.nfe == sum(alone(seed=seed, nfe=30).ledger.nfe for seed in (7, 8, 9))


def test_without_a_seed_one_is_drawn_and_named(server: Running) -> None:
    first, second = (server.generate(nfe=30).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert np.array_equal(pixels(first["b64_json"]), alone(seed=first["seed"], nfe=30).image)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(server: Running, format: str) -> None:
    answer = server.generate(output_format=format, nfe=20, response_format="url").json()
    head, _, data = answer["data"][0]["url"].partition(",")
    assert head == f"data:image/{format};base64" and "b64_json" not in answer["data"][0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == format.upper()


def test_nulls_count_as_absent(server: Running) -> None:
    fields = ("model", "n", "size", "quality", "background", "output_format", "output_compression", "response_format",
              "stream", "partial_images", "user", "nfe", "images", "settings", "strategy")  # fmt: skip
    answer = server.generate(seed=1, **dict.fromkeys(fields))
    assert answer.status_code == 200 and answer.json()["usage"]["nfe"] == alone(seed=1, images=9).ledger.nfe


def test_a_stream_shows_the_best_so_far(server: Running) -> None:
    events = list(
        server.openai().images.generate(
            model="analytic",
            prompt=PROMPT,
            stream=True,
            partial_images=3,
            extra_body={"nfe": 200, "seed": 2, "strategy": "lotts"},
        )
    )
    result = alone(seed=2, nfe=200, strategy="lotts")
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * (len(events) - 1)
    assert events[-1].type == "image_generation.completed" and 3 <= len(events) <= 4
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    assert all(event.size == "6x6" and event.quality == "auto" and event.created_at for event in events)
    last = events[-1]
    assert np.array_equal(pixels(last.b64_json), result.image) and last.usage.nfe == result.ledger.nfe
    assert "--nfe 200.0" in last.recipe and last.seed == 2 and last.status == "done"
    made = [image.tobytes() for image in result.images.values()]
    assert all(pixels(event.b64_json).tobytes() in made for event in events[1:-1])


def test_predictions_are_shown_until_an_image_is_finished() -> None:
    first, second, third, best, late = (np.full((1, 1, 3), value, np.uint8) for value in range(5))

    def finished(image: Any, spent: float) -> TrialFinished:
        return TrialFinished(cast(Any, None), image, spent)

    shown = Partials(3)
    assert shown.choose(finished(first, 0.1)) is first and shown.choose(finished(second, 0.2)) is None
    assert shown.choose(finished(None, 0.4)) is None and shown.choose(finished(third, 0.4)) is third
    assert shown.choose(NewBest("a", 1.0, best, 0.5)) is None, "the next is due at two thirds of the budget"
    assert shown.choose(finished(late, 0.7)) is None, "a finished image is not followed by predictions"
    assert shown.choose(NewBest("b", 2.0, late, 0.8)) is late and shown.choose(NewBest("c", 3.0, best, 0.9)) is None


@pytest.mark.parametrize("wanted", [None, 0, 1])
def test_a_stream_has_at_most_as_many_partial_images_as_asked(server: Running, wanted: int | None) -> None:
    events = server.openai().images.generate(model="analytic", prompt=PROMPT, stream=True, partial_images=wanted)
    assert [event.type for event in events][:-1] == ["image_generation.partial_image"] * (wanted or 0)


def told(server: Running, **fields: Any) -> list[dict[str, Any]]:
    answer = server.generate(stream=True, events=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines]


def test_events_tell_the_whole_search(server: Running) -> None:
    events = told(server, seed=4, images=9)
    result = alone(seed=4, images=9)
    finished = [event for event in events if event["type"] == "search.trial_finished"]
    assert [(e["trial"], e["parent"], e["kind"], e["score"], e["nfe_cum"]) for e in finished] == [
        (t.trial_id, t.parent_id, t.kind, t.score, t.nfe_cum) for t in result.trials
    ]
    assert [e["trial"] for e in events if e["type"] == "search.mask_found"] == list(result.located)
    assert events[0]["type"] == "search.started" and events[0]["budget"]["images"] == 9
    assert [e for e in events if e["type"] == "search.new_best"][-1]["score"] == result.score
    assert {e["image"][:22] for e in finished if e["image"]} == {"data:image/webp;base64"}


def test_an_error_before_the_start_is_no_stream(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="does not pay for one sample"):
        server.openai().images.generate(model="analytic", prompt=PROMPT, stream=True, extra_body={"nfe": 1})


def test_an_error_after_the_start_is_an_event() -> None:
    from lotts_search.errors import Failure
    from lotts_search.work.requests import Segment

    broken = AnalyticPool(shuffle=1, fail=lambda work: Failure("broken") if isinstance(work, Segment) else None)
    with running(broken) as server:
        with pytest.raises(openai.APIError, match=r"no image was finished.*broken"):
            list(server.openai().images.generate(model="analytic", prompt=PROMPT, stream=True))
        assert server.generate().status_code == 500


IMAGE = np.arange(108, dtype=np.uint8).reshape(6, 6, 3)


def test_an_edit_refines_the_image(server: Running) -> None:
    answer = server.openai().images.edit(
        model="analytic", image=("a.png", png(IMAGE)), prompt=PROMPT, extra_body={"seed": 1, "nfe": 40}
    )
    result = alone(seed=1, nfe=40, image=IMAGE)
    assert np.array_equal(pixels(answer.data[0].b64_json), result.image)
    assert shlex.split(answer.data[0].recipe)[:5] == ["lotts-search", "refine", "image.png", "--prompt", PROMPT]


def test_an_edit_streams_with_the_official_client(server: Running) -> None:
    events = server.openai().images.edit(
        model="analytic", image=[("a.png", png(IMAGE))], prompt=PROMPT, stream=True, partial_images=1
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_notes_say_what_was_converted(server: Running) -> None:
    files = {"image": ("a.png", png(np.zeros((12, 12, 3), np.uint8)))}
    answer = server.http.post("/v1/images/edits", data={"prompt": PROMPT, "nfe": "20"}, files=files).json()
    assert answer["notes"] == ["the image: 12x12 resampled to 6x6"]
    assert server.generate(nfe=20).json()["notes"] == []


def test_models_and_strategies_are_listed(server: Running) -> None:
    (card,) = server.openai().models.list().data
    assert card.id == "analytic" and card.size == "6x6" and card.steps == 8 and card.verifiers == ["shapes-reward"]
    assert server.openai().models.retrieve("analytic") == card
    with pytest.raises(openai.NotFoundError, match="not served here"):
        server.openai().models.retrieve("gpt-image-2")
    cards = {card["id"]: card for card in server.http.get("/v1/strategies").json()["data"]}
    assert cards["lotts"]["takes_image"] and not cards["best-of-n"]["takes_image"]
    assert "refinements" in [setting["name"] for setting in cards["lotts"]["settings"]]


def test_health_and_metrics(server: Running) -> None:
    assert server.http.get("/healthz").status_code == server.http.get("/readyz").status_code == 200
    server.generate(nfe=20)
    text = server.http.get("/metrics").text
    assert 'lotts_requests_total{path="/v1/images/generations",status="200"}' in text
    assert 'lotts_nfe_total{key="everyone",model="analytic",strategy="lotts"}' in text
    assert "lotts_searches_running 0.0" in text and 'lotts_work_waiting{model="analytic"} 0.0' in text
