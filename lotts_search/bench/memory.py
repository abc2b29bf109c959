"""Peak memory of a search against that of a plain pipeline, each in a process of its own::

    python -m lotts_search.bench.memory search cpu

prints the bytes. The model is Stable Diffusion 2.1 with random weights in bfloat16; images have 256x256 pixels, four in a call.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from lotts_search.api import search
from lotts_search.bench.families import Brightness, peak_memory
from lotts_search.bench.published import Builder, stable_diffusion_21
from lotts_search.bench.setting import Ratio, Setting
from lotts_search.bench.throughput import pipeline_of
from lotts_search.engine.local_pool import LocalPool

IMAGES, STEPS, SIDE = 4, 2, 256


def memory(setting: Setting) -> Iterator[Ratio]:
    """Measure both on the device of the setting."""
    taken = []
    for name in ("search", "pipeline"):
        words = [sys.executable, "-m", "lotts_search.bench.memory", name, str(setting.backbone.device)]
        taken.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]))
    yield Ratio(
        f"peak memory: search ÷ pipeline, {taken[0] / 2**30:.2f} and {taken[1] / 2**30:.2f} GiB",
        [taken[0] / taken[1]],
        most=1.1,
    )


def main(name: str, device: str) -> None:
    """Print the peak memory of a search or of a pipeline."""
    torch.set_num_threads(1)
    backbone = stable_diffusion_21(Builder(torch.device(device), torch.bfloat16, (SIDE, SIDE)))

    def searched() -> object:
        with LocalPool(backbone, {"brightness": Brightness()}, 2 * IMAGES, 1) as pool:
            return search("a red star", strategy="best-of-n", pool=pool, nfe=IMAGES * STEPS, steps=STEPS)

    def piped() -> object:
        how = {"num_inference_steps": STEPS, "guidance_scale": backbone.info.defaults.guidance}
        return pipeline_of(backbone)(["a red star"] * IMAGES, height=SIDE, width=SIDE, output_type="np", **how)

    actions: dict[str, Callable[[], object]] = {"search": searched, "pipeline": piped}
    with peak_memory(backbone.device) as peak:
        actions[name]()
        print(peak())


if __name__ == "__main__":
    main(*sys.argv[1:])
