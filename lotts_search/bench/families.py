"""A dry run of the real model families: shapes, time of a step, price of a localization, memory, a whole search."""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lotts_search.api import search
from lotts_search.backbones.base import Backbone
from lotts_search.bench.published import FAMILIES, Making
from lotts_search.engine.engine import Engine
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import Failure
from lotts_search.work.requests import Fresh, Generate, Locate, Result, Sampling, Segment, State

LIMITS = {"sd": 0.05, "sdxl": 0.08, "flux": 0.15}
"""What a localization may cost of a sample of the family's T steps, in time."""
PROMPT = "a red star in the center and a blue circle on the left"


@dataclass(frozen=True)
class Report:
    """What was measured of one family.

    Attributes:
        family, model, device, dtype: what was measured, and where.
        parameters: of the denoiser, tied ones as often as they are used.
        latent: (C, H, W).
        image: (height, width) in pixels.
        grid: (h, w) of the localization's maps.
        steps: T of a sample.
        rows: network rows of a step.
        flops_per_row: counted.
        step_s: seconds of one step of one sample.
        sample_s: seconds of T such steps.
        localize_s: seconds of one localization by the family's default source.
        localize_ratio: ``localize_s / sample_s``.
        limit: what that may be.
        decode_s: seconds of decoding one image.
        weights_bytes: of all parts that are there.
        peak_bytes: most memory during the measurements: allocated on a CUDA device, resident on a CPU.
        search_steps, search_images, search_nfe, search_rows, search_s: the whole LoTTS search: T, images, NFE,
            network rows and seconds.
        mask_cells: cells of the latent inside its first mask.
    """

    family: str
    model: str
    device: str
    dtype: str
    parameters: int
    latent: tuple[int, int, int]
    image: tuple[int, int]
    grid: tuple[int, int]
    steps: int
    rows: int
    flops_per_row: float
    step_s: float
    sample_s: float
    localize_s: float
    localize_ratio: float
    limit: float
    decode_s: float
    weights_bytes: int
    peak_bytes: int
    search_steps: int
    search_images: int
    search_nfe: float
    search_rows: int
    search_s: float
    mask_cells: int


class Brightness:
    """A verifier that costs nothing: the mean of the image, 0..1."""

    name = "brightness"
    requirements: tuple[str, ...] = ()

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        means: npt.NDArray[np.float32] = (images.mean((1, 2, 3)) / 255).astype(np.float32)
        return means


