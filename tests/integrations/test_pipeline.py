"""The pipeline like those of diffusers: its images are those of searches, and no argument is ignored."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lotts_search import BadInput, SearchFailed, SearchPipeline, search
from lotts_search.core.trial_table import TrialRecord
from lotts_search.errors import Failure
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Segment
from tests.tiny import save, tiny_pipeline

PROMPT = "red star"


@pytest.fixture
def pipe() -> Iterator[SearchPipeline]:
    with AnalyticPool(shuffle=1) as pool:
        yield SearchPipeline(pool)


def alone(prompt: str = PROMPT, **arguments: Any) -> Any:
    """The same search by the search API."""
    with AnalyticPool() as pool:
        return search(prompt, pool=pool, **arguments)


def test_its_images_are_those_of_searches(pipe: SearchPipeline) -> None:
    output = pipe([PROMPT, "blue ring"], seed=5, nfe=40, num_images_per_prompt=2, negative_prompt=["a", "b"])
    expected = [
        alone(prompt, negative=negative, seed=seed, nfe=40)
        for seed, (prompt, negative) in enumerate([(PROMPT, "a")] * 2 + [("blue ring", "b")] * 2, 5)
    ]
    assert all(isinstance(image, Image.Image) for image in output.images)
    for image, result, other in zip(output.images, output.results, expected, strict=True):
        assert np.array_equal(np.asarray(image), other.image) and result.seed == other.seed
        assert (result.prompt, result.sampling, result.score) == (other.prompt, other.sampling, other.score)
        assert result.ledger.nfe == other.ledger.nfe


def test_arguments_reach_the_search(pipe: SearchPipeline) -> None:
    (result,) = pipe(
        PROMPT, num_inference_steps=4, guidance_scale=2.0, height=6, width=6, seed=1, images=2, seconds=60, target=5.0
    ).results
    other = alone(steps=4, guidance=2.0, seed=1, images=2, seconds=60, target=5.0)
    assert (result.sampling, result.budget, result.strategy) == (other.sampling, other.budget, "adaptive-mosaic")
    pipe = SearchPipeline(pipe.pool, strategy="best-of-n", settings={"n": 3})
    assert pipe(PROMPT, seed=1).results[0].ledger.images == 3


def test_output_types(pipe: SearchPipeline) -> None:
    images = pipe(PROMPT, seed=2, images=1, num_images_per_prompt=3, output_type="np").images
    assert images.shape == (3, 6, 6, 3) and images.dtype == np.float32
    assert np.array_equal((images[1] * 255).round().astype(np.uint8), alone(seed=3, images=1).image)
    assert pipe(PROMPT, seed=2, images=1)[0][0].size == (6, 6), "an output is a tuple too"


def test_a_seed_is_drawn_from_a_generator(pipe: SearchPipeline) -> None:
    def drawn(*generators: torch.Generator, count: int = 1) -> list[int]:
        given = generators[0] if len(generators) == 1 else list(generators)
        output = pipe(PROMPT, images=1, num_images_per_prompt=count, generator=given)
        return [result.seed for result in output.results]

    one = torch.Generator().manual_seed(7)
    first, second = drawn(one), drawn(one)
    again = torch.Generator().manual_seed(7)
    expected = [int(torch.randint(2**31, (), generator=again)) for _ in range(2)]
    assert [*first, *second] == expected and first != second
    assert drawn(torch.Generator().manual_seed(7), count=2) == [expected[0], expected[0] + 1]
    several = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    assert drawn(*several, count=2)[0] == expected[0]
    assert pipe(PROMPT, images=1).results[0].seed != pipe(PROMPT, images=1).results[0].seed, "random without a seed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_step": 4}, "did you mean 'num_inference_steps'"),
        ({"latents": 0}, "unknown argument of a search pipeline 'latents'.*Known: callback_on_step_end"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator exclude each other"),
        ({"generator": 3}, "must be a torch.Generator or a list"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"output_type": "latent"}, "unknown output_type 'latent'.*Known: np, pil"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of 1 or more, not 0"),
        ({"negative_prompt": ["a", "b"]}, "list of 1, one for each prompt, not a list of 2"),
        ({"height": 512}, "must be 6 and 6, not 512"),
        ({"guidance_scale": 0.0}, "guidance must be 1"),
        ({"num_inference_steps": 0}, "steps must be a whole number"),
        ({"nfe": 1}, "does not pay for one sample"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": " "}, "prompt is empty"),
        ({"callback_on_step_end": "print"}, "must be a function, not 'print'"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "Known: best_so_far, image, number, record, score"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_arguments_are_refused_before_any_work(
    pipe: SearchPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        pipe(**({"prompt": PROMPT} | arguments))
    assert not any(isinstance(work, Segment) for work in pipe.pool.asked)


def test_a_callback_is_called_after_each_trial(pipe: SearchPipeline) -> None:
    told: list[tuple[Any, int, float, dict[str, Any]]] = []

    def callback(*arguments: Any) -> Any:
        told.append(arguments)
        return arguments[3]

    pipe = SearchPipeline(pipe.pool, strategy="lotts")
    (result,) = pipe(PROMPT, seed=3, images=4, callback_on_step_end=callback).results
    assert [step for _, step, _, _ in told] == list(range(len(result.trials)))
    assert [(p, nfe) for p, _, nfe, _ in told] == [(pipe, trial.nfe_cum) for trial in result.trials]
    for trial, (*_, values) in zip(result.trials, told, strict=True):
        assert values["record"] is trial and values["number"] == 0
        assert (values["score"], values["best_so_far"]) == (trial.score, trial.best_so_far)
        assert trial.kind != "sample" or np.array_equal(values["image"], result.images[trial.trial_id])
    told.clear()
    names = ["score", "number"]
    pipe(PROMPT, images=1, num_images_per_prompt=2, callback_on_step_end=callback,
         callback_on_step_end_tensor_inputs=names)  # fmt: skip
    assert {values["number"] for *_, values in told} == {0, 1} and all(set(v) == set(names) for *_, v in told)
    assert [step for _, step, _, _ in told] == list(range(len(told))), "steps of all searches together"


def test_a_callback_cannot_change_a_search(pipe: SearchPipeline) -> None:
    def change(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> Any:
        return values | {"score": 1000.0}

    with pytest.raises(BadInput, match="a callback cannot change a search: it returned another score"):
        pipe(PROMPT, images=2, callback_on_step_end=change)


def test_a_callback_ends_searches_early(pipe: SearchPipeline) -> None:
    def stop(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> None:
        pipe._interrupt = timestep >= 100

    (result,) = pipe(PROMPT, seed=1, nfe=400, callback_on_step_end=stop).results
    whole = alone(seed=1, nfe=400)
    assert result.status == "interrupted" and 100 <= result.ledger.nfe < whole.ledger.nfe
    assert result.image is not None
    assert pipe(PROMPT, seed=1, nfe=40).results[0].status == "done", "the next call is not interrupted"


def test_one_failed_search_ends_all() -> None:
    def fail(work: Any) -> Exception | None:
        return Failure("broken") if isinstance(work, Segment) and "blue" in work.sampling.prompt else None

    with AnalyticPool(shuffle=1, fail=fail) as pool, pytest.raises(SearchFailed, match="broken") as failed:
        SearchPipeline(pool)([PROMPT, "blue ring"], images=9)
    assert failed.value.result.prompt == "blue ring"


def test_it_runs_in_a_notebook(pipe: SearchPipeline) -> None:
    async def notebook() -> Any:
        return pipe(PROMPT, seed=3, images=1).results[0]

    assert np.array_equal(asyncio.run(notebook()).image, alone(seed=3, images=1).image)


def test_a_folder_is_loaded_and_freed(tmp_path: Path) -> None:
    save(tiny_pipeline(), tmp_path)
    options: dict[str, Any] = {"verifier": "brisque", "strategy": "best-of-n", "device": "cpu"}
    pipe = SearchPipeline.from_pretrained(str(tmp_path), torch_dtype=torch.bfloat16, **options)
    assert '"dtype": "bfloat16"' in pipe.pool.info.loaded.replace("torch.", "")
    records: list[TrialRecord] = []

    def callback(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> None:
        records.append(values["record"])

    output = pipe("a red circle", num_inference_steps=2, images=2, callback_on_step_end=callback)
    assert output.images[0].size == pipe.pool.info.image[::-1] and output.results[0].verifier == "brisque"
    assert len([one for one in records if one.kind == "sample"]) == 2
    thread = pipe.pool._thread
    assert thread.is_alive()
    del pipe
    gc.collect()
    assert not thread.is_alive(), "the pool of a pipeline that is gone is closed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": "float64"}, "dtype must be float32, bfloat16 or float16"),
        ({"torch_dtype": "float16", "dtype": "float16"}, "torch_dtype and dtype are the same"),
        ({"safety_checker": None}, "unknown option of a model 'safety_checker'"),
        ({"device_map": "balanced"}, "device_map is not an option: spread=2 spreads a model"),
        ({"strategy": "lots"}, "did you mean 'lotts'"),
        ({"strategy": "lotts", "settings": {"refinement": 2}}, "did you mean 'refinements'"),
        ({"verifier": "brisk"}, "unknown verifier 'brisk'"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_loading(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lotts_search.registry.load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match=message):
        SearchPipeline.from_pretrained(**({"model": "shapes-sd"} | options))


def test_it_does_not_move(pipe: SearchPipeline) -> None:
    with pytest.raises(BadInput, match="stays where it was loaded"):
        pipe.to("cuda")
