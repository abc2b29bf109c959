"""What only confined calls of U-Nets have: grids of different sizes, and another ``forward`` of modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lotts_search.backbones import unet_forwards
from lotts_search.backbones.confined import Frozen, Taken
from lotts_search.backbones.offload import offload
from lotts_search.backbones.unet_forwards import Call, as_image, normalize, portions, sums
from lotts_search.backbones.unet_layers import Layer, active_at, layers
from lotts_search.bench.published import SD21_UNET, SDXL_UNET
from tests.tiny import backbone_of, tiny_pipeline
from tests.tiny_xl import tiny_xl_pipeline, xl_backbone_of


def test_at_a_coarser_grid_the_same_share_is_active_where_most_active_tokens_are() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1:5, :4] = True
    row = Frozen(mask.ravel().nonzero().ravel(), (~mask).ravel().nonzero().ravel())
    active, frozen = active_at(row, (4, 4), (8, 8))
    assert active.tolist() == [4, 5, 0, 1] and sorted([*active.tolist(), *frozen.tolist()]) == list(range(16))
    assert [part.tolist() for part in active_at(row, (8, 8), (8, 8))] == [row.active.tolist(), row.places.tolist()]
    assert [len(part) for part in active_at(row, (3, 3), (8, 8))] == [3, 6], "2.25 rounded up"


@pytest.mark.parametrize("config", [SD21_UNET, SDXL_UNET], ids=["SD2.1", "SDXL"])
def test_grids_of_the_published_models_are_those_of_a_call(config: dict[str, Any]) -> None:
    side, sizes = config["sample_size"], {}

    def note(module: Any, inputs: Any, output: Any) -> None:
        sizes[module] = inputs[0].shape, output.shape

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        found = layers(unet, (side, side))
        for layer in found:
            layer.module.register_forward_hook(note)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        text = torch.empty(1, 77, config["cross_attention_dim"])
        unet(torch.empty(1, 4, side, side), torch.empty(1), text, added_cond_kwargs=added)
    for layer in found:
        for shape, grid in zip(sizes[layer.module], (layer.grid, layer.to), strict=True):
            assert shape[2:] == grid if len(shape) == 4 else shape[1] == grid[0] * grid[1]
    wide = {module for module in unet.modules() if getattr(module, "kernel_size", None) == (3, 3)}
    assert wide - {layer.convolution for layer in found} == {unet.conv_in}
    assert {module for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)} <= set(sizes)


def test_odd_latents_can_be_confined_and_blocks_of_other_kinds_cannot() -> None:
    odd = xl_backbone_of(tiny_xl_pipeline(), size=(9, 7))
    latents, times = torch.randn(1, 4, 9, 7), torch.tensor([500.0])
    texts, cells = odd.stack(odd.encode_prompts(["a red circle"])), torch.randperm(63)
    row = Frozen(cells[:30].sort().values, cells[30:].sort().values)
    whole = odd.record(latents, times, texts, {0: row}).flatten(2)[..., row.active]
    assert torch.allclose(
        odd.predict_confined(latents, times, texts, [row]).flatten(2)[..., row.active], whole, atol=2e-6
    )
    other = UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    assert not layers(other, (8, 8))


def test_convolutions_keep_only_what_they_read() -> None:
    """At the latent's grid the cells around a corner of 4 by 4 of 8 by 8; attention keeps all."""
    backbone, mask = backbone_of(tiny_pipeline()), torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = True
    row = Frozen(mask.ravel().nonzero().ravel(), (~mask).ravel().nonzero().ravel())
    texts = backbone.stack(backbone.encode_prompts(["a red circle"]))
    backbone.record(torch.randn(1, *backbone.info.latent), torch.tensor([500.0]), texts, {0: row})
    kept = {type(layer.module): set[int]() for layer in layers(backbone.unet, (8, 8))}
    for layer in layers(backbone.unet, (8, 8)):
        if layer.grid == layer.to == (8, 8) and layer.kept:
            kept[type(layer.module)].add(len(row.kept[layer.module]))
    assert kept[torch.nn.Conv2d] == {9} and kept[torch.nn.Linear] == {48}


