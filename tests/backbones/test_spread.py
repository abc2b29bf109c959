"""Models on several devices: what each holds, and that all tensors are moved to where they are used."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lotts_search.backbones import loading
from lotts_search.backbones import spread as spreading
from lotts_search.backbones.attention.base import Concept
from lotts_search.backbones.base import device_of, stays_put
from lotts_search.backbones.confined import Frozen
from lotts_search.backbones.load_options import LoadOptions
from lotts_search.backbones.spread import divide, gpus, spread
from lotts_search.bench import published
from lotts_search.core.costs import Costs
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_backbone, loaded
from lotts_search.work.masks import AttentionMask, ConceptMask, ErrorContrastMask
from lotts_search.work.requests import Encode, Locate, Region, Sampling, Segment
from tests.pretended import DEVICES, pretended_devices
from tests.tiny import backbone_of, run, sample, tiny_pipeline
from tests.tiny_flux import flux_of, tiny_flux
from tests.tiny_sd3 import sd3_backbone_of, tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_pipeline, xl_backbone_of


def masking_sd() -> Any:
    """Stable Diffusion whose text encoder gets an attention mask."""
    pipeline = tiny_pipeline()
    pipeline.text_encoder.config.use_attention_mask = True
    return pipeline


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "sd": (masking_sd, backbone_of),
    "sdxl": (tiny_xl_pipeline, xl_backbone_of),
    "sd3.5": (lambda: tiny_sd3_pipeline(newer=True), sd3_backbone_of),
    "flux": (lambda: tiny_flux(guidance=True), flux_of),
}
GB = 10**9


def test_the_least_space_left_is_the_largest_possible() -> None:
    """Compared with all ways to divide, for rooms of different sizes, one of them too small for anything."""
    choice = np.random.default_rng(0)
    for _ in range(60):
        sizes, rooms = choice.integers(1, 9, 6).tolist(), choice.integers(1, 16, 3).tolist()
        left = []
        for places in itertools.combinations_with_replacement(range(3), 6):
            used = [sum(size for size, place in zip(sizes, places, strict=True) if place == room) for room in range(3)]
            if places[0] == 0 and all(map(int.__le__, used, rooms)):
                left.append(min(room - taken for room, taken in zip(rooms, used, strict=True) if taken))
        found = divide(sizes, rooms)
        if found is None:
            assert not left, (sizes, rooms)
            continue
        used = [sum(size for size, place in zip(sizes, found, strict=True) if place == room) for room in range(3)]
        assert found[0] == 0 and found == sorted(found)
        assert min(room - taken for room, taken in zip(rooms, used, strict=True) if taken) == max(left)


def flux_parts() -> list[Any]:
    """FLUX.1-schnell in bfloat16 without memory: network, text encoders, autoencoder."""
    with torch.device("meta"):
        parts = [
            FluxTransformer2DModel(**published.SCHNELL_TRANSFORMER),
            CLIPTextModel(CLIPTextConfig(**published.SCHNELL_TEXT)),
            T5EncoderModel(T5Config(**published.SCHNELL_TEXT_2)),
            AutoencoderKL(**published.SCHNELL_VAE),
        ]
        return [part.to(torch.bfloat16) for part in parts]


def sdxl_parts() -> list[Any]:
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel(**published.SDXL_UNET),
            CLIPTextModel(CLIPTextConfig(**published.SDXL_TEXT)),
            CLIPTextModelWithProjection(CLIPTextConfig(**published.SDXL_TEXT_2)),
            AutoencoderKL(**published.SDXL_VAE),
        ]
        return [part.to(torch.float16) for part in parts]


@pytest.mark.parametrize(
    ("parts", "rooms", "held", "blocks"),
    [
        (flux_parts, [24, 24], [16.9, 16.9], [[32, 25], [0, 12], [0, 24]]),
        (flux_parts, [16, 16, 16], [11.2, 11.4, 11.2], [[16, 36, 5], [0, 0, 12], [0, 0, 24]]),
        (flux_parts, [24, 12], [22.8, 10.9], [[53, 4], [0, 12], [0, 24]]),
        (sdxl_parts, [8, 8], [2.7, 4.3], [[3, 3], [0, 12], [0, 32]]),
    ],
    ids=["FLUX on 2x24", "FLUX on 3x16", "FLUX on 24 and 12", "SDXL on 2x8"],
)
def test_weights_of_published_sizes_are_divided_so(
    parts: Callable[[], list[Any]], rooms: list[int], held: list[float], blocks: list[list[int]]
) -> None:
    """GB on each GPU, and how many blocks of network and text encoders."""
    network, *encoders, vae = parts()
    divided = [spreading._Divided(part) for part in (network, *encoders)]
    sizes = [size for part in divided for size in part.sizes()]
    sizes[0] += sum(tensor.nbytes for tensor in vae.parameters())
    every = [network, *encoders, vae]
    assert sum(sizes) == sum(tensor.nbytes for part in every for tensor in (*part.parameters(), *part.buffers()))
    places = divide(sizes, [room * GB for room in rooms])
    assert places is not None
    used = [sum(size for size, place in zip(sizes, places, strict=True) if place == room) for room in range(len(rooms))]
    assert [round(size / GB, 1) for size in used] == held
    rest = iter(places)
    for part, wanted in zip(divided, blocks, strict=True):
        own = [next(rest) for _ in part.sizes()][1:]
        assert [own.count(room) for room in range(len(rooms))] == wanted


def test_what_one_gpu_cannot_hold_is_refused_with_the_sizes() -> None:
    network, *encoders, vae = flux_parts()
    message = r"flux does not fit: its weights take 31\.4 GiB, and free are 14\.9 GiB on cuda:0 and 14\.9 GiB on cuda:1"
    with pytest.raises(BadInput, match=message):
        spread("flux", network, encoders, [vae], [torch.device("cuda", 0), torch.device("cuda", 1)], [16 * GB] * 2)


def plain(value: Any, device: torch.device) -> Any:
    """Copies on the CPU of all tensors in an answer, which must be on the device."""
    if isinstance(value, torch.Tensor):
        assert value.device == device
        return value.cpu()
    if isinstance(value, list | tuple):
        return [plain(one, device) for one in value]
    return [plain(one, device) for one in vars(value).values()] if hasattr(value, "__dict__") else value


def answers(backbone: Any) -> list[Any]:
    """What a backbone says to everything that it can be asked."""
    device, random = device_of(backbone), torch.Generator().manual_seed(0)
    latents = torch.randn(2, *backbone.info.latent, generator=random).to(device)
    times = torch.tensor([700.0, 300.0], device=device)
    texts = backbone.encode_prompts(["a red circle", "the blue star on the left"])
    call = latents, times, backbone.stack(texts)
    found: list[Any] = [texts, backbone.predict(*call)]
    for grid in backbone.grids().values():
        found.append(backbone.attend(*call, [[1, 2], [1, 3]], [True, False], grid))
    if hasattr(backbone, "attend_concepts"):
        concepts = [[Concept(text, [1, 2, 3], [0, 2]) for text in texts]] * 2
        found.append(backbone.attend_concepts(*call, concepts, [False, True], 3))
    tokens = (8 // backbone.info.confines) ** 2
    order = torch.randperm(tokens, generator=random)
    rows = [Frozen(*(part.sort().values.to(device) for part in order.roll(row).chunk(2))) for row in range(2)]
    found.append(backbone.record(*call, dict(enumerate(rows))))
    found.append(backbone.predict_confined(latents + 1, times, call[2], rows))
    found += [backbone.decode(latents), backbone.encode(np.full((1, *backbone.info.image, 3), 9, np.uint8))]
    return plain(found, device)  # type: ignore[no-any-return]


def near(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other, [tolerance] * len(one)))
    if not hasattr(one, "shape"):
        return bool(one == other)
    distance = np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max()
    return bool(distance <= (1 if one.dtype in (np.uint8, torch.uint8) and tolerance else tolerance))


def spread_over(family: str, count: int, places: Callable[[int], int] | None = None) -> Any:
    """A small model on pretended devices: as evenly as possible, or each unit in its place."""
    make, wrap = FAMILIES[family]
    pipeline = make()
    backbone = wrap(pipeline, device=DEVICES[0])
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder")]
    total = sum(weight.nbytes for part in (backbone.network, *encoders, pipeline.vae) for weight in part.parameters())
    with pytest.MonkeyPatch.context() as patch:
        if places is not None:
            patch.setattr(spreading, "divide", lambda sizes, rooms: list(map(places, range(len(sizes)))))
        spread("tiny", backbone.network, encoders, [pipeline.vae], DEVICES[:count], [2 * total] * count)
    return backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_wherever_layers_are_nothing_is_mixed_and_no_bit_changes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is on another device than the one before it."""
    for module in ("codec", "network"):  # what a call costs does not matter, and takes seconds to count
        monkeypatch.setattr(f"lotts_search.backbones.{module}.count_part", lambda *_: 1.0)
    make, wrap = FAMILIES[family]
    with pretended_devices():
        one, three = spread_over(family, 1), spread_over(family, 3, lambda unit: unit % 3)
        assert {str(weight.device) for weight in three.network.parameters()} == set(map(str, DEVICES))
        want, got = answers(one), answers(three)
    assert near(got, want) and near(want, answers(wrap(make())), 1e-5)
    assert stays_put(one) and not stays_put(three), "no call is recorded as a CUDA graph"


