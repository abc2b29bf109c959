from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.backbones.sdxl import StableDiffusionXL
from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput
from lotts_search.registry import load_backbone
from lotts_search.work.noise import draw
from lotts_search.work.requests import Sampling
from tests.flops import by_hooks
from tests.reference import pipeline_run, solver_of
from tests.tiny import run, sample, tiny_pipeline
from tests.tiny_xl import tiny_xl_backbone, tiny_xl_pipeline, xl_backbone_of

STEPS = 6
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-xl"
    tiny_xl_pipeline().save_pretrained(path, safe_serialization=True)
    return path


def pipeline_sample(pipeline: Any, sampling: Sampling, seed: int, **options: Any) -> Any:
    """Run diffusers' pipeline on the start and step noise of ``sample(seed, sampling)``."""
    lineage = (f"seed {seed}",)
    start = torch.from_numpy(draw(1, lineage, "start", 0, SHAPE))[None]
    options |= {"latents": start, "height": 32, "width": 32}
    return pipeline_run(pipeline, sampling, lineage, SHAPE, solver_of(pipeline, sampling.eta), **options)


@pytest.mark.parametrize(("prediction", "zero_empty"), [("epsilon", True), ("v_prediction", False)])
def test_whole_samples_equal_the_pipeline(prediction: str, zero_empty: bool) -> None:
    pipeline = tiny_xl_pipeline(prediction=prediction, zero_empty=zero_empty)
    settings = [
        Sampling("a red circle", STEPS, 1.0),
        Sampling("a red circle", STEPS, 5.0),
        Sampling("a blue star on the left", STEPS, 5.0, negative="bad quality"),
        Sampling("a blue star on the left", STEPS, 3.0, eta=0.0),
    ]
    results = run(Engine(xl_backbone_of(pipeline), 8), *(sample(seed, s) for seed, s in enumerate(settings)))
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        want = pipeline_sample(pipeline, sampling, seed, output_type="latent")[0].numpy()
        assert result.state is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())
    image = pipeline_sample(pipeline, settings[1], 1, output_type="np")[0]
    assert results[1].image is not None
    assert np.abs(results[1].image - image * 255).max() <= 0.51 + 0.05


def test_the_empty_prompt_is_zeros_only_if_the_model_sets_it() -> None:
    texts = ["", "a red circle"]
    for zero_empty in (True, False):
        pipeline = tiny_xl_pipeline(zero_empty=zero_empty)
        empty, other = xl_backbone_of(pipeline).encode_prompts(texts)
        assert bool((empty.text == 0).all() and (empty.pooled == 0).all()) is zero_empty
        want = pipeline.encode_prompt("a red circle", device="cpu", do_classifier_free_guidance=True)
        for got, wanted in zip((other.text, empty.text, other.pooled, empty.pooled), want, strict=True):
            assert torch.allclose(got, wanted[0], atol=1e-6)


def test_rows_of_a_call_may_differ_in_prompt_and_timestep() -> None:
    backbone = tiny_xl_backbone()
    latents = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([3.0, 500.0, 999.0])
    known = backbone.encode_prompts(["a red circle", "", "a blue star"])
    together = backbone.predict(latents, times, backbone.stack(known))
    for row in range(3):
        alone = backbone.predict(latents[row : row + 1], times[row : row + 1], backbone.stack(known[row : row + 1]))
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    assert known[0].time_ids.tolist() == [32, 32, 0, 0, 32, 32]


def test_a_saved_folder_gives_the_same_model(folder: Path) -> None:
    loaded = load_backbone(str(folder), device="cpu")
    assert isinstance(loaded, StableDiffusionXL) and loaded.zero_empty
    assert (loaded.info.latent, loaded.info.image, loaded.info.family) == (SHAPE, (32, 32), "stable-diffusion-xl")
    defaults = loaded.info.defaults
    assert (defaults.steps, defaults.guidance, defaults.t0, defaults.integrate) == (30, 5.5, 15, 3)
    work = sample(3, Sampling("a red circle", 3, 2.0))
    (a,), (b,) = run(Engine(loaded, 2), work), run(Engine(tiny_xl_backbone(), 2), work)
    assert a.image is not None and np.array_equal(a.image, b.image)


def test_another_size_is_passed_to_the_network(folder: Path) -> None:
    pipeline = tiny_xl_pipeline()
    backbone = load_backbone(str(folder), device="cpu", size=(48, 32))
    assert backbone.info.latent == (4, 12, 8) and backbone.info.image == (48, 32)
    sampling = Sampling("a star", 2, 2.0, eta=0.0)
    (result,) = run(Engine(backbone, 2), sample(0, sampling))
    start = torch.from_numpy(draw(1, ("seed 0",), "start", 0, (4, 12, 8)))[None]
    pipeline.scheduler = solver_of(pipeline, 0.0)
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline(
        "a star", height=48, width=32, num_inference_steps=2, guidance_scale=2.0, latents=start, output_type="latent"
    ).images[0]
    assert result.state is not None and np.abs(result.state.latent - want.numpy()).max() < 1e-4


def test_a_folder_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="StableDiffusionXLPipeline, not a StableDiffusionPipeline"):
        StableDiffusion.from_pretrained(str(folder), device="cpu")
    pipeline = tiny_pipeline()
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    with pytest.raises(BadInput, match="not an SDXL unet"):
        StableDiffusionXL("tiny", *parts, pipeline.text_encoder, pipeline.tokenizer, dict(pipeline.scheduler.config))


def test_flops_are_counted_with_the_text(folder: Path) -> None:
    unet = tiny_xl_pipeline().unet
    added = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}
    total = by_hooks(
        unet, lambda: unet(torch.zeros(1, *SHAPE), torch.zeros(1), torch.zeros(1, 16, 56), added_cond_kwargs=added)
    )
    assert tiny_xl_backbone().info.prices.row == total
