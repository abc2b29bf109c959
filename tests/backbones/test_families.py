"""Tests that every family must pass, with diffusers as the reference: samples, refinements, attention, searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from lotts_search import LocalPool, plugins, search
from lotts_search.backbones.attention.sd3 import capture_sd3
from lotts_search.backbones.attention.unet import capture_unet, unet_grids
from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput
from lotts_search.localization.locate import locate
from lotts_search.localization.maskgen import default_grid
from lotts_search.registry import load_backbone
from lotts_search.work.masks import AttentionMask, ErrorContrastMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Bytes, Floats, Locate, Region, Sampling, Segment, State
from tests.reference import pipeline_run, solver_of
from tests.tiny import backbone_of, run, sample, scheduler_config, tiny_pipeline
from tests.tiny_sd3 import sd3_backbone_of, tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_pipeline, xl_backbone_of

SHAPE = (4, 8, 8)


@dataclass(frozen=True)
class Family:
    """A family under test.

    Attributes:
        pipeline, backbone: functions that make a small pipeline, and the backbone around its modules.
        image_to_image: the image-to-image pipeline of diffusers.
        network: attribute name of the denoiser.
    """

    pipeline: Callable[[], Any]
    backbone: Callable[..., Any]
    image_to_image: Any
    network: str = "unet"


SD = Family(tiny_pipeline, backbone_of, StableDiffusionImg2ImgPipeline)
XL = Family(tiny_xl_pipeline, xl_backbone_of, StableDiffusionXLImg2ImgPipeline)
SD3 = Family(tiny_sd3_pipeline, sd3_backbone_of, StableDiffusion3Img2ImgPipeline, "transformer")
UNETS = pytest.mark.parametrize("family", [SD, XL], ids=["sd", "sdxl"])
FAMILIES = pytest.mark.parametrize("family", [SD, XL, SD3], ids=["sd", "sdxl", "sd3"])


def euler(**config: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**scheduler_config(**config))


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**scheduler_config(**config), clip_sample=False)


def ddim_not_to_one(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**scheduler_config(**config), set_alpha_to_one=False, clip_sample=False)


@UNETS
@pytest.mark.parametrize("make", [euler, ddim, ddim_not_to_one])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_sample_by_ddim_equals_the_pipeline_with_its_usual_scheduler(family: Family, make: Any, spacing: str) -> None:
    pipeline = family.pipeline()
    pipeline.scheduler = make(timestep_spacing=spacing, prediction_type="epsilon")
    config = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    pipeline.scheduler.register_to_config(**config)
    backbone = family.backbone(pipeline, own_timesteps=True)
    settings = [Sampling("a red circle", 5, guidance, eta=0.0, solver="ddim") for guidance in (1.0, 4.0)]
    results = run(Engine(backbone, 4), *(sample(seed, one) for seed, one in enumerate(settings)))
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        start = torch.from_numpy(draw(1, (f"seed {seed}",), "start", 0, SHAPE))[None]
        scheduler = make(timestep_spacing=spacing, prediction_type="epsilon")
        options = {"latents": start, "height": 32, "width": 32, "output_type": "latent"}
        want = pipeline_run(pipeline, sampling, (), SHAPE, scheduler, **options)[0].numpy()
        assert result.state is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())


def test_a_scheduler_with_several_calls_per_step_is_refused_for_own_timesteps() -> None:
    pipeline = tiny_pipeline()
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    config = scheduler_config(_class_name="PNDMScheduler")
    with pytest.raises(BadInput, match="samples of its PNDMScheduler; known: DDIM"):
        type(backbone_of(pipeline))("tiny", *parts, config, own_timesteps=True)


def refine(parent: Floats, sampling: Sampling, start: int) -> Segment:
    lineage = ("seed 0", f"refine@{start} 1")
    everywhere = Region(np.ones(parent.shape[1:], bool), parent, lineage, integrate=2)
    state = State(parent, sampling.steps, sampling.steps)
    return Segment(1, sampling, lineage, sampling.steps, state=state, renoise=start, region=everywhere)


@pytest.mark.parametrize(
    ("family", "eta", "solver"),
    [(SD, 1.0, "dpm"), (SD, 0.0, "dpm"), (XL, 1.0, "dpm"), (XL, 0.0, "dpm"), (SD3, 0.0, "ddim")],
)
def test_refining_everywhere_equals_image_to_image(family: Family, eta: float, solver: Any) -> None:
    pipeline = family.pipeline()
    sampling = Sampling("a blue star", 8, 4.0, negative="bad", eta=eta, solver=solver)
    parent = draw(7, (), "start", 0, SHAPE) * np.float32(0.5)
    (result,) = run(Engine(family.backbone(pipeline), 2), refine(parent, sampling, 3))
    again = family.image_to_image(**{**pipeline.components, **extra(pipeline)})
    scheduler = solver_of(pipeline, eta) if solver == "dpm" else pipeline.scheduler
    options = {"image": torch.from_numpy(parent)[None], "strength": 5 / 8, "output_type": "latent"}
    lineage = ("seed 0", "refine@3 1")
    if family is SD3:
        options |= {"height": 32, "width": 32}
    want = pipeline_run(again, sampling, lineage, SHAPE, scheduler, **options)[0].numpy()
    assert result.state is not None
    assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())
    assert np.abs(want - parent).max() > 0.1


def extra(pipeline: Any) -> dict[str, Any]:
    names = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return {name: pipeline.config[name] for name in names if name in pipeline.config}


PROMPTS = ["a red circle", "A high-quality image of a red circle", "A low-quality image of a red circle"]
POSITIONS = [list(range(1, 1 + count)) for count in (3, 9, 9)]


class Projections:
    """Records the query and key projections of a network's attention modules, and their numbers of heads."""

    def __init__(self, network: Any):
        self.heads = {name: module.heads for name, module in network.named_modules() if hasattr(module, "heads")}
        self.seen: dict[str, Tensor] = {}
        self._handles = [
            module.register_forward_hook(self._record(name))
            for name, module in network.named_modules()
            if name.endswith((".to_q", ".to_k", ".add_k_proj"))
        ]

    def _record(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    def __call__(self, module: str, projection: str) -> Tensor:
        """Return a recorded projection as [B, heads, N, d]."""
        flat = self.seen[f"{module}.{projection}"]
        return flat.unflatten(-1, (self.heads[module], -1)).transpose(1, 2)

    def modules(self, suffix: str, length: int) -> list[str]:
        queries = [name for name in self.seen if name.endswith(f"{suffix}.to_q")]
        return [name.removesuffix(".to_q") for name in queries if self.seen[name].shape[1] == length]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("side", [4, 2])
def test_attention_of_sdxl_is_an_explicit_softmax(side: int) -> None:
    backbone = xl_backbone_of(tiny_xl_pipeline())
    assert sorted(backbone.grids()) == [2, 4]  # like 32 and 64 for a latent of 128: the first block has no attention
    latent = draw(3, (), "start", 0, SHAPE)
    work = Locate(5, ("seed 0",), State(latent, 4, 4), Sampling(PROMPTS[0], 4, 3.0), AttentionMask(grid=side))
    located = locate(backbone, work)
    hooks = Projections(backbone.unet)
    with torch.no_grad():
        stacked = backbone.stack(backbone.encode_prompts(PROMPTS))
        backbone.predict(torch.from_numpy(np.stack([latent] * 3)), torch.zeros(3), stacked)
    hooks.close()
    maps = torch.zeros(3, side * side)
    crosses = hooks.modules("attn2", side * side)
    assert len(crosses) == {4: 3, 2: 2 + 2 + 4}[side]
    for name in crosses:
        query, key = hooks(name, "to_q"), hooks(name, "to_k")
        probability = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
        for row, places in enumerate(POSITIONS):
            maps[row] += probability[row][:, places].mean(-1) / len(crosses)
    ori, pos, neg = maps.view(3, side, side).numpy()
    for name, value in {"ori": ori, "pos": pos, "neg": neg, "contrast": neg - pos}.items():
        assert np.abs(located.stages[name] - value).max() < 1e-6, name
    assert ori.std() > 1e-4  # the reference attention is not flat


@pytest.mark.parametrize("newer", [False, True])
def test_attention_of_sd3_is_an_explicit_softmax_over_image_and_text(newer: bool) -> None:
    backbone = sd3_backbone_of(tiny_sd3_pipeline(newer=newer))
    latent = draw(3, (), "start", 0, SHAPE)
    source = AttentionMask(level=400, propagate=True)
    located = locate(backbone, Locate(5, ("seed 0",), State(latent, 4, 4), Sampling(PROMPTS[0], 4, 3.0), source))
    noise = draw(5, ("seed 0",), "locate", 0, SHAPE)
    seen = np.float32(0.6) * latent + np.float32(0.4) * noise if source.noised else latent
    hooks = Projections(backbone.transformer)
    with torch.no_grad():
        stacked = backbone.stack(backbone.encode_prompts(PROMPTS))
        backbone.predict(torch.from_numpy(np.stack([seen] * 3)), torch.full((3,), 400.0), stacked)
    hooks.close()
    maps, spread = torch.zeros(3, 16), torch.zeros(16, 16)
    for name in ("transformer_blocks.2.attn", "transformer_blocks.3.attn"):  # the second half
        attn = backbone.transformer.get_submodule(name)
        query, key, text = hooks(name, "to_q"), hooks(name, "to_k"), hooks(name, "add_k_proj")
        if newer:
            query, key, text = attn.norm_q(query), attn.norm_k(key), attn.norm_added_k(text)
        keys = torch.cat([key, text], dim=2)
        assert keys.shape[2] == 16 + 16 + 256
        probability = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
        for row, places in enumerate(POSITIONS):
            maps[row] += probability[row][:, [16 + place for place in places]].mean(-1) / 2
        own = query[0]
        spread += (own @ own.transpose(-1, -2) / own.shape[-1] ** 0.5).softmax(-1).mean(0) / 2
    ori, pos, neg = maps.detach()
    want = {"ori": ori, "contrast": neg - pos, "propagated ori": spread.detach() @ ori}
    for name, value in want.items():
        assert np.abs(located.stages[name].ravel() - value.numpy()).max() < 1e-6, name
    assert float(ori.std()) > 1e-5 and located.mask.sum() == 32


PUBLISHED: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "SD 2.1": (
        {"sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
        865_910_724,
        24,
        5,
    ),
    "SDXL": (
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "cross_attention_dim": 2048,
        },
        2_567_463_684,
        32,
        60,
    ),
}


