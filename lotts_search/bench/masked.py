"""The time of a confined network call as a share of a whole one, against its counted cost, measured side by side::

    python -m lotts_search.bench.masked --models flux sd3 --tokens 1024 --batch 4
    python -m lotts_search.bench.masked --models sd sdxl --tokens 4096 --batch 4
    python -m lotts_search.bench.masked --models shapes-sd shapes-sdxl shapes-flux --batch 8 --discs

The networks have the published widths and few blocks, in bfloat16 with random weights; or they are the embedded ones, at their own size. Whole,
recording and confined calls alternate on one thread of the CPU, the least CPU time of each counts (demand: at most 1.15 times the counted share
at r = 0.2 and 0.5). Takes a minute for each model.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from lotts_search.backbones import confined_joint, confined_unet
from lotts_search.backbones.confined import Confines, Frozen
from lotts_search.backbones.flops import count_part
from lotts_search.backbones.flux import image_ids
from lotts_search.bench.published import SD21_UNET, SDXL_UNET
from lotts_search.bench.setting import Ratio, Setting
from lotts_search.registry import load_backbone

DEMAND = 1.15
RATIOS = [0.2, 0.35, 0.5, 0.8]


class Share(NamedTuple):
    """A confined call as a share of a whole one: the share of active tokens, the number of all, the CPU seconds of the whole call, that of a
    whole call that records as a share of it, and the shares of its FLOPs and of its CPU time."""

    ratio: float
    tokens: int
    whole: float
    recording: float
    counted: float
    measured: float


@dataclass(frozen=True)
class Case:
    """A network, the shape of its tokens, and a call of it or of a copy with a number of rows."""

    network: Any
    grid: tuple[int, int]
    call: Callable[[Any, int], object]

    def record(self, frozen: dict[int, Frozen]) -> AbstractContextManager[None]:
        """Keep what the frozen tokens give in the call inside the block."""
        return confined_unet.recorded(self.network, self.grid, frozen)

    def confine(self, network: Any, frozen: list[Frozen]) -> AbstractContextManager[None]:
        """Confine the call of the network or of a copy inside the block."""
        return confined_unet.confined(network, self.grid, frozen)

    def unrecorded(self, network: Any, active: int) -> Frozen:
        """Return what a record would give, to count a confined call."""
        return confined_unet.unrecorded(network, self.grid, active)


class JointCase(Case):
    """A transformer with joint attention."""

    def record(self, frozen: dict[int, Frozen]) -> AbstractContextManager[None]:
        return confined_joint.recorded_joint(self.network, math.prod(self.grid), frozen)

    def confine(self, network: Any, frozen: list[Frozen]) -> AbstractContextManager[None]:
        embedder = "x_embedder" if hasattr(network, "x_embedder") else "pos_embed"
        return confined_joint.confined(network, embedder, math.prod(self.grid), frozen)

    def unrecorded(self, network: Any, active: int) -> Frozen:
        return confined_joint.unrecorded(network, math.prod(self.grid), active)


def flux(side: int) -> Case:
    """Return FLUX.1's transformer with one double-stream and two single-stream blocks; a text token per 16 image tokens, as in
    FLUX.1-schnell at 1024 pixels."""
    words = side * side // 16
    network = FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=False)

    def call(network: Any, rows: int) -> object:
        config = network.config
        return network(
            hidden_states=torch.zeros(rows, side * side, config["in_channels"], dtype=network.dtype),
            encoder_hidden_states=torch.zeros(rows, words, config["joint_attention_dim"], dtype=network.dtype),
            pooled_projections=torch.zeros(rows, config["pooled_projection_dim"], dtype=network.dtype),
            timestep=torch.zeros(rows),
            img_ids=image_ids((side, side)),
            txt_ids=torch.zeros(words, 3),
        )

    return JointCase(network, (side, side), call)


def sd3(side: int) -> Case:
    """Return Stable Diffusion 3 medium's transformer with three blocks; a text token per 12 image tokens, as at 1024 pixels."""
    words = side * side // 12
    network = SD3Transformer2DModel(
        sample_size=128,
        num_layers=3,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )

    def call(network: Any, rows: int) -> object:
        return network(
            hidden_states=torch.zeros(rows, 16, 2 * side, 2 * side, dtype=network.dtype),
            encoder_hidden_states=torch.zeros(rows, words, 4096, dtype=network.dtype),
            pooled_projections=torch.zeros(rows, 2048, dtype=network.dtype),
            timestep=torch.zeros(rows),
        )

    return JointCase(network, (side, side), call)


def unet(side: int, config: dict[str, Any]) -> Case:
    """Return a U-Net of latents [side, side], with 77 text tokens."""
    network = UNet2DConditionModel(**config)

    def call(network: Any, rows: int) -> object:
        dtype = network.dtype
        added = {"text_embeds": torch.zeros(rows, 1280, dtype=dtype), "time_ids": torch.zeros(rows, 6, dtype=dtype)}
        return network(
            torch.zeros(rows, 4, side, side, dtype=dtype),
            torch.zeros(rows),
            torch.zeros(rows, 77, network.config["cross_attention_dim"], dtype=dtype),
            added_cond_kwargs=added,
        )

    return Case(network, (side, side), call)


def sd(side: int) -> Case:
    """Return Stable Diffusion 2.1's U-Net with one layer per block instead of two."""
    return unet(side, SD21_UNET | {"layers_per_block": 1})


