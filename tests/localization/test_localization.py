from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention, attention_map
from lotts_search.backbones.attention.unet import capture_unet
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure
from lotts_search.localization.locate import locate
from lotts_search.localization.maskgen import AttentionLocalization, default_grid, quality_word
from lotts_search.localization.plan import plan_of
from lotts_search.localization.select import area, highest, smooth, unit
from lotts_search.work.masks import (
    BAD,
    GOOD,
    AttentionMask,
    ErrorContrastMask,
    GivenMask,
    MaskSource,
    RandomMask,
    WholeMask,
)
from lotts_search.work.mosaics import upsample
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Located, Sampling, State
from tests.tiny import run, tiny_backbone

SAMPLING = Sampling("a red circle", 4, 3.0)
LINEAGE = ("seed 0",)


def work(state: State, source: MaskSource) -> Locate:
    return Locate(5, LINEAGE, state, SAMPLING, source)


class Hooks:
    """Queries and keys of every attention module of a U-Net, by forward hooks on its projections."""

    def __init__(self, unet: Any):
        self.seen: dict[str, Tensor] = {}
        self._handles = [
            module.register_forward_hook(self._note(name))
            for name, module in unet.named_modules()
            if name.endswith((".to_q", ".to_k"))
        ]

    def _note(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def heads(self, name: str, heads: int) -> Tensor:
        """[B, heads, N, d]"""
        flat = self.seen[name]
        return flat.reshape(len(flat), flat.shape[1], heads, -1).transpose(1, 2)

    def layers(self, suffix: str, length: int) -> list[str]:
        names = [name.removesuffix(".to_q") for name in self.seen if name.endswith(f"{suffix}.to_q")]
        return [name for name in names if self.seen[f"{name}.to_q"].shape[1] == length]


@torch.no_grad()
def attention_by_hooks(
    latents: Floats, time: float, prompts: list[str], positions: list[list[int]], side: int
) -> tuple[Tensor, list[Tensor]]:
    """Explicit softmax: maps [B, side, side] averaged over layers, heads and positions; S [N, N] of row 0 a layer."""
    backbone = tiny_backbone()
    hooks = Hooks(backbone.unet)
    conditioning = backbone.stack(backbone.encode_prompts(prompts))
    backbone.predict(torch.from_numpy(latents), torch.full((len(latents),), time), conditioning)
    hooks.close()
    heads = 4
    total = torch.zeros(len(latents), side * side)
    crosses = hooks.layers("attn2", side * side)
    for name in crosses:
        query, key = hooks.heads(f"{name}.to_q", heads), hooks.heads(f"{name}.to_k", heads)
        probability = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
        for row, places in enumerate(positions):
            total[row] += probability[row][:, places].mean(-1) / len(crosses)
    spread = []
    for name in hooks.layers("attn1", side * side):
        query = hooks.heads(f"{name}.to_q", heads)[0]
        spread.append((query @ query.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(0))
    return total.view(-1, side, side), spread


PROMPTS = ["a red circle", "A high-quality image of a red circle", "A low-quality image of a red circle"]
POSITIONS = [list(range(1, 1 + count)) for count in (3, 9, 9)]


@pytest.mark.parametrize("side", [8, 4])
def test_captured_attention_is_an_explicit_softmax(finished: State, side: int) -> None:
    source = AttentionMask(grid=side, propagate=True, alpha=0.7)
    located = locate(tiny_backbone(), work(finished, source))
    maps, spread = attention_by_hooks(np.stack([finished.latent] * 3), 0.0, PROMPTS, POSITIONS, side)
    assert len(spread) == (3 if side == 8 else 4)
    ori, pos, neg = maps
    want = {"ori": ori, "pos": pos, "neg": neg, "contrast": neg - pos}
    mean = torch.stack(spread).mean(0)
    want["propagated contrast"] = (mean @ (neg - pos).flatten()).view(side, side)
    want["propagated ori"] = (mean @ ori.flatten()).view(side, side)
    for name, value in want.items():
        assert np.abs(located.stages[name] - value.numpy()).max() < 1e-6, name
    assert float(ori.std()) > 1e-4  # the test's own attention is not flat
    heat = unit(located.stages["propagated contrast"]) + np.float32(0.7) * unit(located.stages["propagated ori"])
    assert np.allclose(located.stages["reweighted"], heat, atol=1e-6)
    assert np.array_equal(located.heat, unit(located.stages["reweighted"]))
    assert list(located.stages) == [*want, "reweighted"]
    assert located.mask.shape == (8, 8) and located.mask.sum() == 32


def test_noise_levels_and_draws(finished: State) -> None:
    """At a level the noised latent is looked at, and maps are averaged over draws."""
    located = locate(tiny_backbone(), work(finished, AttentionMask(level=500, noised=True, draws=2, grid=8)))
    alpha, sigma = tiny_backbone().train_level(500)
    total = np.zeros((3, 8, 8))
    for number in range(2):
        noise = draw(5, LINEAGE, "locate", number, (4, 8, 8))
        latent = np.float32(alpha) * finished.latent + np.float32(sigma) * noise
        maps, _ = attention_by_hooks(np.stack([latent] * 3), 500.0, PROMPTS, POSITIONS, 8)
        total += maps.numpy() / 2
    for name, value in zip(("ori", "pos", "neg"), total, strict=True):
        assert np.abs(located.stages[name] - value).max() < 1e-6


def test_word_only_reads_the_quality_word(finished: State) -> None:
    located = locate(tiny_backbone(), work(finished, AttentionMask(word_only=True, grid=8)))
    maps, _ = attention_by_hooks(np.stack([finished.latent] * 3), 0.0, PROMPTS, [[1, 2, 3], [2], [2]], 8)
    assert np.abs(located.stages["neg"] - maps[2].numpy()).max() < 1e-6
    assert np.abs(located.stages["pos"] - maps[1].numpy()).max() < 1e-6
    assert quality_word([1, 2, 3, 4], [1, 9, 8, 3, 4]) == ([1], [1, 2])
    assert quality_word([1, 1, 1], [1, 1]) == ([2], [])
    with pytest.raises(BadInput, match="do not differ"):
        locate(tiny_backbone(), work(finished, AttentionMask(word_only=True, high="{}", low="{}")))


def test_each_component_can_be_left_out(finished: State) -> None:
    whole = locate(tiny_backbone(), work(finished, AttentionMask(grid=8)))
    still = locate(tiny_backbone(), work(finished, AttentionMask(grid=8, propagate=False)))
    assert "propagated contrast" not in still.stages
    heat = unit(whole.stages["contrast"]) + np.float32(0.5) * unit(whole.stages["ori"])
    assert np.allclose(still.stages["reweighted"], heat, atol=1e-6)
    no_original = locate(tiny_backbone(), work(finished, AttentionMask(grid=8, original=False)))
    assert np.allclose(no_original.heat, unit(whole.stages["propagated contrast"]), atol=1e-6)
    no_contrast = locate(tiny_backbone(), work(finished, AttentionMask(grid=8, contrast=False)))
    assert np.allclose(no_contrast.heat, unit(whole.stages["propagated ori"]), atol=1e-6)
    with pytest.raises(BadInput, match="is empty"):
        locate(tiny_backbone(), work(finished, AttentionMask(original=False, contrast=False)))


def test_capture_changes_nothing(finished: State) -> None:
    backbone = tiny_backbone()
    latents = torch.from_numpy(np.stack([finished.latent] * 2))
    times = torch.tensor([100.0, 700.0])
    conditioning = backbone.stack(backbone.encode_prompts(["a star", "red"]))
    before = backbone.predict(latents, times, conditioning)
    processors = dict(backbone.unet.attn_processors)
    with capture_unet(backbone.unet, [[1], [1]], [True, False], (8, 8)) as record:
        during = backbone.predict(latents, times, conditioning)
    after = backbone.predict(latents, times, conditioning)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert all(backbone.unet.attn_processors[name] is processor for name, processor in processors.items())
    first, second = record.rows()
    assert len(first.queries) == 3 and second.queries == ()
    with pytest.raises(ZeroDivisionError), capture_unet(backbone.unet, [], [], (8, 8)):
        raise ZeroDivisionError
    assert all(backbone.unet.attn_processors[name] is processor for name, processor in processors.items())


def test_attention_map_is_a_weighted_softmax() -> None:
    query, key = torch.randn(2, 2, 3, 10, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    weights = torch.rand(2, 10, 4, generator=torch.Generator().manual_seed(1))
    want = torch.einsum("bhnm,bmv->bnv", (query @ key.transpose(-1, -2) / 6**0.5).softmax(-1), weights) / 3
    assert torch.allclose(attention_map(query, key, weights), want, atol=1e-6)


def test_error_contrast_is_the_difference_of_squared_errors(finished: State) -> None:
    backbone = tiny_backbone()
    source = ErrorContrastMask(ratio=0.3, levels=(150, 600), draws=2, smooth=0.8, high=GOOD, low=BAD)
    located = locate(backbone, work(finished, source))
    prompts = ["A good image of a red circle", "A bad image of a red circle"]
    encoded = dict(zip(prompts, backbone.encode_prompts(prompts), strict=True))
    contrast = np.zeros((8, 8))
    for index, level in enumerate(source.levels):
        alpha, sigma = backbone.train_level(level)
        error = dict.fromkeys(prompts, np.zeros((8, 8)))
        for number in range(2):
            noise = draw(5, LINEAGE, "locate", 2 * index + number, (4, 8, 8))
            latent = alpha * finished.latent + sigma * noise
            for prompt in prompts:
                with torch.no_grad():
                    sent = torch.from_numpy(latent.astype(np.float32))[None]
                    v = backbone.unet(sent, torch.tensor([float(level)]), encoded[prompt][None]).sample[0].numpy()
                x0 = alpha * latent - sigma * v
                error[prompt] = error[prompt] + ((x0 - finished.latent) ** 2).mean(0) / 2
        values = error[prompts[0]] - error[prompts[1]]
        assert np.abs(located.stages[f"level {level}"] - values).max() < 1e-4 * np.abs(values).max()
        contrast += values / values.std() / 2
    assert np.abs(located.stages["contrast"] - contrast).max() < 1e-3
    want = np.zeros((8, 8))
    for row in range(8):
        for column in range(8):
            weight = np.exp(-((np.arange(8)[:, None] - row) ** 2 + (np.arange(8)[None] - column) ** 2) / (2 * 0.8**2))
            want[row, column] = (weight * contrast).sum() / weight.sum()
    assert np.abs(located.stages["smoothed"] - want).max() < 1e-3
    assert located.mask.sum() == area(0.3, 64) == 20
    assert located.heat[located.mask].min() >= located.heat[~located.mask].max()
    inside, outside = located.heat[located.mask].mean(), located.heat[~located.mask].mean()
    assert located.confidence == pytest.approx(inside - outside)


def test_a_relative_error_contrast_is_the_log_ratio_of_smoothed_errors(finished: State) -> None:
    backbone = tiny_backbone()
    source = ErrorContrastMask(levels=(600,), smooth=1.2, high="{}", low="", relative=True, foreground=0.3)
    located = locate(backbone, work(finished, source))
    alpha, sigma = backbone.train_level(600)
    latent = (alpha * finished.latent + sigma * draw(5, LINEAGE, "locate", 0, (4, 8, 8))).astype(np.float32)
    logs = []
    for name, prompt in (("high", "a red circle"), ("low", "")):
        with torch.no_grad():
            text = backbone.encode_prompts([prompt])[0][None]
            v = backbone.unet(torch.from_numpy(latent)[None], torch.tensor([600.0]), text).sample[0].numpy()
        error = ((alpha * latent - sigma * v - finished.latent) ** 2).mean(0)
        assert np.abs(located.stages[f"{name} prompt"] - error).max() < 1e-4 * error.max()
        logs.append(np.log(smooth(error, 1.2)))
    values = logs[0] - 0.7 * logs[1]
    assert np.abs(located.stages["level 600"] - values).max() < 1e-3
    assert np.array_equal(located.heat, unit(located.stages["contrast"]))
    # The ratio is blind to the size of the errors, apart from the foreground's share.
    assert np.corrcoef(located.heat.ravel(), values.ravel())[0, 1] > 0.9999


def test_smoothing_keeps_a_constant_and_can_be_off() -> None:
    flat = np.full((5, 7), 2.0, np.float32)
    assert np.allclose(smooth(flat, 1.5), flat)
    noisy = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    assert np.array_equal(smooth(noisy, 0), noisy)


@pytest.mark.parametrize(
    "source", [AttentionMask(), ErrorContrastMask(levels=(300,)), RandomMask(), RandomMask(block=3)]
)
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_the_area_is_exact(finished: State, source: Any, ratio: float) -> None:
    located = locate(tiny_backbone(), work(finished, replace(source, ratio=ratio)))
    cells = located.heat.size
    assert located.mask.sum() == area(ratio, cells) * (64 // cells)
    assert located.mask.shape == (8, 8)
    assert 0 <= located.confidence <= 1 and located.heat.min() >= 0 and located.heat.max() <= 1


def test_ranks_ties_and_upsampling() -> None:
    flat = np.zeros((2, 3), np.float32)
    assert highest(flat, 0.5).ravel().tolist() == [True, True, True, False, False, False]
    heat = np.array([[0, 3, 1], [2, 3, 0]], np.float32)
    assert highest(heat, 0.5).tolist() == [[False, True, False], [True, True, False]]
    assert [area(ratio, 100) for ratio in (0.55, 0.551, 0.005, 1)] == [55, 56, 1, 100]
    large = upsample(highest(heat, 0.5), (4, 6))
    assert np.array_equal(large, np.kron(highest(heat, 0.5), np.ones((2, 2), np.bool_)).astype(np.bool_))
    for wrong in (0, -0.1, 1.2):
        with pytest.raises(BadInput, match="ratio"):
            highest(heat, wrong)
    with pytest.raises(Failure, match="NaN"):
        highest(np.array([[np.nan]], np.float32), 0.5)


def test_random_masks_depend_on_the_lineage_and_cover_blocks(finished: State) -> None:
    base = work(finished, RandomMask(0.25, block=4))
    first = locate(tiny_backbone(), base)
    assert np.array_equal(first.mask, locate(tiny_backbone(), base).mask)
    corners = first.mask.reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 16).sum(1)
    assert sorted(corners) == [0, 0, 0, 16]
    cells = locate(tiny_backbone(), work(finished, RandomMask(0.5)))
    other = locate(tiny_backbone(), replace(work(finished, RandomMask(0.5)), lineage=("seed 1",)))
    assert not np.array_equal(cells.mask, other.mask)


def test_whole_and_given_masks(finished: State) -> None:
    assert locate(tiny_backbone(), work(finished, WholeMask())).mask.all()
    image = np.zeros((32, 32), np.uint8)
    image[8:16, 4:] = 255
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    mask = locate(tiny_backbone(), work(finished, GivenMask(stream.getvalue()))).mask
    want = np.zeros((8, 8), np.bool_)
    want[2:4, 1:] = True
    assert np.array_equal(mask, want)
    with pytest.raises(BadInput, match="the mask is not a readable image"):
        locate(tiny_backbone(), work(finished, GivenMask(b"GIF89a")))
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "PNG")
    with pytest.raises(BadInput, match="mask is empty"):
        locate(tiny_backbone(), work(finished, GivenMask(stream.getvalue())))


def test_the_engine_locates_as_the_direct_call_does(finished: State) -> None:
    sources: list[MaskSource] = [AttentionMask(grid=8, draws=2, level=200, noised=True), ErrorContrastMask()]
    works = [replace(work(finished, source), lineage=(f"seed {n}",)) for source in sources for n in range(3)]
    for pad in (True, False):
        for answer, one in zip(run(Engine(tiny_backbone(), 8, pad), *works), works, strict=True):
            direct = locate(tiny_backbone(), one)
            assert answer.located is not None
            assert np.allclose(answer.located.heat, direct.heat, atol=1e-3)


def test_the_default_grid_is_a_quarter_of_the_latent() -> None:
    grids = {side: (side, side) for side in (96, 48, 24, 12)}
    assert default_grid(grids, (96, 96)) == 24
    assert default_grid({16: (16, 16), 8: (8, 8)}, (16, 16)) == 8


def test_a_family_needs_only_rows_of_attention(finished: State) -> None:
    """The algorithm runs on any backbone that gives maps and queries: here made up ones with a known answer."""
    task = plan_of(tiny_backbone(), work(finished, AttentionMask(grid=4, alpha=0.0, ratio=0.25)))
    assert isinstance(task, AttentionLocalization) and [row.prompt for row in task.rows] == PROMPTS
    low = torch.zeros(4, 4)
    low[1] = 1.0
    # Queries that see only themselves: propagation must change nothing.
    queries = (100 * torch.eye(16)[None],)
    located = task.finish([RowAttention(low, queries), RowAttention(torch.zeros(4, 4)), RowAttention(low)])
    assert isinstance(located, Located)
    want = np.zeros((8, 8), np.bool_)
    want[2:4] = True
    assert np.array_equal(located.mask, want) and located.confidence == pytest.approx(1)
