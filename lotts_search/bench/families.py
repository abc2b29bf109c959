"""Dry-run the real model families: shapes, time per step, cost of a localization, memory, and a whole search."""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lotts_search.api import search
from lotts_search.backbones.base import Backbone
from lotts_search.backbones.network import NetworkBackbone
from lotts_search.bench.published import FAMILIES, Builder
from lotts_search.engine.engine import Engine
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import Failure
from lotts_search.work.requests import Fresh, Generate, Locate, Result, Sampling, Segment, State

LIMITS = {"sd": 0.05, "sdxl": 0.08, "flux": 0.15}
"""Maximum time of a localization as a share of the time of a sample with the family's T steps."""
PROMPT = "a red star in the center and a blue circle on the left"


@dataclass(frozen=True)
class Report:
    """The measurements of one family.

    Attributes:
        family, model, device, dtype: the subject of the measurement.
        parameters: weights of the denoiser; tied ones count once per use.
        latent: (C, H, W) of the latent.
        image: (height, width) in pixels.
        grid: (h, w) of the localization's maps.
        steps: T of a sample.
        rows: network rows per step.
        flops_per_row: counted floating-point operations per network row.
        step_s: seconds per step of one sample.
        sample_s: seconds for T such steps.
        localize_s: seconds of one localization with the family's default mask source.
        localize_ratio: ``localize_s / sample_s``.
        limit: the maximum of ``localize_ratio``.
        decode_s: seconds to decode one image.
        weights_bytes: size of the weights of all parts.
        peak_bytes: peak memory during the measurements: allocated on a CUDA device, resident on a CPU.
        search_steps, search_images, search_nfe, search_rows, search_s: T, images, NFE, network rows and seconds of the
            whole LoTTS search.
        mask_cells: latent cells inside the search's first mask.
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
    """A verifier without cost: the mean of the image, 0..1."""

    name = "brightness"
    requirements: tuple[str, ...] = ()

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        means: npt.NDArray[np.float32] = (images.mean((1, 2, 3)) / 255).astype(np.float32)
        return means


def measure(
    family: str, builder: Builder, *, timed: int = 3, steps: int | None = None, images: int = 9, batch: int = 8
) -> Report:
    """Measure one family, then run a whole LoTTS search with it.

    Args:
        family: one of :data:`~lotts_search.bench.published.FAMILIES`.
        builder: builds its model.
        timed: number of steps to time; on a CUDA device also of localizations and decodings, of which the shortest
            counts.
        steps: T of the search, None = that of the family.
        images: images of the search.
        batch: maximum network rows per call in the search.

    Raises:
        Failure: a trial of the search failed, or a mask has the wrong size.
    """
    with peak_memory(builder.device) as peak, torch.inference_mode():
        backbone = FAMILIES[family](builder)
        engine = Engine(backbone, 8, pad=False)
        defaults = backbone.info.defaults
        sampling = Sampling.of(backbone.info, PROMPT)
        first = Segment(0, sampling, ("seed 0",), 1, noise=Fresh(0))
        started = _run(engine, first, builder.device)[0]  # a warm-up that also encodes the prompts
        state = started.state
        assert state is not None
        stop = min(defaults.steps - 1, 1 + timed)
        onward = Segment(0, sampling, ("seed 0",), stop, state=state)
        step_s = _run(engine, onward, builder.device)[1] / (stop - 1)

        clean = State(state.latent / max(1.0, float(state.latent.std())), defaults.steps, defaults.steps)
        find = Locate(0, ("seed 0",), clean, sampling, defaults.mask)
        # A warm-up where that is cheap: the first call selects kernels.
        repeats = timed + 1 if builder.device.type == "cuda" else 1
        answers = [_run(engine, find, builder.device) for _ in range(repeats)]
        located, localize_s = answers[0][0].located, min(seconds for _, seconds in answers)
        assert located is not None
        decode_s = min(_decode_seconds(backbone, clean, builder.device) for _ in range(repeats))

        height, width = located.heat.shape
        began = time.perf_counter()
        threads = torch.get_num_threads()
        with LocalPool(backbone, {"brightness": Brightness()}, batch, threads, pad=False) as pool:
            found = search(PROMPT, pool=pool, strategy="lotts", verifier="brightness", steps=steps, images=images)
        search_s = time.perf_counter() - began
        failed = [trial for trial in found.trials if trial.status != "done"]
        if failed:
            raise Failure(f"{family}: {len(failed)} trials of the search failed, the first because: {failed[0].error}")
        masks = [one.mask for one in found.located.values()]
        _check_areas(backbone, masks or [located.mask], (height, width))
        parameters = backbone.network.named_parameters(remove_duplicate=False)
        report = Report(
            family=family,
            model=backbone.info.name,
            device=_name(builder.device),
            dtype=str(builder.dtype).removeprefix("torch."),
            parameters=sum(weight.numel() for _, weight in parameters),
            latent=backbone.info.latent,
            image=backbone.info.image,
            grid=(height, width),
            steps=defaults.steps,
            rows=2 if sampling.guided else 1,
            flops_per_row=backbone.info.prices.row,
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
    """Check that every mask covers exactly ⌈r·h·w⌉ cells of its grid."""
    cells = math.ceil(backbone.info.defaults.mask.ratio * grid[0] * grid[1])
    scale = backbone.info.latent[1] // grid[0] * (backbone.info.latent[2] // grid[1])
    wrong = [int(mask.sum()) for mask in masks if mask.sum() != cells * scale]
    if wrong:
        raise Failure(f"a mask of {backbone.info.name} covers {wrong[0]} cells of the latent, not {cells * scale}")


def _run(engine: Engine, work: Generate, device: torch.device) -> tuple[Result, float]:
    """Return the result of ``work`` and the seconds that it took."""
    _wait(device)
    began = time.perf_counter()
    future = engine.submit(work)
    while engine.tick():
        pass
    result = future.result(timeout=0)
    _wait(device)
    return result, time.perf_counter() - began


def _decode_seconds(backbone: Backbone, state: State, device: torch.device) -> float:
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


def _weights(backbone: NetworkBackbone) -> int:
    modules = [value for value in vars(backbone).values() if isinstance(value, torch.nn.Module)]
    modules.append(backbone.codec.vae)
    weights = {id(w): w.nbytes for module in modules for w in module.parameters() if not w.is_meta}
    return sum(weights.values())


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak memory since the beginning of the block; free unused memory at its end."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        gc.collect()
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    yield _resident
    gc.collect()


def _resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