@pytest.mark.parametrize(("config", "weights", "side", "layers"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_default_grid_of_the_published_networks_is_the_papers(
    config: dict[str, Any], weights: int, side: int, layers: int
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=4, out_channels=4, use_linear_projection=True, **config)
    assert sum(weight.numel() for weight in unet.parameters()) == weights
    latent = config["sample_size"], config["sample_size"]
    grids = unet_grids(unet, latent)
    assert default_grid(grids, latent) == side
    assert set(grids) == ({64, 32} if side == 32 else {96, 48, 24, 12})
    # Layers with this grid: those of the down and up block at its depth, and for SDXL those of the middle block.
    depth = (config["sample_size"] // side).bit_length() - 1
    deepest = len(unet.config["down_block_types"]) - 1
    blocks = [unet.down_blocks[depth], unet.up_blocks[deepest - depth]] + [unet.mid_block] * (depth == deepest)
    assert sum(name.endswith("attn2") for block in blocks for name, _ in block.named_modules()) == layers


@FAMILIES
def test_capturing_attention_does_not_change_the_output(family: Family) -> None:
    pipeline = family.pipeline()
    network = getattr(pipeline, family.network)
    sampling, lineage = Sampling("a red circle", 3, 4.0), ("seed 0",)

    def image() -> Any:
        start = torch.from_numpy(draw(1, lineage, "start", 0, SHAPE))[None]
        options = {"latents": start, "height": 32, "width": 32, "output_type": "latent"}
        scheduler = pipeline.scheduler if family is SD3 else solver_of(pipeline, 1.0)
        return pipeline_run(pipeline, sampling, lineage, SHAPE, scheduler, **options)

    before, processors = image(), dict(network.attn_processors)
    rows: Any = [[1, 2, 3]] * 2, [True, False], (4, 4)
    with capture_sd3(network, *rows, 2) if family is SD3 else capture_unet(network, *rows) as record:
        during = image()
    assert record.rows()[0].words.shape == (4, 4) and record.rows()[0].queries
    assert torch.equal(before, during) and torch.equal(before, image())
    after = network.attn_processors
    assert after.keys() == processors.keys() and all(after[name] is processors[name] for name in after)


@FAMILIES
def test_adapters_and_offloading_work_on_every_family(family: Family, tmp_path: Path) -> None:
    pipeline = family.pipeline()
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    network = getattr(pipeline, family.network)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    network.add_adapter(config, "style")
    layers = {f"{family.network}_lora_layers": get_peft_model_state_dict(network, adapter_name="style")}
    pipeline.save_lora_weights(tmp_path / "style", **layers, safe_serialization=True)
    load: dict[str, Any] = {"device": "cpu", "lora": [str(tmp_path / "style")], "offload": "sequential"}
    merged, plain = (load_backbone(str(tmp_path / "model"), **options) for options in (load, {"device": "cpu"}))
    latents, times = torch.randn(1, *SHAPE), torch.tensor([500.0])
    text = merged.stack(merged.encode_prompts(["a red circle"]))
    want = family.backbone(pipeline).predict(latents, times, text)
    assert torch.allclose(merged.predict(latents, times, text), want, atol=1e-5)
    assert (plain.predict(latents, times, text) - want).abs().max() > 1e-3
    assert np.array_equal(merged.decode(latents), plain.decode(latents))


class Redness:
    name = "redness"
    requirements = ()

    def score(self, prompts: list[str], images: Bytes) -> Any:
        return images[..., 0].mean(axis=(1, 2)).astype(np.float32)


@FAMILIES
def test_the_same_strategies_run_on_every_family(family: Family) -> None:
    settings: dict[str, Any] = {"start": 2, "integrate": 1, "mask": AttentionMask(level=300, noised=True)}
    with LocalPool(family.backbone(family.pipeline()), {"redness": Redness()}, batch=4, threads=1) as pool:
        common: dict[str, Any] = {"verifier": "redness", "pool": pool, "steps": 4, "guidance": 2.0, "nfe": 24}
        lotts = search("a red star", strategy="lotts", settings=settings, **common)
        contrast = settings | {"mask": ErrorContrastMask(levels=(400,))}
        other = search("a red star", strategy="lotts", settings=contrast, **common)
        best = search("a red star", strategy="best-of-n", **common)
    for result in (lotts, other, best):
        assert result.status == "done" and result.ledger.nfe <= 24
        assert result.score == max(float(image[..., 0].mean()) for image in result.images.values())
    assert {"sample", "localize", "refine"} <= {trial.kind for trial in lotts.trials}
    assert lotts.best_refined is not None and other.best_refined is not None


class Renamed(StableDiffusion):
    """A family registered by another package."""

    @classmethod
    def from_pretrained(cls, model: str, **options: Any) -> StableDiffusion:
        parts = tiny_pipeline().components
        names = "unet", "vae", "text_encoder", "tokenizer"
        return cls(str(options["name"]), *(parts[name] for name in names), scheduler_config())


def test_another_package_can_add_a_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "RenamedPipeline"}')
    with pytest.raises(BadInput, match=r"RenamedPipeline.*FluxPipeline.*StableDiffusionXLPipeline"):
        load_backbone(str(tmp_path))
    point = EntryPoint("RenamedPipeline", f"{__name__}:Renamed", "lotts_search.families")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    plugins._plugins.cache_clear()
    try:
        assert type(load_backbone(str(tmp_path))).__name__ == "Renamed"
    finally:
        plugins._plugins.cache_clear()
