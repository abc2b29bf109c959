from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lotts_search.bench import published
from lotts_search.bench.published import Builder, fill
from lotts_search.cli import main

SMALL: dict[str, dict[str, Any]] = {
    "SD21_UNET": {"block_out_channels": [32, 32, 32, 32], "attention_head_dim": 1, "sample_size": 16},
    "SD21_VAE": {"block_out_channels": [32] * 4, "sample_size": 128},
    "SDXL_UNET": {"block_out_channels": [32, 32, 32], "attention_head_dim": 1, "transformer_layers_per_block": 1},
    "SDXL_VAE": {"block_out_channels": [32] * 4},
    "SCHNELL_TRANSFORMER": {
        "num_attention_heads": 2,
        "num_layers": 4,
        "num_single_layers": 1,
        "attention_head_dim": 16,
    },
    "SCHNELL_VAE": {"block_out_channels": [32] * 4},
}
SIZES = {"axes_dims_rope": [4, 6, 6]}


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_configurations_have_the_published_numbers_of_weights() -> None:
    builder = Builder(torch.device("cpu"), torch.bfloat16, text=False)
    t5 = builder.module(lambda: T5EncoderModel(T5Config(**published.SCHNELL_TEXT_2)), False)
    with torch.device("meta"):
        assert count(UNet2DConditionModel.from_config(published.SD21_UNET)) == 865_910_724
        assert count(UNet2DConditionModel.from_config(published.SDXL_UNET)) == 2_567_463_684
        assert count(FluxTransformer2DModel.from_config(published.SCHNELL_TRANSFORMER)) == 11_891_178_560
        assert count(AutoencoderKL.from_config(published.SD21_VAE)) == 83_653_863
        assert count(AutoencoderKL.from_config(published.SDXL_VAE)) == 83_653_863
        assert count(AutoencoderKL.from_config(published.SCHNELL_VAE)) == 83_819_683
    assert count(builder.clip(CLIPTextModel, published.SD21_TEXT)) == 340_387_840
    assert count(builder.clip(CLIPTextModel, published.SDXL_TEXT)) == 123_060_480
    assert count(builder.clip(CLIPTextModelWithProjection, published.SDXL_TEXT_2)) == 694_659_840
    assert count(t5) == 4_762_310_656


def test_weights_are_created_on_the_device_in_their_final_dtype() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(40, 50), nn.LayerNorm(50), nn.Embedding(3, 4))
        tied = nn.Linear(4, 3, bias=False)
    tied.weight = empty[2].weight
    empty.append(tied)
    made = fill(empty, torch.device("cpu"), torch.bfloat16)
    assert all(w.dtype == torch.bfloat16 and not w.is_meta and not w.requires_grad for w in made.parameters())
    assert made[0].weight.float().std() == pytest.approx(0.02, rel=0.1) and not made[0].bias.any()
    assert bool((made[1].weight == 1).all()) and made[3].weight is made[2].weight


