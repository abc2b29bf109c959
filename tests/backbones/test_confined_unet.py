"""What only confined calls of U-Nets have: grids of different sizes, and another ``forward`` of modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lotts_search.backbones.confined import Frozen
from lotts_search.backbones.confined_unet import active_at, places, side_of
from lotts_search.backbones.offload import offload
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


@pytest.mark.parametrize(
    ("config", "sides", "attentions"),
    [
        (SD21_UNET, [96, 96, 48, 48, 24, 24, 12, 24, 24, 24, 48, 48, 48, 96, 96, 96], 16),
        (SDXL_UNET, [64, 64, 32, 32, 32, 32, 32, 32, 64, 64, 64], 70),
    ],
    ids=["SD2.1", "SDXL"],
)
def test_grids_of_the_published_models(config: dict[str, Any], sides: list[int], attentions: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    side = config["sample_size"]
    found = places(unet, (side, side))
    assert [place.grid for place in found] == [(side, side) for side in sides]
    assert found[-1].first + len(found[-1].attentions) == attentions
    assert side_of(unet, (side, side)) == side // sides[0]


def test_networks_that_cannot_be_confined() -> None:
    assert xl_backbone_of(tiny_xl_pipeline(), size=(10, 8)).info.confines == 2
    odd = xl_backbone_of(tiny_xl_pipeline(), size=(9, 8)).info
    assert odd.confines == 0 == odd.prices.tokens, "tokens of 2 cells do not divide 9"
    plain = UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None, norm_num_groups=4,
    )  # fmt: skip
    assert side_of(plain, (8, 8)) == 0


@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_offloaded_weights_give_the_same(family: str, how: str) -> None:
    """Hooks of accelerate replace the same ``forward``."""
    backbone: Any = backbone_of(tiny_pipeline()) if family == "sd" else xl_backbone_of(tiny_xl_pipeline())
    latents, times = torch.randn(1, *backbone.info.latent), torch.tensor([500.0])
    texts = backbone.stack(backbone.encode_prompts(["a red circle"]))
    everything = torch.arange((8 // backbone.info.confines) ** 2)
    row = Frozen(everything[::2], everything[1::2])

    def outputs() -> list[Any]:
        recorded = backbone.record(latents, times, texts, {0: row})
        return [recorded, backbone.predict_confined(latents + 1, times, texts, [row])]

    before = outputs()
    offload([backbone.unet], how, torch.device("cpu"))
    assert all(map(torch.equal, before, outputs()))
    assert torch.equal(backbone.predict(latents, times, texts), before[0])
