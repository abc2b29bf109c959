"""Shares of a search's time on an embedded model: network, decoding, scoring.

    python benchmarks/shares.py [--strategies mosaic svdd] [--nfe 37] [--model shapes-sd] [--rounds 15]

The work of a search is counted on the analytic model, and multiplied by what a network row, a decoded image and a score take in
full calls, the scores of mosaics with the making of the mosaics. These three are measured side by side, in float32 and in
bfloat16 (model and verifier): one round makes a call of each, and every other round is reversed, so that other load on the
machine affects all alike. A share is the median over rounds, in CPU time on one thread. What the search itself does is left out.

Demand: scoring takes less than a quarter of a mosaic search on shapes-sd with 4 children and 16 regions, the defaults.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lotts_search import search
from lotts_search.arithmetic.effects import design
from lotts_search.engine.image_stage import DECODE_BATCH
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.shapes.world.scene import scenes
from lotts_search.testing import AnalyticPool
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.work.requests import ScoreMosaics

PARTS = ("network", "decoding", "scoring")
ROWS, MOSAICS = 16, 32


def calls(model: str, dtype: str) -> list[tuple[int, Callable[[], object]]]:
    """Return a full call of the network, of the decoder and of the verifier, each with its number of rows."""
    backbone, rng = load_backbone(model, dtype=dtype, device="cpu"), np.random.default_rng(0)
    prompt = scenes("tune", 1)[0].caption
    conditioning = backbone.stack([*backbone.encode_prompts([prompt])] * ROWS)
    latents = torch.from_numpy(rng.standard_normal((ROWS, *backbone.info.latent), np.float32))
    times, few = torch.full((ROWS,), 500.0), latents[: DECODE_BATCH["cpu"]]
    batcher = ScoreBatcher(load_verifier(f"shapes-reward:dtype={dtype}"), ROWS)
    images = rng.integers(0, 256, (4, *backbone.info.image, 3), np.uint8)
    mosaics = ScoreMosaics("shapes-reward", prompt, images, design(4, (4, 4), MOSAICS, rng))

    def score() -> None:
        batcher.submit(mosaics)
        while batcher.tick():
            pass

    return [
        (ROWS, lambda: backbone.predict(latents, times, conditioning)),
        (len(few), lambda: backbone.decode(few)),
        (MOSAICS, score),
    ]


def work(strategy: str, nfe: float, steps: int) -> list[int]:
    """Return the network rows, decoded images and scores of an unguided search."""
    with AnalyticPool() as pool:
        ledger = search("any", pool=pool, strategy=strategy, nfe=nfe, steps=steps, guidance=1).ledger
    return [ledger.rows, ledger.decodes, ledger.scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="an embedded model")
    parser.add_argument("--strategies", nargs="+", default=["mosaic", "svdd"])
    parser.add_argument("--nfe", type=float, default=37)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = {dtype: calls(options.model, dtype) for dtype in ("float32", "bfloat16")}
    taken: dict[str, list[list[float]]] = {dtype: [] for dtype in made}  # seconds of a row of each part, by round
    for number in range(-2, options.rounds):  # the first two warm up
        for dtype, three in made.items():
            row: dict[int, float] = {}
            for part in range(3)[:: 1 if number % 2 else -1]:
                rows, call = three[part]
                began = time.thread_time()
                call()
                row[part] = (time.thread_time() - began) / rows
            if number >= 0:
                taken[dtype].append([row[part] for part in range(3)])
    for dtype, rounds in taken.items():
        each = np.median(rounds, axis=0) * 1000
        print(f"{dtype}: a row takes {each[0]:.2f} CPU ms, a decoded image {each[1]:.2f}, a score {each[2]:.2f}")
        for strategy in options.strategies:
            counts: Any = work(strategy, options.nfe, options.steps)
            times = np.array(rounds) * counts
            shares = np.median(times / times.sum(1, keepdims=True), axis=0)
            named = "  ".join(f"{part} {share:.3f}" for part, share in zip(PARTS, shares, strict=True))
            print(f"    {strategy:12} {named}  with {counts[0]} rows, {counts[1]} decodes, {counts[2]} scores")


if __name__ == "__main__":
    main()