class Encoder(nn.Module):
    """A text encoder with a weight of its own beside its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def forward(self, states: torch.Tensor, *, shift: torch.Tensor) -> dict[str, Any]:
        states = states * self.scale + shift
        for layer in self.layers:
            states = layer(states)
        return {"states": [states]}


def test_weights_beside_the_blocks_are_moved_and_get_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, states = Encoder(), torch.randn(3, 2)
    with torch.inference_mode():
        want = encoder(states, shift=states)["states"][0]
    monkeypatch.setattr(spreading, "divide", lambda sizes, rooms: [0, 1, 2, 0])
    with pretended_devices():
        spread("tiny", nn.Linear(2, 2), [encoder], [], DEVICES, [0] * 3)
        assert [encoder.scale.device, *(layer.weight.device for layer in encoder.layers)] == [*DEVICES[1:], DEVICES[0]]
        there = states.to(DEVICES[0])
        got = encoder(there, shift=there)["states"][0]
        assert got.device == DEVICES[0] and torch.equal(got.cpu(), want)


def search_on(backbone: Any) -> list[Any]:
    """A sample, masks by attention and by error, a refinement with confined steps, and an encoded image."""
    sampling = Sampling("a red circle", 4, 2.0)
    engine = Engine(backbone, 4)
    (first,) = run(engine, sample(3, sampling))
    assert first.state is not None
    kind: Any = ConceptMask if hasattr(backbone, "attend_concepts") else AttentionMask
    sources = [kind(level=300, noised=True), AttentionMask(level=300), ErrorContrastMask(levels=(400,))]
    located = run(engine, *(Locate(0, ("seed 3",), first.state, sampling, source) for source in sources))
    assert located[0].located is not None
    mask = located[0].located.mask
    costs = Costs.of(backbone.info, sampling)
    how = costs.confine(costs.touched(mask), refresh=3, warmup=1, ring=0)
    lineage = ("seed 3", "refine@1 1")
    region = Region(mask, first.state.latent, lineage, 1, confined=how)
    refine = Segment(1, sampling, lineage, 4, state=first.state, renoise=1, region=region)
    results = [first, *located, *run(engine, refine, Encode(first.image, 4))]
    maps = [one.located.heat for one in located if one.located is not None]
    return [*maps, *([one.image, one.state and one.state.latent] for one in results)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_searches_on_a_spread_model_have_the_bits_of_one_device(family: str) -> None:
    make, wrap = FAMILIES[family]
    with pretended_devices():
        want, got = search_on(spread_over(family, 1)), search_on(spread_over(family, 2))
    assert near(got, want) and near(want, search_on(wrap(make())), 1e-4)


def test_a_folder_is_loaded_onto_several_gpus_with_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pretended devices in the place of two GPUs."""
    tiny_flux().save_pretrained(tmp_path, safe_serialization=True)
    lora = adapter(tmp_path)
    work = sample(3, Sampling("a red circle", 3, 1.0))
    (want,) = run(Engine(load_backbone(str(tmp_path), device="cpu", lora=[lora]), 2), work)
    size = sum(weight.nbytes for weight in tiny_flux().transformer.parameters())
    monkeypatch.setattr(loading, "gpus", lambda first, count: DEVICES[:count])
    monkeypatch.setattr(loading, "free_bytes", lambda device: size)
    with pretended_devices():
        backbone: Any = load_backbone(str(tmp_path), device="cuda", spread=2, lora=[lora])
        assert device_of(backbone) == DEVICES[0] == backbone.codec.vae.decoder.conv_in.weight.device
        assert (
            backbone.transformer.proj_out.weight.device
            == DEVICES[0]
            == backbone.decode_tensor(torch.zeros(1, 4, 8, 8, device=DEVICES[0]))[0].device
        )
        assert backbone.text_encoder_2.shared.weight.device == DEVICES[1]
        (got,) = run(Engine(backbone, 2), work)
    assert near([got.image, got.state.latent], [want.image, want.state.latent])  # type: ignore[union-attr]
    monkeypatch.setattr(loading, "free_bytes", lambda device: size // 3)
    with pytest.raises(BadInput, match="does not fit: its weights take"):
        load_backbone(str(tmp_path), device="cuda", spread=2)


def adapter(folder: Path) -> str:
    pipeline = tiny_flux()
    pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.transformer)
    pipeline.save_lora_weights(folder / "style", transformer_lora_layers=layers, safe_serialization=True)
    return str(folder / "style")


