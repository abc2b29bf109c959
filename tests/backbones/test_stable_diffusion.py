from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure
from lotts_search.work.masks import ErrorContrastMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Encode, Sampling
from tests.flops import by_hooks
from tests.tiny import backbone_of, run, sample, save, tiny_pipeline

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_pipeline(), tmp_path_factory.mktemp("models") / "tiny")


def pipeline_latents(pipeline: StableDiffusionPipeline, sampling: Sampling, seed: int, **options: Any) -> Any:
    """Run diffusers' pipeline on the start and step noise of ``sample(seed, sampling)``."""
    algorithm = "sde-dpmsolver++" if sampling.eta else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type=algorithm, solver_order=2, final_sigmas_type="zero"
    )
    plain, shape, lineage = scheduler.step, (4, 8, 8), (f"seed {seed}",)

    def step(output: Tensor, timestep: Tensor, latents: Tensor, **rest: Any) -> Any:
        index = scheduler.step_index or 0
        rest["variance_noise"] = torch.from_numpy(draw(1, lineage, "step", index, shape))[None]
        return plain(output, timestep, latents, **rest)

    scheduler.step = step
    pipeline.scheduler, before = scheduler, pipeline.scheduler
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        sampling.prompt,
        negative_prompt=sampling.negative or None,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        latents=torch.from_numpy(draw(1, lineage, "start", 0, shape))[None],
        **options,
    ).images
    pipeline.scheduler = before
    return result


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_whole_samples_equal_the_pipeline(prediction: str) -> None:
    pipeline = tiny_pipeline(prediction=prediction)
    settings = [
        Sampling("a red circle", STEPS, 1.0),
        Sampling("a red circle", STEPS, 5.0),
        Sampling("a blue star on the left", STEPS, 5.0, negative="bad quality"),
        Sampling("a blue star on the left", STEPS, 3.0, eta=0.0),
    ]
    results = run(Engine(backbone_of(pipeline), 4), *(sample(seed, s) for seed, s in enumerate(settings)))
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        want = pipeline_latents(pipeline, sampling, seed, output_type="latent")[0].numpy()
        assert result.state is not None and result.image is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())
    image = pipeline_latents(pipeline, settings[1], 1, output_type="np")[0]
    assert results[1].image is not None
    assert np.abs(results[1].image - image * 255).max() <= 0.51 + 0.05


def test_a_saved_folder_gives_the_same_model(folder: Path) -> None:
    loaded = StableDiffusion.from_pretrained(str(folder), device="cpu", name="mine")
    direct = backbone_of(tiny_pipeline())
    assert loaded.info.name == "mine"
    assert (loaded.info.latent, loaded.info.image, loaded.info.family) == ((4, 8, 8), (32, 32), "stable-diffusion")
    work = sample(3, Sampling("a red circle", 3, 2.0))
    (a,), (b,) = run(Engine(loaded, 2), work), run(Engine(direct, 2), work)
    assert a.image is not None and np.array_equal(a.image, b.image)


def test_long_prompts_are_truncated_as_by_the_pipeline(folder: Path) -> None:
    pipeline = tiny_pipeline()
    backbone = backbone_of(pipeline)
    long = "a red circle and " * 9
    got = backbone.encode_prompts([long, ""])
    want, empty = pipeline.encode_prompt(long, "cpu", 1, True)
    assert torch.allclose(got[0], want[0], atol=1e-6) and torch.allclose(got[1], empty[0], atol=1e-6)
    assert len(backbone.tokens(long)) == 14
    assert backbone.tokens("a red circle") == backbone.tokenizer("a red circle").input_ids[1:-1]


def test_other_sizes(folder: Path) -> None:
    backbone = StableDiffusion.from_pretrained(str(folder), device="cpu", size=(48, 32))
    assert backbone.info.latent == (4, 12, 8) and backbone.info.image == (48, 32)
    (result,) = run(Engine(backbone, 2), sample(0, Sampling("a star", 2, 2.0)))
    assert result.image is not None and result.image.shape == (48, 32, 3)
    with pytest.raises(BadInput, match="multiples of 4"):
        StableDiffusion.from_pretrained(str(folder), device="cpu", size=(50, 32))