def test_tied_blocks_share_the_weights_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    config = (
        published.SCHNELL_TRANSFORMER | SMALL["SCHNELL_TRANSFORMER"] | SIZES | {"num_layers": 2, "num_single_layers": 3}
    )
    monkeypatch.setattr(published, "SCHNELL_TRANSFORMER", config)
    monkeypatch.setattr(published, "SCHNELL_VAE", published.SCHNELL_VAE | SMALL["SCHNELL_VAE"])
    builder = Builder(torch.device("cpu"), torch.float32, (64, 64), text=False)
    plain, tied = (published.flux_schnell(replace(builder, tied=tied)).transformer for tied in (False, True))
    names = [name for name, _ in plain.named_parameters()]
    assert names == [name for name, _ in tied.named_parameters(remove_duplicate=False)]
    weights = dict(tied.named_parameters(remove_duplicate=False))
    for kind, count in (("transformer_blocks", 2), ("single_transformer_blocks", 3)):
        for name in names:
            if name.startswith(f"{kind}.0."):
                assert all(weights[name.replace(".0.", f".{i}.", 1)] is weights[name] for i in range(count))
    # It computes the same as a transformer with copies of these weights.
    copied = FluxTransformer2DModel.from_config(config).eval()
    copied.load_state_dict(tied.state_dict())
    given = {
        "hidden_states": torch.randn(1, 16, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, 5, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.rand(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        assert torch.equal(tied(**given).sample, copied(**given).sample)


def test_every_family_runs_a_whole_search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, settings in SMALL.items():
        config = getattr(published, name) | settings
        monkeypatch.setattr(published, name, config | (SIZES if "axes_dims_rope" in config else {}))
    words = ["--device", "cpu", "--no-text", "--timed", "1", "--steps", "2", "--images", "3", "--size", "128"]
    main_exits(["bench", "families", *words, "--dtype", "float32", "--json"])
    reports = {report["family"]: report for report in json.loads(capsys.readouterr().out)}
    assert {name: report["latent"] for name, report in reports.items()} == {
        "sd": [4, 16, 16],
        "sdxl": [4, 16, 16],
        "flux": [16, 16, 16],
    }
    assert [report["grid"] for report in reports.values()] == [[4, 4], [4, 4], [8, 8]]
    for name, report in reports.items():
        assert report["image"] == [128, 128] and report["mask_cells"] == 128
        assert report["steps"] == {"sd": 50, "sdxl": 30, "flux": 10}[name]
        assert report["sample_s"] == pytest.approx(report["steps"] * report["step_s"])
        assert report["localize_ratio"] == pytest.approx(report["localize_s"] / report["sample_s"])
        assert report["search_images"] == 3 and report["peak_bytes"] > report["weights_bytes"] > 0
    # One sample, its localization and two refinements from t0 = 1 (0 for FLUX, the rounded share of its 2 steps).
    assert [reports[name]["search_nfe"] for name in ("sd", "sdxl", "flux")] == [2 + 1.5 + 2, 2 + 1.5 + 2, 2 + 1 + 4]


def test_encoded_prompts_have_the_same_shape_without_text_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in SMALL.items():
        config = getattr(published, name) | settings
        monkeypatch.setattr(published, name, config | (SIZES if "axes_dims_rope" in config else {}))
    small = {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 400}
    for name in ("SD21_TEXT", "SDXL_TEXT", "SDXL_TEXT_2", "SCHNELL_TEXT"):
        monkeypatch.setattr(published, name, getattr(published, name) | small)
    t5 = published.SCHNELL_TEXT_2 | {"num_layers": 1, "d_ff": 8, "vocab_size": 400, "num_heads": 1}
    monkeypatch.setattr(published, "SCHNELL_TEXT_2", t5)
    builder = Builder(torch.device("cpu"), torch.float32, (128, 128), depth=1)
    for make in published.FAMILIES.values():
        pair = [make(replace(builder, text=text)) for text in (True, False)]
        fresh, other = (backbone.stack(backbone.encode_prompts(["a red star"])) for backbone in pair)
        for one, two in zip(tensors(fresh), tensors(other), strict=True):
            assert one.shape == two.shape and one.dtype == two.dtype


def tensors(conditioning: Any) -> list[torch.Tensor]:
    values = [conditioning] if isinstance(conditioning, torch.Tensor) else vars(conditioning).values()
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "sd3"], "sdxl"),
        (["--dtype", "int8"], "bfloat16"),
        (["--device", "nowhere"], "cuda"),
        (["--family", "flux", "--size", "100", "--device", "cpu"], "multiples of 16"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_exits(["bench", "families", "--no-text", *words]) == 2
    assert message in capsys.readouterr().err


def main_exits(words: list[str]) -> object:
    try:
        main(words)
    except SystemExit as stop:
        return stop.code
    return 0