def test_spreading_is_said_in_one_option() -> None:
    assert LoadOptions.of({"spread": 2}).spread == LoadOptions.of({"spread": 2, "device": "cuda:1"}).spread == 2
    assert loaded({"spread": 2, "device": "cuda", "dtype": "bfloat16"}) == loaded({"dtype": "bfloat16"})
    for options, words in [
        ({"spread": 1}, "spread must be the number of GPUs that hold the model together, 2 or more, got 1"),
        ({"spread": True}, "2 or more, got True"),
        ({"spread": "balanced"}, "2 or more, got 'balanced'"),
        ({"spread": 2, "device": "cpu"}, "device must be cuda or cuda:N, got 'cpu'"),
        ({"spread": 2, "offload": "model"}, "spread cannot be combined with offload"),
        ({"spread": 2, "compile": True}, "spread cannot be combined with compile"),
        ({"device_map": "balanced"}, "device_map is not an option: spread=2 spreads a model over two GPUs"),
    ]:
        with pytest.raises(BadInput, match=words):
            LoadOptions.of(options)


def test_gpus_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert list(map(str, gpus(torch.device("cuda"), 3))) == ["cuda:0", "cuda:1", "cuda:2"]
    assert list(map(str, gpus(torch.device("cuda:2"), 2))) == ["cuda:2", "cuda:3"]
    with pytest.raises(BadInput, match="spread=3 needs the GPUs cuda:2 to cuda:4, and torch sees 4"):
        gpus(torch.device("cuda:2"), 3)
    with pytest.raises(BadInput, match="spread=2 needs the GPUs cuda:0 to cuda:1, and torch sees none"):
        load_backbone("shapes-sd", spread=2)


def test_where_one_device_is_too_small_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, device: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    message = "model shapes-sd does not fit into the memory of cpu: choose a smaller dtype, spread=2 for two GPUs, or offload='model'"
    with pytest.raises(Failure, match=message):
        load_backbone("shapes-sd", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_real_gpus_give_the_images_of_one(family: str, tmp_path: Path) -> None:
    FAMILIES[family][0]().save_pretrained(tmp_path, safe_serialization=True)
    one, two = (load_backbone(str(tmp_path), device="cuda", **more) for more in ({}, {"spread": 2}))
    assert near(answers(two), answers(one), 1e-4)
