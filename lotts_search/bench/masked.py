"""The time of a confined network call as a share of a whole one, against its counted cost, measured side by side::

    python -m lotts_search.bench.masked --models flux sd3 --tokens 1024 --batch 4

The networks have the published widths and few blocks, in bfloat16 with random weights. Whole and confined calls alternate on one thread of
the CPU, the least CPU time of each counts (demand: at most 1.15 times the counted share at r = 0.2 and 0.5). Takes a minute for each model.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from lotts_search.backbones.confined import Frozen
from lotts_search.backbones.confined_joint import confined, recorded_joint, unrecorded
from lotts_search.backbones.flops import count_part
from lotts_search.backbones.flux import image_ids
from lotts_search.bench.setting import Ratio, Setting

DEMAND = 1.15
RATIOS = [0.2, 0.35, 0.5, 0.8]


class Share(NamedTuple):
    """A confined call as a share of a whole one: the share of active tokens, the CPU seconds of the whole call, and the shares of its
    FLOPs and of its CPU time."""

    ratio: float
    whole: float
    counted: float
    measured: float


def flux(side: int, batch: int) -> tuple[Any, str, Callable[[Any], object]]:
    """Return FLUX.1's transformer with one double-stream and two single-stream blocks, and a call of it; a text token per 16
    image tokens, as in FLUX.1-schnell at 1024 pixels."""
    words = side * side // 16
    network = FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=False)

    def call(network: Any, rows: int = batch) -> object:
        config = network.config
        return network(
            hidden_states=torch.zeros(rows, side * side, config["in_channels"], dtype=network.dtype),
            encoder_hidden_states=torch.zeros(rows, words, config["joint_attention_dim"], dtype=network.dtype),
            pooled_projections=torch.zeros(rows, config["pooled_projection_dim"], dtype=network.dtype),
            timestep=torch.zeros(rows),
            img_ids=image_ids((side, side)),
            txt_ids=torch.zeros(words, 3),
        )

    return network, "x_embedder", call


def sd3(side: int, batch: int) -> tuple[Any, str, Callable[[Any], object]]:
    """Return Stable Diffusion 3 medium's transformer with three blocks, and a call of it; a text token per 12 image tokens, as at
    1024 pixels."""
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

    def call(network: Any, rows: int = batch) -> object:
        return network(
            hidden_states=torch.zeros(rows, 16, 2 * side, 2 * side, dtype=network.dtype),
            encoder_hidden_states=torch.zeros(rows, words, 4096, dtype=network.dtype),
            pooled_projections=torch.zeros(rows, 2048, dtype=network.dtype),
            timestep=torch.zeros(rows),
        )

    return network, "pos_embed", call


MODELS = {"flux": flux, "sd3": sd3}


def counted(network: Any, embedder: str, tokens: int, active: int, call: Callable[..., object]) -> float:
    """Count a confined call as a share of a whole one."""

    def inside(copy: Any) -> None:
        with confined(copy, embedder, tokens, [unrecorded(copy, tokens, active)]):
            call(copy, 1)

    return count_part(network, inside) / count_part(network, lambda copy: call(copy, 1))


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes; other processes do not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(name: str, tokens: int, batch: int, repeats: int, ratios: list[float]) -> list[Share]:
    """Measure the shares of one model."""
    side = round(tokens**0.5)
    network, embedder, call = MODELS[name](side, batch)
    network.eval().to(torch.bfloat16)
    masks = {}
    for ratio in ratios:
        order = [torch.randperm(side * side) for _ in range(batch)]
        active = round(ratio * side * side)
        masks[ratio] = [Frozen(one[:active].sort().values, one[active:].sort().values) for one in order]
    with contextlib.ExitStack() as stack:
        for frozen in masks.values():
            stack.enter_context(recorded_joint(network, side * side, dict(enumerate(frozen))))
        call(network)
    times: dict[float, list[float]] = {ratio: [] for ratio in (1.0, *ratios)}
    for _ in range(repeats):
        for ratio, found in times.items():
            if ratio == 1.0:
                found.append(seconds(lambda: call(network)))
                continue
            with confined(network, embedder, side * side, masks[ratio]):
                found.append(seconds(lambda: call(network)))
    whole = min(times[1.0])
    return [
        Share(
            ratio,
            whole,
            counted(network, embedder, side * side, round(ratio * side * side), call),
            min(times[ratio]) / whole,
        )
        for ratio in ratios
    ]


def masked(setting: Setting) -> Iterator[Ratio]:
    """Measure confined calls of FLUX.1's widths, whatever the model of the setting is."""
    torch.set_num_threads(1)
    for share in measure("flux", 1024, 4, 2, RATIOS):
        name = f"time ÷ counted cost: a confined step of FLUX at r = {share.ratio}, counted {share.counted:.2f} of a whole one"
        yield Ratio(name, [share.measured / share.counted], most=DEMAND)


def main() -> None:
    """Measure the models of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="shares of active tokens")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | tokens | batch | r | whole | counted | measured | measured ÷ counted |", "|---" * 8 + "|", sep="\n"
    )
    for name in given.models:
        for ratio, whole, share, measured in measure(name, given.tokens, given.batch, given.repeats, given.ratios):
            cells = ratio, f"{whole:.2f} s", f"{share:.3f}", f"{measured:.3f}", f"{measured / share:.2f}"
            print(f"| {name} | {given.tokens} | {given.batch} |", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
