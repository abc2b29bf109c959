"""What holds for every family alike, against diffusers: samples, refinements, attention, whole searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from torch import Tensor

from lotts_search import LocalPool, search
from lotts_search.engine import Engine
from lotts_search.errors import BadInput
from lotts_search.localization.capture import capture_unet
from lotts_search.localization.locate import locate
from lotts_search.localization.maskgen import default_grid
from lotts_search.masks import AttentionMask, ErrorContrastMask
from lotts_search.noise import draw
from lotts_search.work import Bytes, Floats, Locate, Region, Sampling, Segment, State
from tests.reference import pipeline_run, solver_of
from tests.tiny import backbone_of, run, sample, scheduler_config, tiny_pipeline
from tests.tiny_xl import tiny_xl_pipeline, xl_backbone_of

SHAPE = (4, 8, 8)


@dataclass(frozen=True)
class Family:
    """How the tests reach a family.

    Attributes:
        pipeline, backbone: a small pipeline, and the backbone over its modules.
        image_to_image: diffusers' pipeline that re-denoises a picture.
    """

    pipeline: Callable[[], Any]
    backbone: Callable[..., Any]
    image_to_image: Any


SD = Family(tiny_pipeline, backbone_of, StableDiffusionImg2ImgPipeline)
XL = Family(tiny_xl_pipeline, xl_backbone_of, StableDiffusionXLImg2ImgPipeline)
UNETS = pytest.mark.parametrize("family", [SD, XL], ids=["sd", "sdxl"])


def euler(**config: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**scheduler_config(**config))


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**scheduler_config(**config), set_alpha_to_one=True, clip_sample=False)


@UNETS
@pytest.mark.parametrize("make", [euler, ddim])
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
        if make is euler:
            # Where Euler does not count the clean part of pure noise (spacing trailing), the start is told to be so.
            scheduler.set_timesteps(5)
            start = start * (scheduler.sigmas[0] ** 2 + 1).sqrt() / scheduler.init_noise_sigma
        options = {"latents": start, "height": 32, "width": 32, "output_type": "latent"}
        want = pipeline_run(pipeline, sampling, (), SHAPE, scheduler, **options)[0].numpy()
        assert result.state is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())


def test_a_scheduler_of_several_calls_a_step_lends_no_timesteps() -> None:
    pipeline = tiny_pipeline()
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    config = scheduler_config(_class_name="PNDMScheduler")
    with pytest.raises(BadInput, match="PNDMScheduler cannot be used; known: DDIM"):
        type(backbone_of(pipeline))("tiny", *parts, config, own_timesteps=True)


def refine(parent: Floats, sampling: Sampling, start: int) -> Segment:
    lineage = ("seed 0", f"refine@{start} 1")
    everywhere = Region(np.ones(parent.shape[1:], bool), parent, lineage, integrate=2)
    state = State(parent, sampling.steps, sampling.steps)
    return Segment(1, sampling, lineage, sampling.steps, state=state, renoise=start, region=everywhere)


@UNETS
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_refining_everywhere_equals_image_to_image(family: Family, eta: float) -> None:
    pipeline = family.pipeline()
    sampling = Sampling("a blue star", 8, 4.0, negative="bad", eta=eta)
    parent = draw(7, (), "start", 0, SHAPE) * np.float32(0.5)
    (result,) = run(Engine(family.backbone(pipeline), 2), refine(parent, sampling, 3))
    again = family.image_to_image(**{**pipeline.components, **extra(pipeline)})
    scheduler = solver_of(pipeline, eta)
    options = {"image": torch.from_numpy(parent)[None], "strength": 5 / 8, "output_type": "latent"}
    lineage = ("seed 0", "refine@3 1")
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
    """Outputs of the query and key projections of a network's attention modules, and their numbers of heads."""

    def __init__(self, network: Any):
        self.heads = {name: module.heads for name, module in network.named_modules() if hasattr(module, "heads")}
        self.seen: dict[str, Tensor] = {}
        self._handles = [
            module.register_forward_hook(self._note(name))
            for name, module in network.named_modules()
            if name.endswith((".to_q", ".to_k", ".add_k_proj"))
        ]

    def _note(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    def __call__(self, module: str, projection: str) -> Tensor:
        """[B, heads, N, d]"""
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
    assert sorted(backbone.grids()) == [2, 4]  # as 32 and 64 of a latent of 128: the first block has no attention
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
    assert ori.std() > 1e-4  # the test's own attention is not flat


def test_the_default_grid_of_sdxl_is_the_papers() -> None:
    grids = {64: (64, 64), 32: (32, 32)}
    assert default_grid(grids, (128, 128)) == 32


@UNETS
def test_capturing_attention_leaves_the_pipelines_bits(family: Family) -> None:
    pipeline = family.pipeline()
    backbone = family.backbone(pipeline)
    sampling, lineage = Sampling("a red circle", 3, 4.0), ("seed 0",)

    def picture() -> Any:
        start = torch.from_numpy(draw(1, lineage, "start", 0, SHAPE))[None]
        options = {"latents": start, "height": 32, "width": 32, "output_type": "latent"}
        return pipeline_run(pipeline, sampling, lineage, SHAPE, solver_of(pipeline, 1.0), **options)

    before, processors = picture(), dict(pipeline.unet.attn_processors)
    with capture_unet(pipeline.unet, [[1, 2, 3]] * 2, [True, False], (4, 4)) as record:
        during = picture()
    assert record.rows()[0].words.shape == (4, 4)
    assert torch.equal(before, during) and torch.equal(before, picture())
    after = pipeline.unet.attn_processors
    assert after.keys() == processors.keys() and all(after[name] is processors[name] for name in after)
    assert max(backbone.grids()) >= 4


class Redness:
    name = "redness"
    requirements = ()

    def score(self, prompts: list[str], images: Bytes) -> Any:
        return images[..., 0].mean(axis=(1, 2)).astype(np.float32)


@UNETS
def test_the_same_strategies_run_on_every_family(family: Family) -> None:
    settings: dict[str, Any] = {"start": 2, "integrate": 1, "mask": AttentionMask(level=300, noised=True)}
    with LocalPool(family.backbone(family.pipeline()), {"redness": Redness()}, max_batch=4, threads=1) as pool:
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
