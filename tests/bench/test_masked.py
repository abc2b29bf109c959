"""The cases whose confined calls are timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lotts_search.backbones.confined import Frozen
from lotts_search.bench.masked import Case, counted, measure, unet
from lotts_search.registry import load_backbone

TINY: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}


def small() -> Case:
    return unet(8, TINY)


def test_the_counted_share_of_a_unet_is_that_of_its_active_tokens() -> None:
    assert counted(small(), 64) == pytest.approx(1, abs=0.02)
    assert counted(small(), 32) == pytest.approx(0.5, abs=0.05)


@torch.inference_mode()
def test_a_confined_call_of_a_case_computes_its_active_tokens_alone() -> None:
    torch.manual_seed(0)
    case = small()
    rows = [Frozen(torch.arange(32), torch.arange(32, 64)) for _ in range(2)]
    with case.record(dict(enumerate(rows))):
        whole: Any = case.call(case.network, 2)
    with case.confine(case.network, rows):
        found: Any = case.call(case.network, 2)
    assert torch.allclose(found[0][:, :, :4], whole[0][:, :, :4], atol=2e-6)
    assert whole[0][:, :, :4].abs().mean() > 0.01 and not found[0][:, :, 4:].any()


def test_an_embedded_model_is_measured_at_its_own_size_by_its_own_prices() -> None:
    (share,) = measure("shapes-flux", 1024, 2, 1, [0.5], torch.float32)
    prices = load_backbone("shapes-flux", device="cpu").info.prices
    assert (share.ratio, share.tokens, share.counted) == (0.5, 64, prices.confined(0.5))
    assert min(share.whole, share.recording, share.measured) > 0
