"""The time of a confined network call as a share of a whole one, against its counted cost, measured side by side::

    python benchmarks/masked.py --models flux sd3 --tokens 1024 --batch 4

The transformers have the published widths and few blocks, in bfloat16 with random weights. Whole and confined calls alternate on one thread of the CPU, the
least CPU time of each counts, and the demand is at most 1.15 times the counted share.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from lotts_search.backbones.confined import Frozen, attentions, recorded
from lotts_search.backbones.confined_joint import confined
from lotts_search.backbones.flops import count_part
from lotts_search.backbones.flux import image_ids

RATIOS = (0.2, 0.35, 0.5, 0.8)
DEMAND = 1.15


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
        everything = torch.arange(tokens)
        frozen = Frozen(everything[:active], everything[active:])
        for module in attentions(copy):
            frozen.keys.append(torch.empty(tokens - active, module.to_k.out_features, dtype=copy.dtype))
            frozen.values.append(torch.empty(tokens - active, module.to_v.out_features, dtype=copy.dtype))
        with confined(copy, embedder, tokens, [frozen]):
            call(copy, 1)

    return count_part(network, inside) / count_part(network, lambda copy: call(copy, 1))


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes; other processes do not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(name: str, tokens: int, batch: int, repeats: int) -> None:
    """Print the shares of one model."""
    side = round(tokens**0.5)
    network, embedder, call = MODELS[name](side, batch)
    network.eval().to(torch.bfloat16)
    masks = {}
    for ratio in RATIOS:
        order = [torch.randperm(side * side) for _ in range(batch)]
        active = round(ratio * side * side)
        masks[ratio] = [Frozen(one[:active].sort().values, one[active:].sort().values) for one in order]
    with contextlib.ExitStack() as stack:
        for frozen in masks.values():
            stack.enter_context(recorded(attentions(network), side * side, dict(enumerate(frozen))))
        call(network)
    times: dict[float, list[float]] = {ratio: [] for ratio in (1.0, *RATIOS)}
    for _ in range(repeats):
        for ratio, found in times.items():
            if ratio == 1.0:
                found.append(seconds(lambda: call(network)))
                continue
            with confined(network, embedder, side * side, masks[ratio]):
                found.append(seconds(lambda: call(network)))
    whole = min(times[1.0])
    for ratio in RATIOS:
        share, measured = (
            counted(network, embedder, side * side, round(ratio * side * side), call),
            min(times[ratio]) / whole,
        )
        verdict = "met" if measured <= DEMAND * share else "not met"
        print(
            f"{name}: {side * side} tokens, batch {batch}, r = {ratio}: counted {share:.3f}, measured {measured:.3f} of"
            f" {whole:.2f} s, {measured / share:.2f} times the count; at most {DEMAND}: {verdict}",
            flush=True,
        )


def main() -> None:
    """Measure the models of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        measure(name, given.tokens, given.batch, given.repeats)


if __name__ == "__main__":
    main()