def sdxl(side: int) -> Case:
    """Return SDXL's U-Net with one layer per block instead of two, and half of its transformer blocks in each."""
    return unet(side, SDXL_UNET | {"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 5]})


MODELS = {"flux": flux, "sd3": sd3, "sd": sd, "sdxl": sdxl}
EMBEDDED = "shapes-sd", "shapes-sdxl", "shapes-flux"


def counted(case: Case, active: int) -> float:
    """Count a confined call as a share of a whole one."""

    def inside(copy: Any) -> None:
        with case.confine(copy, [case.unrecorded(copy, active)]):
            case.call(copy, 1)

    return count_part(case.network, inside) / count_part(case.network, lambda copy: case.call(copy, 1))


def random_mask(grid: tuple[int, int], active: int, disc: bool) -> Frozen:
    """Return a row with random active tokens.

    Args:
        disc: those nearest to a random one, as in a mask of a refinement, instead of scattered ones.
    """
    if disc:
        places = torch.cartesian_prod(*map(torch.arange, grid)).float()
        order = (places - places[torch.randint(len(places), ())]).square().sum(1).argsort()
    else:
        order = torch.randperm(math.prod(grid))
    return Frozen(order[:active].sort().values, order[active:].sort().values)


@torch.inference_mode()
def measure(
    name: str,
    tokens: int,
    batch: int,
    repeats: int,
    ratios: list[float],
    dtype: torch.dtype,
    channels_last: bool = False,
    discs: bool = False,
) -> list[Share]:
    """Measure the shares of one model; an embedded one has tokens of its own number."""
    if name in EMBEDDED:
        return _embedded(name, batch, repeats, ratios, dtype, discs)
    case = MODELS[name](round(tokens**0.5))
    network, cells = case.network.eval().to(dtype), math.prod(case.grid)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    masks = {ratio: [random_mask(case.grid, round(ratio * cells), discs) for _ in range(batch)] for ratio in ratios}

    def whole(*frozen: list[Frozen]) -> None:
        with contextlib.ExitStack() as stack:
            for rows in frozen:
                stack.enter_context(case.record(dict(enumerate(rows))))
            case.call(network, batch)

    def confined(frozen: list[Frozen]) -> None:
        with case.confine(network, frozen):
            case.call(network, batch)

    shares = {ratio: counted(case, round(ratio * cells)) for ratio in ratios}
    return _shares(whole, confined, masks, repeats, shares)


def _embedded(name: str, batch: int, repeats: int, ratios: list[float], dtype: torch.dtype, discs: bool) -> list[Share]:
    backbone = load_backbone(name, device="cpu", dtype=str(dtype).removeprefix("torch."))
    info, texts = backbone.info, backbone.stack(backbone.encode_prompts([""] * batch))
    assert isinstance(backbone, Confines) and info.confines
    high, wide = (size // info.confines for size in info.latent[1:])
    latents, times = torch.randn(batch, *info.latent), torch.full((batch,), 500.0)
    masks = {
        ratio: [random_mask((high, wide), round(ratio * high * wide), discs) for _ in range(batch)] for ratio in ratios
    }

    def whole(*frozen: list[Frozen]) -> None:
        if not frozen:
            backbone.predict(latents, times, texts)
        for rows in frozen:
            backbone.record(latents, times, texts, dict(enumerate(rows)))

    def confined(frozen: list[Frozen]) -> None:
        backbone.predict_confined(latents, times, texts, frozen)

    return _shares(whole, confined, masks, repeats, {ratio: info.prices.confined(ratio) for ratio in ratios})


def _shares(
    whole: Callable[..., None],
    confined: Callable[[list[Frozen]], None],
    masks: dict[float, list[Frozen]],
    repeats: int,
    counted: dict[float, float],
) -> list[Share]:
    """Measure calls in alternation.

    Args:
        whole: performs a whole call, which records for the rows that it is given.
        confined: performs a confined one.
        masks, counted: by the share of active tokens.
    """
    whole(*masks.values())
    actions: dict[Any, Callable[[], None]] = {"whole": whole, "recording": partial(whole, next(iter(masks.values())))}
    actions |= {ratio: partial(confined, rows) for ratio, rows in masks.items()}
    times: dict[Any, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.process_time()  # other processes do not count
            action()
            times[name].append(time.process_time() - start)
    least = {name: min(found) for name, found in times.items()}
    recording = least["recording"] / least["whole"]
    return [
        Share(
            ratio,
            len(rows[0].active) + len(rows[0].places),
            least["whole"],
            recording,
            counted[ratio],
            least[ratio] / least["whole"],
        )
        for ratio, rows in masks.items()
    ]


def masked(setting: Setting) -> Iterator[Ratio]:
    """Measure confined calls of FLUX.1's widths, whatever the model of the setting is."""
    torch.set_num_threads(1)
    for share in measure("flux", 1024, 4, 2, RATIOS, torch.bfloat16):
        name = f"time ÷ counted cost: a confined step of FLUX at r = {share.ratio}, counted {share.counted:.2f} of a whole one"
        yield Ratio(name, [share.measured / share.counted], most=DEMAND)


def main() -> None:
    """Measure the models of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *EMBEDDED], default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="shares of active tokens")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="keep the weights of convolutions in this format")
    parser.add_argument(
        "--discs", action="store_true", help="masks of one disc in each row instead of scattered tokens"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | tokens | batch | r | whole | recording | counted | measured | measured ÷ counted |")
    print("|---" * 9 + "|")
    for name in given.models:
        found = measure(
            name,
            given.tokens,
            given.batch,
            given.repeats,
            given.ratios,
            getattr(torch, given.dtype),
            given.channels_last,
            given.discs,
        )
        for ratio, tokens, whole, recording, share, measured in found:
            shares = f"{recording:.2f} | {share:.3f} | {measured:.3f} | {measured / share:.2f}"
            print(f"| {name} | {tokens} | {given.batch} | {ratio} | {whole:.3g} s | {shares} |", flush=True)


if __name__ == "__main__":
    main()
