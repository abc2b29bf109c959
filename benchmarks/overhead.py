"""Cost of the engine itself: rows per second with a network that answers at once, an upper bound for any device.

The backbone returns constants without computing; everything else is real: admission, the noise of each trajectory,
guidance, solver, arrivals, and decoding calls (of nothing). Time is the CPU time of the process, which other load on the
machine affects less than wall time.

    python benchmarks/overhead.py [--batch 64 256] [--guidance 1] [--shape 8 16 16]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.engine.engine import Engine
from lotts_search.work.model import Defaults, ModelInfo, Schedule
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Fresh, Region, Sampling, Segment, State


class Instant:
    """A backbone that returns constants at once."""

    def __init__(self, shape: tuple[int, int, int], rows: int, device: str):
        channels, height, width = shape
        self.device = torch.device(device)
        defaults = Defaults(steps=20, guidance=1.0, t0=10, integrate=2)
        self.info = ModelInfo("instant", "none", (channels, height, width), (4 * height, 4 * width), Prices(), defaults)
        self._time = DiscreteTime({"prediction_type": "v_prediction"})
        self._output = torch.zeros(rows, *shape, device=self.device)
        self._images = torch.zeros(rows, *self.info.image, 3, dtype=torch.uint8, device=self.device)
        self._finite = torch.ones(rows, dtype=torch.bool, device=self.device)

    def schedule(self, steps: int) -> Schedule:
        return self._time.schedule(steps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    def encode_prompts(self, prompts: list[str]) -> list[Any]:
        return list(prompts)

    def stack(self, conditionings: list[Any]) -> None:
        return None

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
        return self._output[: len(latents)]

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def decode_tensor(self, latents: Tensor, preview: bool = False) -> tuple[Tensor, Tensor]:
        return self._images[: len(latents)], self._finite[: len(latents)]

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        return self.decode_tensor(latents)[0].cpu().numpy()

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        return self._output[: len(images)]


def rate(engine: Engine, count: int, guidance: float, refined: bool) -> float:
    """Return rows per second of ``count`` trajectories with staggered starts and ends, as in a search."""
    steps = 20
    sampling = Sampling("a red circle", steps, guidance)
    rows = 2 if sampling.guided else 1
    shape = engine.backbone.info.latent
    parent = State(np.zeros(shape, np.float32), steps, steps)
    half = np.arange(shape[1] * shape[2]).reshape(shape[1:]) % 2 == 0
    total, futures = 0, []
    for seed in range(count):
        start = seed % (steps // 2)
        lineage = (f"seed {seed}", f"refine@{start} 0")
        if refined or start:
            region = Region(half, parent.latent, lineage, 2) if refined else None
            work = Segment(0, sampling, lineage, steps, state=parent, renoise=start, region=region)
        else:
            work = Segment(0, sampling, lineage, steps, noise=Fresh(seed))
        futures.append(engine.submit(work))
        total += rows * (steps - start)
    began = time.process_time()
    while engine.tick():
        pass
    took = time.process_time() - began
    for future in futures:
        future.result(timeout=0)
    return total / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], help="network rows in one call")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--shape", type=int, nargs=3, default=[8, 16, 16], help="of a latent")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for batch in options.batch:
        for guidance in options.guidance:
            for refined in (False, True):
                engine = Engine(Instant(tuple(options.shape), batch, options.device), batch)
                count = 4 * batch // (2 if guidance > 1 else 1)
                rate(engine, count, guidance, refined)
                found = statistics.median(rate(engine, count, guidance, refined) for _ in range(options.rounds))
                kind = ("guided" if guidance > 1 else "unguided") + (", masked" if refined else "")
                print(f"{batch:4} rows a call, {kind:18} {found:10.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
