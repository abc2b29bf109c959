"""The options of all families (adapters, precision, memory, previews), in Python and on the command line."""

from __future__ import annotations

import importlib.util
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import nn

from lotts_search.backbones.base import stays_put
from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.load_options import Adapter, LoadOptions
from lotts_search.backbones.offload import offload
from lotts_search.cli import options as cli
from lotts_search.cli.pools import Compute
from lotts_search.cli.run_search import Request
from lotts_search.core.recipe import loading_words
from lotts_search.engine.engine import Engine
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.registry import load_backbone
from lotts_search.work.requests import Sampling
from tests.tiny import run, sample
from tests.tiny_flux import tiny_flux
from tests.tiny_sd3 import tiny_sd3_pipeline
from tests.tiny_xl import tiny_vae, tiny_xl_pipeline

WORK = sample(0, Sampling("a red circle", 3, 2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny-xl"
    tiny_xl_pipeline().save_pretrained(path, safe_serialization=True)
    return str(path)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter of rank 2 for the queries and values of the U-Net and both text encoders, as diffusers does."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = tiny_xl_pipeline()
    layers: dict[str, Any] = {}
    for name, targets in [
        ("unet", ["to_q", "to_v"]),
        ("text_encoder", ["q_proj", "v_proj"]),
        ("text_encoder_2", ["q_proj", "v_proj"]),
    ]:
        module = getattr(pipeline, name)
        module.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(module)
    generator = torch.Generator().manual_seed(1)
    layers = {
        part: {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in weights.items()}
        for part, weights in layers.items()
    }
    path = tmp_path_factory.mktemp("adapters")
    pipeline.save_lora_weights(path, **layers, safe_serialization=True)
    return path / "pytorch_lora_weights.safetensors"


def latent(backbone: Any) -> Any:
    (result,) = run(Engine(backbone, 2), WORK)
    assert result.state is not None
    return result.state.latent


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_merged_adapters_equal_those_of_the_pipeline(folder: str, adapter: Path, scale: float) -> None:
    pipeline = tiny_xl_pipeline()
    pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name, adapter_name="style")
    pipeline.set_adapters("style", scale)
    backbone: Any = load_backbone(folder, device="cpu", lora=[f"{adapter}:{scale}"])
    plain: Any = load_backbone(folder, device="cpu")
    (got,), (before,) = backbone.encode_prompts(["a red circle"]), plain.encode_prompts(["a red circle"])
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt("a red circle", device="cpu", do_classifier_free_guidance=True)
        assert torch.allclose(got.text, text[0], atol=1e-5) and torch.allclose(got.pooled, pooled[0], atol=1e-5)
        assert (got.text - before.text).abs().max() > 1e-2
        latents, times = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
        added = {"text_embeds": pooled, "time_ids": got.time_ids[None]}
        want = pipeline.unet(latents, times, text, added_cond_kwargs=added).sample
        assert torch.allclose(backbone.predict(latents, times, backbone.stack([got])), want, atol=1e-5)
        assert (plain.predict(latents, times, backbone.stack([got])) - want).abs().max() > 1e-2
    # Plain layers remain: an adapter costs nothing per step, and attention capture is unaffected.
    assert [type(m) for m in backbone.unet.modules()] == [type(m) for m in plain.unet.modules()]


def test_several_adapters_add_up(folder: str, adapter: Path) -> None:
    once = load_backbone(folder, device="cpu", lora=[Adapter(str(adapter.parent), 0.75)])
    twice = load_backbone(folder, device="cpu", lora=[(str(adapter), 0.5), f"{adapter}:0.25"])
    assert np.abs(latent(once) - latent(twice)).max() < 1e-4


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    folder: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[Exception], *words: str, lora: str) -> None:
        with pytest.raises(kind) as caught:
            load_backbone(folder, device="cpu", lora=[lora])
        message = str(caught.value)
        assert all(word in message for word in words) and "\n" not in message, message

    refused(BadInput, "no LoRA adapter", "./nowhere.safetensors", lora="./nowhere.safetensors")
    refused(BadInput, "has no .safetensors", lora=str(tmp_path))
    (tmp_path / "style.bin").write_bytes(b"pickled")
    refused(BadInput, ".safetensors", "style.bin", lora=str(tmp_path / "style.bin"))
    wrong = tmp_path / "wrong.safetensors"
    save_file({name: value[:1, :1].clone() for name, value in load_file(adapter).items()}, wrong, {"format": "pt"})
    refused(Failure, "wrong.safetensors", lora=str(wrong))
    other = tmp_path / "other.safetensors"
    flux = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 8)}
    flux |= {"transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(8, 2)}
    save_file(flux, other, {"format": "pt"})
    refused(BadInput, "other.safetensors", "another family", lora=str(other))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(Failure, "peft", "lotts-search[lora]", lora=str(adapter))


def layer(name: str, down: str = "lora_A", up: str = "lora_B") -> dict[str, torch.Tensor]:
    return {f"{name}.{down}.weight": torch.zeros(2, 8), f"{name}.{up}.weight": torch.zeros(8, 2)}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (layer("unet.down_blocks.9.attentions.0.to_q"), "unet.down_blocks.9.attentions.0.to_q"),
        (layer("text_encoder.text_model.encoder.layers.77.self_attn.q_proj"), "text_encoder.encoder.layers.77.self_attn.q_proj"),
        (layer("text_encoder_3.encoder.block.0.q"), "text_encoder_3.encoder.block.0.q"),
        (layer("transformer.blocks.1.to_q"), "transformer.blocks.1.to_q"),
        (layer("lora_unet_down_blocks_9_attentions_0_to_q", "lora_down", "lora_up"), "lora_unet_down_blocks_9_attentions_0_to_q"),
    ],
)  # fmt: skip
def test_layers_that_the_model_does_not_have_are_reported(
    folder: str, adapter: Path, tmp_path: Path, extra: dict[str, torch.Tensor], named: str
) -> None:
    mixed = tmp_path / "mixed.safetensors"
    save_file(load_file(adapter) | extra, mixed, {"format": "pt"})
    with pytest.warns(Notice, match=f"has no place for some of its layers: {named}$"):
        got = load_backbone(folder, device="cpu", lora=[str(mixed)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        want = load_backbone(folder, device="cpu", lora=[str(adapter)])
    assert np.array_equal(latent(got), latent(want))
    save_file(extra, mixed, {"format": "pt"})
    with pytest.raises(BadInput, match=r"has no weights for model .*: it is of another family"):
        load_backbone(folder, device="cpu", lora=[str(mixed)])


def kohya(weights: dict[str, torch.Tensor], extra: str) -> dict[str, torch.Tensor]:
    """The U-Net's layers under the names of other trainers, each with one more tensor."""
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if name.startswith("unet."):
            layer, _, matrix = name.removeprefix("unet.").removesuffix(".weight").rpartition(".")
            layer = f"lora_unet_{layer.replace('.', '_')}"
            found[f"{layer}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = value
            found[f"{layer}.{extra}"] = torch.ones(8, 1)
    return found


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_scales_of_dora_are_reported(
    folder: str, adapter: Path, tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {name: value for name, value in load_file(adapter).items() if name.startswith("unet.")}
    file = tmp_path / "dora.safetensors"
    save_file(weights, file, {"format": "pt"})
    want = latent(load_backbone(folder, device="cpu", lora=[str(file)]))
    scales = {name.replace("lora_A.weight", "dora_scale"): torch.ones(8, 1) for name in weights if "lora_A" in name}
    save_file(kohya(weights, "dora_scale") if form == "kohya" else weights | scales, file, {"format": "pt"})
    with pytest.warns(Notice, match=f"dora.safetensors: its {len(scales)} scales of DoRA are not used") as said:
        got = load_backbone(folder, device="cpu", lora=[str(file)])
    assert len(said) == 1 and not caplog.records
    assert np.abs(latent(got) - want).max() < (1e-4 if form == "diffusers" else np.inf)


def without(weights: dict[str, torch.Tensor], matrix: str, all_: bool) -> dict[str, torch.Tensor]:
    first = next(name for name in weights if matrix in name)
    return {name: value for name, value in weights.items() if matrix not in name or not (all_ or name == first)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "lora_A", False), "is broken: .*to_q has only one of its two matrices"),
        (lambda w: without(w, "lora_B", False), "is broken: .*to_q has only one of its two matrices"),
        (lambda w: without(w, "lora_A", True), "has only one of its two matrices"),
        (lambda w: without(w, "lora_B", True), "has only one of its two matrices"),
        (lambda w: w | {next(iter(w)): next(iter(w.values())) * float("nan")}, "is broken: .* has values that are not finite"),
        (lambda w: kohya(w, "diff_b"), "not been correctly renamed: lora_unet_down_blocks.*diff_b"),
        (lambda w: kohya(w, "hada_w1_a"), "not been correctly renamed: lora_unet_down_blocks.*hada_w1_a"),
    ],
    ids=["one A", "one B", "all A", "all B", "nan", "bias", "loha"],
)  # fmt: skip
def test_an_adapter_that_is_broken_or_of_another_kind_is_refused(
    folder: str,
    adapter: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    file = tmp_path / "odd.safetensors"
    weights = {name: value for name, value in load_file(adapter).items() if name.startswith("unet.")}
    save_file(change(weights), file, {"format": "pt"})
    with pytest.raises((BadInput, Failure), match=message) as caught:
        load_backbone(folder, device="cpu", lora=[str(file)])
    assert "odd.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_without_effect_is_reported(folder: str, adapter: Path) -> None:
    with pytest.warns(Notice, match="has the scale 0, so it changes nothing"):
        got = load_backbone(folder, device="cpu", lora=[f"{adapter}:0"])
    assert np.array_equal(latent(got), latent(load_backbone(folder, device="cpu")))


def test_many_missing_layers_are_counted(folder: str, adapter: Path, tmp_path: Path) -> None:
    extra = {name: value for at in range(9) for name, value in layer(f"unet.extra.{at}.to_q").items()}
    save_file(load_file(adapter) | extra, tmp_path / "mixed.safetensors", {"format": "pt"})
    with pytest.warns(Notice, match="layers: unet.extra.0.to_q, unet.extra.1.to_q, unet.extra.2.to_q and 6 more$"):
        load_backbone(folder, device="cpu", lora=[str(tmp_path)])


def test_slicing_changes_nothing_and_tiling_little(folder: str) -> None:
    plain: Any = load_backbone(folder, device="cpu")
    thrifty: Any = load_backbone(folder, device="cpu", vae_slicing=True, vae_tiling=True)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(plain.decode(latents), thrifty.decode(latents))  # these fit into one tile
    assert thrifty.vae.use_slicing and thrifty.vae.use_tiling and not plain.vae.use_tiling


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_weights_give_the_same_images(folder: str, how: str) -> None:
    work = sample(0, Sampling("a red circle", 3, 2.0))
    (want,) = run(Engine(load_backbone(folder, device="cpu"), 2), work)
    backbone: Any = load_backbone(folder, device="cpu", offload=how)
    (got,) = run(Engine(backbone, 2), work)
    assert np.array_equal(got.image, want.image)  # type: ignore[arg-type]
    assert backbone.device == torch.device("cpu")
    assert stays_put(load_backbone(folder, device="cpu")) and not stays_put(
        backbone
    )  # so its calls are not recorded as CUDA graphs
    if how == "sequential":
        assert {weight.device.type for weight in backbone.unet.parameters()} == {"meta"}
    assert backbone.attend(*attention(backbone))[0].words.shape == (4, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_weights_leave_the_device(folder: str, how: str) -> None:
    backbone: Any = load_backbone(folder, device="cuda", offload=how)
    (want,) = run(Engine(load_backbone(folder, device="cuda"), 2), WORK)
    (got,) = run(Engine(backbone, 2), WORK)
    assert np.abs(got.image.astype(int) - want.image).max() <= 1  # type: ignore[union-attr]
    backbone.decode(torch.zeros(1, 4, 8, 8, device="cuda"))
    places = {part: next(getattr(backbone, part).parameters()).device.type for part in ("text_encoder", "unet", "vae")}
    assert places["text_encoder"] == places["unet"] == ("cpu" if how == "model" else "meta")
    assert backbone.device.type == "cuda" and places["vae"] == ("cuda" if how == "model" else "meta")


@pytest.mark.parametrize("pipeline", [tiny_xl_pipeline, tiny_flux, tiny_sd3_pipeline], ids=["sdxl", "flux", "sd3"])
def test_a_compiled_network_computes_the_same_and_its_attention_can_be_captured(
    pipeline: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, seen = list[int](), list[int]()
    module_compile = nn.Module.compile

    def backend(graph: Any, inputs: Any) -> Any:  # the default backend needs a C++ compiler and a minute
        graphs.append(len(graphs))

        def call(*given: Any) -> Any:
            seen.append(len(given))
            return graph.forward(*given)

        return call

    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: module_compile(self, backend=backend, **how))
    pipeline().save_pretrained(tmp_path, safe_serialization=True)
    plain: Any = load_backbone(str(tmp_path), device="cpu")
    compiled: Any = load_backbone(str(tmp_path), device="cpu", compile=True)
    assert compiled.info.confines == 0 < plain.info.confines, "its masked steps are whole"
    generator = torch.Generator().manual_seed(0)
    text = plain.encode_prompts(["a star", "a red circle", "a blue star"])
    made = list[int]()
    for rows in (2, 3, 2):
        latents = torch.randn(rows, *plain.info.latent, generator=generator)
        call = latents, torch.linspace(300.0, 700.0, rows), plain.stack(text[:rows])
        assert torch.allclose(compiled.predict(*call), plain.predict(*call), rtol=1e-5, atol=1e-6)
        made.append(len(graphs))
        grid = next(iter(plain.grids().values()))
        read = *call, [[1, 2]] * rows, [True] * rows, grid
        before = len(seen)
        for got, want in zip(compiled.attend(*read), plain.attend(*read), strict=True):
            assert torch.equal(got.words, want.words)
        assert len(seen) == before  # uncompiled, so that the recorded attention is that of the call
    assert seen and made[0] == made[-1], "another number of rows is no other program"
    assert len(graphs) == made[0]


def test_compiling_is_refused_with_sequential_offloading(folder: str) -> None:
    with pytest.raises(BadInput, match="sequential"):
        load_backbone(folder, device="cpu", compile=True, offload="sequential")


def attention(backbone: Any) -> Any:
    stacked = backbone.stack(backbone.encode_prompts(["a star"]))
    return torch.zeros(1, 4, 8, 8), torch.tensor([10.0]), stacked, [[1, 2]], [True], (4, 4)


def test_offloaded_modules_take_turns_in_any_order() -> None:
    moves: list[tuple[str, str]] = []

    class Part(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.name = name

        def to(self, device: Any) -> Any:  # type: ignore[override]
            moves.append((self.name, str(device)))
            return self

        def forward(self, value: int) -> int:
            return value + 1

    text, network, vae = (Part(name) for name in ("text", "network", "vae"))
    offload([text, network, vae], "model", torch.device("cuda"))
    for part in (network, network, vae, network, text):
        assert part(1) == 2
    assert moves == [
        ("network", "cuda"),
        *(("network", "cpu"), ("vae", "cuda")),
        *(("vae", "cpu"), ("network", "cuda")),
        *(("network", "cpu"), ("text", "cuda")),
    ]


def test_a_tiny_decoder_shows_unfinished_images(folder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    counts = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    tiny = AutoencoderTiny(**blocks, **counts).eval()
    tiny.save_pretrained(tmp_path / "tiny", safe_serialization=True)
    backbone: Any = load_backbone(folder, device="cpu", preview=str(tmp_path / "tiny"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1) * 255
    shown = backbone.preview(latents)
    assert shown.shape == (2, 32, 32, 3)
    assert np.abs(shown - want.permute(0, 2, 3, 1).numpy()).max() <= 0.51
    assert not np.array_equal(shown, backbone.decode(latents))
    plain: Any = load_backbone(folder, device="cpu")
    assert np.array_equal(plain.preview(latents), plain.decode(latents))
    wide = AutoencoderTiny(latent_channels=8, **blocks, **counts)
    wide.save_pretrained(tmp_path / "wide", safe_serialization=True)
    with pytest.raises(BadInput, match="8 latent channels"):
        load_backbone(folder, device="cpu", preview=str(tmp_path / "wide"))


@pytest.mark.parametrize("offload", [None, "sequential"])
def test_convolutions_in_channels_last_format_compute_the_same(folder: str, offload: str | None) -> None:
    plain, found = (
        load_backbone(folder, device="cpu", offload=how, channels_last=last)
        for how, last in ((None, False), (offload, True))
    )
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0])
    texts = plain.stack(plain.encode_prompts(["a red circle", ""]))
    assert torch.allclose(found.predict(latents, times, texts), plain.predict(latents, times, texts), atol=1e-5)
    assert np.abs(found.decode(latents).astype(int) - plain.decode(latents)).max() <= 1
    for part in ("unet", "vae"):
        sizes = [weight.is_contiguous(memory_format=torch.channels_last) for weight in wide(getattr(found, part))]
        assert offload or (sizes and all(sizes))


def wide(module: torch.nn.Module) -> list[torch.Tensor]:
    """The weights of convolutions that look at more than a pixel and a channel."""
    return [weight for weight in module.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]


def test_an_autoencoder_unfit_for_float16_stays_in_float32(folder: str, tmp_path: Path) -> None:
    assert load_backbone(folder, device="cpu", dtype="float16").vae.dtype == torch.float32  # type: ignore[attr-defined]
    pipeline = tiny_xl_pipeline(vae={"force_upcast": False})
    pipeline.save_pretrained(tmp_path / "fit", safe_serialization=True)
    half: Any = load_backbone(str(tmp_path / "fit"), device="cpu", dtype=torch.float16)
    assert half.vae.dtype == half.unet.dtype == half.text_encoder_2.dtype == torch.float16


def test_scaling_and_shifting_of_latents_is_inverted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    torch.manual_seed(0)
    plain = tiny_vae(scaling_factor=1.0)
    own = LatentCodec(plain).encode(images)
    for config, want in [
        ({"scaling_factor": 0.3, "shift_factor": 0.2}, (own - 0.2) * 0.3),
        (
            {"scaling_factor": 0.3, "latents_mean": mean, "latents_std": std},
            (own - torch.tensor(mean).view(4, 1, 1)) * 0.3 / torch.tensor(std).view(4, 1, 1),
        ),
    ]:
        vae = tiny_vae(**config)
        vae.load_state_dict(plain.state_dict())
        codec = LatentCodec(vae)
        assert torch.allclose(codec.encode(images), want, atol=1e-5)
        assert np.abs(codec.decode(want).astype(int) - LatentCodec(plain).decode(own)).max() <= 1


def test_options_are_checked_before_anything_is_read() -> None:
    assert Adapter.read("me/style:0.5") == Adapter("me/style", 0.5)
    assert Adapter.read("C:/x") == Adapter("C:/x") and Adapter.read("a.safetensors") == Adapter("a.safetensors", 1.0)
    assert LoadOptions.of({"lora": "x:2", "size": [8, 16]}) == LoadOptions(lora=(Adapter("x", 2.0),), size=(8, 16))
    for options, words in [
        ({"dtype": "int8"}, "float32, bfloat16 or float16, got 'int8'"),
        ({"offload": "disk"}, "model or sequential, got 'disk'"),
        ({"size": "64"}, "height, width"),
        ({"lora": [("x", "much")]}, "SOURCE:SCALE"),
        ({"dtyp": "float16"}, "did you mean 'dtype'"),
        ({"compile": "no"}, "compile must be true or false, got 'no'"),
        ({"vae_slicing": 1}, "vae_slicing must be true or false, got 1"),
        ({"channels_last": "no"}, "channels_last must be true or false, got 'no'"),
        ({"variant": ""}, "variant must be a text, got ''"),
        ({"revision": 2}, "revision must be a text, got 2"),
        ({"preview": True}, "preview must be a text, got True"),
        ({"size": [True, 64]}, "height, width"),
        ({"lora": {"x": 0.5}}, "SOURCE or SOURCE:SCALE, got {'x': 0.5}"),
        ({"lora": "x:nan"}, "SOURCE or SOURCE:SCALE"),
        ({"lora": [("x", float("inf"))]}, "SOURCE or SOURCE:SCALE"),
    ]:
        with pytest.raises(BadInput, match=words):
            LoadOptions.of(options)


def test_the_command_line_accepts_the_options_and_the_recipe_repeats_them(folder: str, adapter: Path) -> None:
    load = cli.loading("bfloat16", "48x32", [f"{adapter}:0.5"], True, False, None, None, None, None)
    assert load == {"dtype": "bfloat16", "size": (32, 48), "lora": [f"{adapter}:0.5"], "vae_slicing": True}
    line = Request("generate", "a star", folder, "lotts", "shapes-reward", 0, load=load).line()
    words = shlex.split(line)
    assert words[-7:] == ["--dtype", "bfloat16", "--size", "48x32", "--lora", f"{adapter}:0.5", "--vae-slicing"]
    with Compute(local=True, load=load).pool(folder, "shapes-reward") as pool:
        assert isinstance(pool, LocalPool) and pool.info.image == (32, 48)
    assert loading_words(cli.loading(spread=2)) == ["--spread", "2"]
    assert loading_words(cli.loading(channels_last=True)) == ["--channels-last"]
    assert [cli.image_size(text) for text in ("48X32", " 64 ", "8×16")] == [(32, 48), (64, 64), (16, 8)]
    for text in ("big", "3x4x5", "-1", "²", "9" * 5000, "8x", ""):
        with pytest.raises(BadInput, match="WIDTHxHEIGHT"):
            cli.image_size(text)
    with pytest.raises(BadInput, match="dtype"):
        cli.loading(dtype="half")
    for option in (
        "dtype",
        "offload",
        "preview",
        "revision",
        "variant",
    ):  # as from a variable of a shell that is not set
        with pytest.raises(BadInput, match=option):
            cli.loading(**{option: ""})