def measure(
    family: str, making: Making, *, timed: int = 3, steps: int | None = None, images: int = 9, max_batch: int = 8
) -> Report:
    """Measure one family, then run a whole LoTTS search with it.

    Args:
        family: one of :data:`~lotts_search.bench.published.FAMILIES`.
        making: how its model is made.
        timed: how many steps are timed; the shortest of as many localizations and decodings counts.
        steps: T of the search, None = the family's own.
        images: images of the search.
        max_batch: network rows at once in the search.
    """
    with _memory(making.device) as peak, torch.inference_mode():
        backbone = FAMILIES[family](making)
        engine = Engine(backbone, max_batch=8, pad=False)
        defaults = backbone.info.defaults
        sampling = Sampling.of(backbone.info, PROMPT)
        first = Segment(0, sampling, ("seed 0",), 1, noise=Fresh(0))
        started = _run(engine, first, making.device)[0]  # prompts are encoded, and whatever else is done once
        state = started.state
        assert state is not None
        stop = min(defaults.steps - 1, 1 + timed)
        onward = Segment(0, sampling, ("seed 0",), stop, state=state)
        step_s = _run(engine, onward, making.device)[1] / (stop - 1)

        clean = State(state.latent / max(1.0, float(state.latent.std())), defaults.steps, defaults.steps)
        find = Locate(0, ("seed 0",), clean, sampling, defaults.mask)
        # Warmed up where that is cheap: kernels are chosen at the first call.
        repeats = timed + 1 if making.device.type == "cuda" else 1
        answers = [_run(engine, find, making.device) for _ in range(repeats)]
        located, localize_s = answers[0][0].located, min(seconds for _, seconds in answers)
        assert located is not None
        decode_s = min(_decoding(backbone, clean, making.device) for _ in range(repeats))

        height, width = located.heat.shape
        began = time.perf_counter()
        threads = torch.get_num_threads()
        with LocalPool(backbone, {"brightness": Brightness()}, max_batch, threads, pad=False) as pool:
            found = search(PROMPT, pool=pool, strategy="lotts", verifier="brightness", steps=steps, images=images)
        search_s = time.perf_counter() - began
        failed = [trial for trial in found.trials if trial.status != "done"]
        if failed:
            raise Failure(f"{family}: {len(failed)} trials of the search failed, the first because: {failed[0].error}")
        masks = [one.mask for one in found.located.values()]
        _check_areas(backbone, masks or [located.mask], (height, width))
        network = getattr(backbone, "unet", None) or getattr(backbone, "transformer")  # noqa: B009
        report = Report(
            family=family,
            model=backbone.info.name,
            device=_name(making.device),
            dtype=str(making.dtype).removeprefix("torch."),
            parameters=sum(weight.numel() for _, weight in network.named_parameters(remove_duplicate=False)),
            latent=backbone.info.latent,
            image=backbone.info.image,
            grid=(height, width),
            steps=defaults.steps,
            rows=2 if sampling.guided else 1,
            flops_per_row=backbone.info.flops_per_row,
            step_s=step_s,
            sample_s=step_s * defaults.steps,
            localize_s=localize_s,
            localize_ratio=localize_s / (step_s * defaults.steps),
            limit=LIMITS[family],
            decode_s=decode_s,
            weights_bytes=_weights(backbone),
            peak_bytes=peak(),
            search_steps=found.sampling.steps,
            search_images=found.ledger.images,
            search_nfe=found.ledger.nfe,
            search_rows=found.ledger.rows,
            search_s=search_s,
            mask_cells=int((masks or [located.mask])[0].sum()),
        )
        del engine, pool, backbone
    return report


def _check_areas(backbone: Backbone, masks: list[npt.NDArray[np.bool_]], grid: tuple[int, int]) -> None:
    """Every mask covers exactly ⌈r·h·w⌉ cells of its grid."""
    cells = math.ceil(backbone.info.defaults.mask.ratio * grid[0] * grid[1])
    scale = backbone.info.latent[1] // grid[0] * (backbone.info.latent[2] // grid[1])
    wrong = [int(mask.sum()) for mask in masks if mask.sum() != cells * scale]
    if wrong:
        raise Failure(f"a mask of {backbone.info.name} covers {wrong[0]} cells of the latent, not {cells * scale}")


def _run(engine: Engine, work: Generate, device: torch.device) -> tuple[Result, float]:
    """The answer to ``work`` and the seconds that it took."""
    _wait(device)
    began = time.perf_counter()
    future = engine.submit(work)
    while engine.tick():
        pass
    result = future.result(timeout=0)
    _wait(device)
    return result, time.perf_counter() - began


def _decoding(backbone: Backbone, state: State, device: torch.device) -> float:
    latents = torch.from_numpy(state.latent)[None].to(device)
    _wait(device)
    began = time.perf_counter()
    backbone.decode(latents)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _weights(backbone: Any) -> int:
    modules = [value for value in vars(backbone).values() if isinstance(value, torch.nn.Module)]
    modules += [backbone.codec.vae]
    weights = {id(w): w.nbytes for module in modules for w in module.parameters() if not w.is_meta}
    return sum(weights.values())


@contextlib.contextmanager
def _memory(device: torch.device) -> Iterator[Any]:
    """Gives a function for the peak of memory since the beginning of the block; frees what is left at its end."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        gc.collect()
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    yield _resident
    gc.collect()


def _resident() -> int:
    """The peak of this process' resident memory, bytes."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