@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_offloaded_weights_give_the_same(family: str, how: str) -> None:
    """Hooks of accelerate replace the same ``forward``."""
    backbone: Any = backbone_of(tiny_pipeline()) if family == "sd" else xl_backbone_of(tiny_xl_pipeline())
    latents, times = torch.randn(1, *backbone.info.latent), torch.tensor([500.0])
    texts = backbone.stack(backbone.encode_prompts(["a red circle"]))
    row = Frozen(torch.arange(64)[::2], torch.arange(64)[1::2])

    def outputs() -> list[Any]:
        recorded = backbone.record(latents, times, texts, {0: row})
        return [recorded, backbone.predict_confined(latents + 1, times, texts, [row])]

    before = outputs()
    offload([backbone.unet], how, torch.device("cpu"))
    assert all(map(torch.equal, before, outputs()))
    assert torch.equal(backbone.predict(latents, times, texts), before[0])


def test_group_norms_add_up_in_float32_whatever_the_dtype_is() -> None:
    """In bfloat16 the mean of values around 100 would be wrong by a quarter of their deviation."""
    norm = torch.nn.GroupNorm(4, 8).bfloat16()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    image, cells = (torch.randn(1, 8, 8, 8) + 100).bfloat16(), torch.randperm(64)
    tokens, row = image.flatten(2).transpose(1, 2), Frozen(cells[:20].sort().values, cells[20:].sort().values)
    row.kept[norm] = sums(norm, tokens[:, row.places])[:, 0]
    with torch.inference_mode():
        found = normalize(Layer(norm, (8, 8), (8, 8)), Call((8, 8), [row]))(as_image(tokens[:, row.active]))
        whole = torch.nn.functional.group_norm(image.float(), 4, norm.weight.float(), norm.bias.float())
    assert torch.allclose(found[..., 0].float(), whole.flatten(2)[..., row.active], atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1000, [240]), (150, [120, 120]), (60, [60] * 4), (59, [30] * 8), (25, [20] * 12)]
)
def test_portions_divide_all_rows_in_the_same_way(most: int, sizes: list[int]) -> None:
    found = portions(4, 60, most)
    assert [part.stop - part.start for part in found] == sizes
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]


def test_a_convolution_in_portions_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(tiny_pipeline())
    latents, times, texts = torch.randn(2, *backbone.info.latent), torch.tensor([500.0, 300.0]), ["a red circle"] * 2
    conditioning, cells = backbone.stack(backbone.encode_prompts(texts)), torch.randperm(64)
    rows = [Frozen(cells[:30].sort().values, cells[30:].sort().values) for _ in range(2)]
    backbone.record(latents, times, conditioning, dict(enumerate(rows)))
    at_once = backbone.predict_confined(latents, times, conditioning, rows)
    monkeypatch.setattr(unet_forwards, "CACHED", 0)  # as much as the weights
    assert torch.allclose(backbone.predict_confined(latents, times, conditioning, rows), at_once, atol=2e-6)


@pytest.mark.parametrize("contiguous", [True, False])
def test_tokens_of_several_rows_are_taken_at_once(contiguous: bool) -> None:
    """The image tokens are the last four of six."""
    values = torch.randn(3, 6, 5) if contiguous else torch.randn(3, 5, 6).transpose(1, 2)
    places = {2: torch.tensor([0, 3]), 0: torch.tensor([1])}
    taken = Taken(places, 4)
    parts = taken.apart(taken.of(values))
    assert [part.tolist() for part in parts] == [values[2, [2, 5]].tolist(), values[0, [3]].tolist()]
    assert parts[0].untyped_storage().nbytes() == parts[0].nbytes, "a row keeps no memory of others"
