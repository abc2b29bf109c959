"""Numbers that are no image: a decoder or an encoder that gives NaN or infinite values fails that trial and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.engine.engine import Engine
from lotts_search.errors import Failure
from lotts_search.registry import load_backbone
from lotts_search.work.requests import Encode, Predict, Sampling
from tests.tiny import backbone_of, sample, tiny_pipeline
from tests.tiny_xl import tiny_xl_pipeline

SAMPLING = Sampling("a red circle", 3, 1.0)
VALUES = pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])


def outcomes(engine: Engine, *requests: Any) -> list[Any]:
    futures = [engine.submit(work) for work in requests]
    while engine.tick():
        pass
    return [future.exception(timeout=0) or future.result() for future in futures]


def broken_decoder(backbone: Any, value: float, limit: float) -> None:
    """Put one ``value`` into the image of every latent whose first number is above ``limit``."""
    plain, scale = backbone.vae.decode, backbone.vae.config["scaling_factor"]

    def decode(latents: torch.Tensor, **options: Any) -> Any:
        (image,) = plain(latents, **options)
        image[latents[:, 0, 0, 0] * scale > limit, 1, 3, 2] = value
        return (image,)

    backbone.vae.decode = decode


@VALUES
@pytest.mark.parametrize("pad", [True, False])
def test_a_decode_that_is_not_finite_fails_its_trial_alone(value: float, pad: bool) -> None:
    requests = [sample(seed, SAMPLING) for seed in range(6)]
    good = outcomes(Engine(backbone_of(tiny_pipeline()), 8, pad), *requests)
    firsts = [float(result.state.latent.flat[0]) for result in good]
    limit = sum(sorted(firsts)[-2:]) / 2
    backbone = backbone_of(tiny_pipeline())
    broken_decoder(backbone, value, limit)
    found = outcomes(Engine(backbone, 8, pad), *requests)
    for first, result, want in zip(firsts, found, good, strict=True):
        if first > limit:
            assert isinstance(result, Failure)
            assert str(result).startswith("the decoder gave NaN or infinite values: in float16")
        else:
            assert np.abs(result.image.astype(int) - want.image).max() <= (0 if pad else 1)
    assert sum(isinstance(result, Failure) for result in found) == 1


@VALUES
def test_a_preview_that_is_not_finite_fails_alone(value: float) -> None:
    (part,) = outcomes(Engine(backbone_of(tiny_pipeline()), 4), sample(0, SAMPLING, stop=1))
    backbone = backbone_of(tiny_pipeline())
    broken_decoder(backbone, value, -1e9)
    (found,) = outcomes(Engine(backbone, 4), Predict(part.state, SAMPLING))
    assert isinstance(found, Failure) and "decoder gave NaN" in str(found)


@VALUES
def test_an_encoder_that_is_not_finite_fails_alone(value: float) -> None:
    backbone = backbone_of(tiny_pipeline())
    plain = backbone.vae.encode

    def encode(images: torch.Tensor) -> Any:
        out = plain(images)
        out.latent_dist.mean[images[:, 0, 0, 0] > 0.9, 0, 1, 1] = value
        return out

    backbone.vae.encode = encode
    dark, light = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    found = outcomes(Engine(backbone, 4), *(Encode(image, 3) for image in (dark, light, dark)))
    assert isinstance(found[1], Failure) and "the encoder gave NaN or infinite values" in str(found[1])
    assert np.isfinite(found[0].state.latent).all() and np.array_equal(found[0].state.latent, found[2].state.latent)


@pytest.mark.parametrize(("setting", "stays"), [(None, True), (True, True), (False, False)])
def test_an_sdxl_autoencoder_is_unfit_for_float16_unless_its_config_says_otherwise(
    tmp_path: Path, setting: bool | None, stays: bool
) -> None:
    tiny_xl_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config.pop("force_upcast", None)
    (tmp_path / "vae" / "config.json").write_text(
        json.dumps(config | ({} if setting is None else {"force_upcast": setting}))
    )
    backbone: Any = load_backbone(str(tmp_path), device="cpu", dtype="float16")
    assert (backbone.vae.dtype == torch.float32) is stays and backbone.unet.dtype == torch.float16
