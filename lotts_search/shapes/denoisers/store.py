"""The training images of the denoisers: rendered once by all CPU cores and kept on disk, encoded once by a model's
autoencoder, and kept as latents on the training device."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lotts_search.shapes.denoisers.data import DAMAGE, MILD_DAMAGE, example
from lotts_search.shapes.denoisers.vae import encode_images
from lotts_search.shapes.world.render import SIZE, to_uint8
from lotts_search.work.replacing import replacing
from lotts_search.work.requests import Bytes

CHUNK = 2000
"""Images per file."""


@dataclass(frozen=True)
class TrainingStage:
    """A stage of training.

    Attributes:
        until: the share of the training at which it ends.
        share: its share of the different images.
        objects: smallest and largest number of objects per scene.
        damage: probability of damage in good and in bad images.
    """

    until: float
    share: float
    objects: tuple[int, int]
    damage: tuple[float, float] = MILD_DAMAGE


STAGES: tuple[TrainingStage, ...] = (
    TrainingStage(0.06, 0.06, (1, 3)),
    TrainingStage(0.15, 0.09, (3, 6)),
    TrainingStage(0.45, 0.25, (6, 9)),
    TrainingStage(1.0, 0.60, (6, 9), DAMAGE),
)
"""First the number of objects grows, then the damage: objects are learned faster while most of them are intact."""


def _bounds(count: int) -> list[tuple[int, int]]:
    """Return the half-open range of each stage's images among ``count`` images."""
    ends = np.round(np.cumsum([s.share for s in STAGES]) * count).astype(int).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _file(folder: Path, number: int, count: int) -> Path:
    """Return the path of a file of images; its images also depend on ``count``."""
    return folder / f"{count}-{number:04}.npy"


def _render(folder: Path, number: int, count: int) -> int:
    """Write a file of images and one of captions, pure functions of ``number`` and ``count``; return how many."""
    bounds = _bounds(count)
    images, captions = [], []
    for index in range(number * CHUNK, min((number + 1) * CHUNK, count)):
        stage = STAGES[next(i for i, (_, end) in enumerate(bounds) if index < end)]
        made = example(np.random.default_rng([17, index]), objects=stage.objects, damage=stage.damage)
        images.append(to_uint8(made.render.image))
        captions.append(made.caption)
    path = _file(folder, number, count)
    path.with_suffix(".json").write_text(json.dumps(captions))
    _save(path, np.stack(images))  # last, so that an existing file of images has its captions
    return len(images)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array under a temporary name and rename it, so that an existing file is complete."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # np.save appends ".npy" to other names
        np.save(file, array)


def render_store(folder: Path, count: int, describe: Callable[[str], None] = print) -> tuple[Bytes, list[str]]:
    """Return ``count`` training images [count, 64, 64, 3] and their captions, in the order of :data:`STAGES`.

    Existing files in ``folder`` are reused, so that several models may share one folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-count // CHUNK))
    missing = [n for n in numbers if not _file(folder, n, count).exists()]
    workers = len(os.sched_getaffinity(0))
    shown, done = time.monotonic(), 0
    if missing:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for future in as_completed([pool.submit(_render, folder, number, count) for number in missing]):
                done += future.result()
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    describe(f"rendered {done} of {len(missing) * CHUNK} images")
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    captions: list[str] = []
    for number in numbers:
        path = _file(folder, number, count)
        part = np.load(path, allow_pickle=False)
        images[number * CHUNK : number * CHUNK + len(part)] = part
        captions += json.loads(path.with_suffix(".json").read_text())
    return images, captions


def encode_store(
    folder: Path, vae: AutoencoderKL, images: Bytes, device: str, describe: Callable[[str], None] = print
) -> npt.NDArray[np.float16]:
    """Return posterior mean and standard deviation of each image [N, 2C, H, W], unscaled.

    They are kept in ``folder`` for other models with the same autoencoder.
    """
    weights = blake2b(digest_size=6)
    for tensor in vae.state_dict().values():
        weights.update(tensor.float().cpu().numpy().tobytes())
    path = folder / f"latents-{weights.hexdigest()}-{len(images)}.npy"
    if not path.exists():
        parts = []
        for start in range(0, len(images), 4000):
            parts.append(encode_images(vae, images[start : start + 4000], device=device).half().numpy())
            describe(f"encoded {start + len(parts[-1])} of {len(images)} images")
        _save(path, np.concatenate(parts))
    moments: npt.NDArray[np.float16] = np.load(path, allow_pickle=False)
    return moments


class LatentStore:
    """Latents and token ids of all training images on the training device.

    Args:
        moments: result of :func:`encode_store`, in the order of :data:`STAGES`.
        ids: token ids [N, …] of their captions.
        scale: scaling factor of the autoencoder.
        device: torch device.
        last: use only the images of the last stage, for a denoiser that is already trained.
    """

    def __init__(self, moments: npt.NDArray[np.float16], ids: Tensor, scale: float, device: str, last: bool = False):
        self._moments, self._ids = torch.from_numpy(moments).to(device), ids.to(device)
        self._bounds, self._scale, self._device, self._last = _bounds(len(moments)), scale, device, last

    def take(self, progress: float, batch: int) -> tuple[Tensor, Tensor]:
        """Draw scaled latents [batch, C, H, W], sampled from the posterior, and token ids, from the current stage.

        Args:
            progress: the finished share of the training, 0..1, which decides the stage.
            batch: number of images.
        """
        which = next(i for i, stage in enumerate(STAGES) if progress < stage.until or stage is STAGES[-1])
        first, end = self._bounds[-1 if self._last else which]
        index = torch.randint(first, end, (batch,), device=self._device)
        mean, std = self._moments[index].float().chunk(2, dim=1)
        return (mean + std * torch.randn_like(std)) * self._scale, self._ids[index].long()