def test_reduced_precision_is_close(folder: Path) -> None:
    work = sample(0, Sampling("a star", 3, 1.0))
    full = StableDiffusion.from_pretrained(str(folder), device="cpu")
    half = StableDiffusion.from_pretrained(str(folder), device="cpu", dtype="bfloat16")
    (a,), (b,) = run(Engine(full, 1), work), run(Engine(half, 1), work)
    assert a.state is not None and b.state is not None and b.state.latent.dtype == np.float32
    error = np.abs(a.state.latent - b.state.latent).max() / np.abs(a.state.latent).max()
    assert 0 < error < 0.1
    with pytest.raises(BadInput, match="dtype"):
        StableDiffusion.from_pretrained(str(folder), device="cpu", dtype="int8")


def test_images_are_encoded_to_the_posterior_mean() -> None:
    pipeline = tiny_pipeline()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    results = run(Engine(backbone_of(pipeline), 4), *(Encode(image, 9) for image in images))
    for image, result in zip(images, results, strict=True):
        with torch.no_grad():
            posterior = pipeline.vae.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
        assert result.state is not None and result.state.complete and result.state.steps == 9
        assert np.allclose(result.state.latent, posterior.mean[0].numpy() * 0.5, atol=1e-5)
        assert np.array_equal(result.image, image)  # type: ignore[arg-type]


def test_prices_equal_a_count_by_hooks() -> None:
    pipeline, tiny = tiny_pipeline(), AutoencoderTiny(encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    latent, image = torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 32, 32)
    prices = backbone_of(pipeline).info.prices
    assert prices.row == by_hooks(pipeline.unet, lambda: pipeline.unet(latent, torch.zeros(1), torch.zeros(1, 16, 32)))
    assert prices.decode == by_hooks(pipeline.vae, lambda: pipeline.vae.decode(latent)) > 0
    assert prices.encode == by_hooks(pipeline.vae, lambda: pipeline.vae.encode(image)) > 0
    assert (prices.preview, prices.score) == (prices.decode, 0), "there is no tiny decoder"
    codec = LatentCodec(pipeline.vae, tiny=tiny).prices(8, 8)
    assert codec == replace(prices, row=0.0, tokens=0.0, preview=by_hooks(tiny, lambda: tiny.decode(latent)))
    assert 0 < codec.preview < codec.decode


def test_a_folder_can_override_the_defaults(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    settings = {"steps": 25, "guidance": 3, "t0": 10, "mask": {"kind": "error-contrast", "levels": [100, 300]}}
    (copy / "lotts.json").write_text(json.dumps(settings))
    defaults = StableDiffusion.from_pretrained(str(copy), device="cpu").info.defaults
    assert (defaults.steps, defaults.guidance, defaults.t0, defaults.integrate) == (25, 3.0, 10, 2)
    assert defaults.mask == ErrorContrastMask(levels=(100, 300))
    (copy / "lotts.json").write_text('{"stepz": 3}')
    with pytest.raises(BadInput, match=r"lotts.json.*stepz.*steps"):
        StableDiffusion.from_pretrained(str(copy), device="cpu")


def test_a_broken_folder_gives_one_message_that_names_the_part(folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    def refused(path: Path | str, kind: type[Exception], *words: str) -> None:
        with pytest.raises(kind) as caught:
            StableDiffusion.from_pretrained(str(path), device="cpu")
        message = str(caught.value)
        assert all(word in message for word in words) and "\n" not in message, message

    refused(tmp_path / "nowhere", BadInput, "nowhere")
    refused("../nowhere", BadInput, "nowhere")

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, BadInput, "model_index.json")

    other = broken("other")
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(other, BadInput, "FluxPipeline")
    (other / "model_index.json").write_text('{"_class_name": ')
    refused(other, Failure, "model_index.json")

    weights = "diffusion_pytorch_model.safetensors"
    missing = broken("missing")
    (missing / "unet" / weights).unlink()
    refused(missing, Failure, "unet")

    truncated = broken("truncated")
    data = (truncated / "vae" / weights).read_bytes()
    (truncated / "vae" / weights).write_bytes(data[: len(data) // 2])
    refused(truncated, Failure, "vae")

    partial = broken("partial")
    tensors = load_file(partial / "unet" / weights)
    del tensors["conv_in.weight"]
    save_file(tensors, partial / "unet" / weights, {"format": "pt"})
    refused(partial, Failure, "unet", "conv_in.weight")

    text = broken("text")
    shutil.rmtree(text / "text_encoder")
    refused(text, Failure, "text_encoder")

    words = broken("words")
    shutil.rmtree(words / "tokenizer")
    refused(words, Failure, "tokenizer")

    plan = broken("plan")
    (plan / "scheduler" / "scheduler_config.json").unlink()
    refused(plan, Failure, "scheduler")


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(Failure, match="unet"):
        StableDiffusion.from_pretrained(str(copy), device="cpu")
