"""The size of a model's images is known from its folder as it is known from the loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lotts_search.backbones.image_size import latent_size
from lotts_search.registry import load_backbone, model_image_size
from tests.tiny import save, tiny_pipeline
from tests.tiny_flux import tiny_flux
from tests.tiny_sd3 import tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_pipeline


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline, tiny_sd3_pipeline, tiny_flux])
def test_the_folder_tells_what_the_loaded_model_says(make: Callable[[], Any], tmp_path: Path) -> None:
    folder = str(save(make(), tmp_path))
    info = load_backbone(folder).info
    size = info.image
    assert model_image_size(folder, {}) == size
    assert latent_size(size, lambda file: json.loads((tmp_path / file).read_text())) == info.latent
    larger = (2 * size[0], size[1])
    assert model_image_size(folder, {"size": larger}) == load_backbone(folder, size=larger).info.image == larger


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-sdxl", "shapes-flux"])
def test_embedded_models_make_images_of_64_pixels(name: str) -> None:
    assert model_image_size(name, {}) == (64, 64)


def test_what_no_folder_tells_is_unknown(tmp_path: Path) -> None:
    """The error of a missing or broken model surfaces when it is loaded."""
    assert model_image_size("no-such-model", {}) is None
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert model_image_size(str(tmp_path), {}) is None
    assert latent_size((64, 64), lambda file: {}) is None
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{")
    assert model_image_size(str(tmp_path), {}) is None
