"""The embedded models as shipped: their size, loading by plain diffusers, and the quality of their images and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from lotts_search import registry
from lotts_search.engine.local_pool import LocalPool
from lotts_search.shapes.denoisers.text import TEXT_LENGTH, new_tokenizer
from lotts_search.shapes.measure.common import locate, refine, sample
from lotts_search.shapes.measure.localization import candidates, damaged_renders, roc
from lotts_search.shapes.world.oracle import judge_many
from lotts_search.shapes.world.scene import scenes
from lotts_search.work.masks import RandomMask

MODELS = Path(registry.__file__).parent / "shapes" / "models"
FAMILIES = {"shapes-sd": StableDiffusionPipeline, "shapes-sdxl": StableDiffusionXLPipeline, "shapes-flux": FluxPipeline}


def weight(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@pytest.fixture(params=FAMILIES)
def pool(request: pytest.FixtureRequest) -> Iterator[LocalPool]:
    pool = LocalPool(registry.load_backbone(request.param), {}, batch=16, threads=1)
    yield pool
    pool.close()


def test_sizes_and_file_kinds() -> None:
    assert all(weight(MODELS / name) <= 16e6 for name in FAMILIES)
    assert weight(MODELS / "shapes-reward") <= 5 * 2**20
    assert {f.suffix for f in MODELS.rglob("*") if f.is_file()} <= {".safetensors", ".json", ".md", ".txt"}


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_diffusers_loads_the_model_and_draws_the_prompt(name: str) -> None:
    pipeline = FAMILIES[name].from_pretrained(MODELS / name)
    pipeline.set_progress_bar_config(disable=True)
    chosen = scenes("test", 4, 11)
    # FLUX's pipeline pads to 512 tokens by default, and attends to the padding.
    words = {"max_sequence_length": TEXT_LENGTH} if name == "shapes-flux" else {}
    images = pipeline(
        [scene.caption for scene in chosen],
        num_inference_steps=10,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **words,
    ).images
    verdicts = judge_many((images * 255).round().astype(np.uint8), chosen)
    assert np.mean([v.right[v.expected].mean() for v in verdicts]) >= 0.9


def test_every_word_of_a_caption_is_one_token() -> None:
    shipped = CLIPTokenizer.from_pretrained(MODELS / "shapes-sd" / "tokenizer")
    fresh = new_tokenizer()
    assert new_tokenizer().get_vocab() == fresh.get_vocab()
    for scene in scenes("test", 20, 12):
        caption = f"A high-quality image of {scene.caption}"
        words = caption.lower().replace(",", " ,").replace("-", " - ").split()
        assert shipped.tokenize(caption) == fresh.tokenize(caption) == [f"{word}</w>" for word in words]
        assert len(words) + 2 <= TEXT_LENGTH


def test_the_default_mask_finds_flaws_and_a_refinement_repairs_more_than_it_harms(pool: LocalPool) -> None:
    renders = damaged_renders(pool, "tune", 16, seed=13)
    source = pool.info.defaults.mask
    assert roc(pool, renders, source) >= 0.8
    assert abs(roc(pool, renders, RandomMask()) - 0.5) < 0.2
    images = [group[0] for group in sample(pool, scenes("tune", 16, 14), 1)]
    masks = [found.mask for found in locate(pool, images, source)]
    defaults = pool.info.defaults
    after = refine(pool, images, masks, start=defaults.t0, integrate=defaults.integrate)
    assert np.mean([b.verdict.quality - a.verdict.quality for a, b in zip(images, after, strict=True)]) > 0.03


def test_tuning_reads_attention_grids_that_the_model_has(pool: LocalPool) -> None:
    images = damaged_renders(pool, "tune", 1, seed=15)
    sides = set()
    for name, source in candidates(pool.info.family).items():
        if name.startswith("attention") and name.endswith("level 0"):
            (found,) = locate(pool, images, source)
            sides.add(found.heat.shape)
            assert found.heat.std() > 0
    assert sides == ({(8, 8)} if pool.info.family == "flux" else {(16, 16), (8, 8)})
