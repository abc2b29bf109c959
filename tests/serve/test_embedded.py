"""The server over shapes-sd: masks, recipes, and what requests do to each other."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotts_search.cli import main
from lotts_search.serve.config import Config
from lotts_search.serve.service import local_pools
from tests.serve.running import Running, running

PROMPT = "top left red circle, top blue star, left pink cross, center yellow square, right green ring, bottom cyan diamond on gray"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    (pool,) = local_pools(Config()).values()
    with running(pool) as found:
        yield found


def decoded(data: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_recipe_reproduces_the_image(server: Running, tmp_path: Path) -> None:
    settings = {"refinements": 1, "mask": {"kind": "random", "ratio": 0.25}}
    fields = {"strategy": "lotts", "images": 2, "num_inference_steps": 3, "settings": settings}
    (image,) = server.generate(prompt=PROMPT, seed=5, **fields).json()["data"]
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(image["recipe"])[1:], "--local", "--out", str(tmp_path)])
    assert end.value.code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "best.png")), decoded(image["b64_json"]))


@pytest.mark.parametrize("form", ["mask", "mask_image"])
def test_a_mask_says_what_is_resampled(server: Running, form: str) -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    marked = np.zeros((64, 64), bool)
    marked[:16, 32:] = True
    if form == "mask":  # OpenAI's: transparent = resampled
        data = png(np.dstack([image, np.where(marked, 0, 255).astype(np.uint8)]))
    else:
        data = png(np.where(marked, 255, 0).astype(np.uint8))
    files = {"image": ("a.png", png(image)), form: ("b.png", data)}
    fields = {"prompt": PROMPT, "seed": "1", "images": "1", "stream": "true", "events": "true"}
    answer = server.http.post("/v1/images/edits", data=fields, files=files)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    (found,) = [event for event in events if event["type"] == "search.mask_found"]
    mask = decoded(found["mask"].partition(",")[2])
    assert np.array_equal(np.kron(mask, np.ones((64 // len(mask),) * 2, bool)), marked)
    assert events[-1]["type"] == "image_edit.completed" and "--mask mask.png" in events[-1]["recipe"]


def test_requests_at_once_get_the_images_that_they_get_alone(server: Running) -> None:
    """Different prompts, seeds, strategies and steps in the same batches."""
    asked = [
        {"prompt": PROMPT, "seed": seed, "images": 1 + seed % 2, "strategy": strategy, "num_inference_steps": steps}
        for seed, (strategy, steps) in enumerate([("lotts", 3), ("best-of-n", 2), ("svdd", 2), ("best-of-n", 3)] * 2)
    ]
    alone = [server.generate(**fields).json() for fields in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda fields: server.generate(**fields).json(), asked))
    for one, other in zip(alone, together, strict=True):
        assert one["data"] == other["data"]
        assert one["usage"]["nfe"] == other["usage"]["nfe"]


def test_a_prompt_that_is_cut_is_noted(server: Running) -> None:
    long = PROMPT + ", center big green star" * 30
    answer = server.generate(prompt=long, images=1, num_inference_steps=1).json()
    assert any("does not read the end of the prompt" in note for note in answer["notes"]), answer["notes"]
