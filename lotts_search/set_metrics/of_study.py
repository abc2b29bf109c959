"""The metrics of sets of a finished study, by strategy and budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lotts_search.curves import Setup
from lotts_search.curves.intervals import Doubles, Interval
from lotts_search.curves.panel import mean_interval
from lotts_search.errors import BadInput, notice
from lotts_search.set_metrics.distances import Discrepancy, diversity, frechet_distance, gaussian, polynomial
from lotts_search.set_metrics.features import Features, load_features
from lotts_search.study.returned import returned_images
from lotts_search.work.image_files import read_image
from lotts_search.work.requests import Bytes

BATCH = 64
"""Images that are read at a time."""
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGES_PER_FEATURE = 10
"""Images per feature below which the bias of a Fréchet distance is reported."""


@dataclass(frozen=True)
class SetMetrics:
    """The images that a strategy returned under a budget, as a set.

    Attributes:
        setup: model, strategy and budget.
        images, prompts: their numbers.
        frechet: Fréchet distance to the reference, if there is one.
        kid: kernel distance to the reference, if there is one.
        cmmd: maximum mean discrepancy to the reference, if there is one and the features are CLIP's.
        diversity: mean distance of two images of a prompt, if some prompt has two.
    """

    setup: Setup
    images: int
    prompts: int
    frechet: float | None = None
    kid: Interval | None = None
    cmmd: Interval | None = None
    diversity: Interval | None = None


def set_metrics(
    run: Path,
    features: Features | str,
    reference: Path | None = None,
    watch: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> list[SetMetrics]:
    """Return the metrics of the returned images of a study, by model, strategy and budget.

    Args:
        run: a run folder, see ``docs/run-folder.md``.
        features: what images are compared by; a text as for :func:`~lotts_search.set_metrics.features.load_features` is
            loaded when the images are there.
        reference: folder of at least two images, read with its subfolders; without one there is only diversity.
        watch: wraps the list of files that are read, to show progress.

    Raises:
        BadInput: no study, no such folder, too few images in it, or images that the features cannot describe.
        Failure: an image was not kept.
    """
    files = _images_of(reference) if reference is not None else []
    texts, returned = returned_images(run)
    places = {text: i for i, text in enumerate(texts)}
    found = {setup: some for setup, some in returned.items() if len(some) > 1}
    for setup in (one for one in returned if one not in found):
        notice(f"{setup.label} on {setup.model} ({setup.budget}) is left out: a set needs two images")
    if not found:
        raise BadInput(f"{run} has no set of two images: no strategy returned more than one")
    if not files and all(len({one.prompt for one in some}) == len(some) for some in found.values()):
        raise BadInput(f"{run} has one image of each prompt: give a reference, since diversity needs two seeds")
    if isinstance(features, str):
        features = load_features(features)
    names = list(dict.fromkeys([*files, *(one.image for some in found.values() for one in some)]))
    rows = dict(zip(names, _embedded(watch(names), features), strict=True))
    known = np.stack([rows[file] for file in files]) if files else None
    kid = Discrepancy.to(known, polynomial) if known is not None else None
    cmmd = Discrepancy.to(known, gaussian) if known is not None and getattr(features, "cmmd", False) else None
    metrics = []
    for setup, some in found.items():
        x = np.stack([rows[one.image] for one in some])
        prompts = np.array([places[one.prompt] for one in some])
        spread = diversity(x, prompts)
        metrics.append(
            SetMetrics(
                setup, len(some), len(set(prompts)),
                frechet=frechet_distance(x, known) if known is not None else None,
                kid=kid.of(x, prompts) if kid else None,
                cmmd=cmmd.of(x, prompts) if cmmd else None,
                diversity=mean_interval(spread) if len(spread) else None,
            )
        )  # fmt: skip
    if known is not None:
        _warn(metrics, known)
    return metrics


def _images_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadInput(f"the reference must be a folder of images: there is no folder {folder}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(found) < 2:
        raise BadInput(f"the reference needs two images or more: {folder} has {len(found)} ({', '.join(ENDINGS)})")
    return found


def _embedded(files: Iterable[Path], features: Features) -> Iterator[Doubles]:
    """Yield the features [d] of each file; consecutive images of one size share a call."""
    batch: list[Bytes] = []
    for file in files:
        image = read_image(file)
        if batch and (len(batch) == BATCH or image.shape != batch[0].shape):
            yield from _embed(batch, features)
            batch = []
        batch.append(image)
    yield from _embed(batch, features)


def _embed(batch: Sequence[Bytes], features: Features) -> Doubles:
    return np.asarray(features.embed(np.stack(batch)), dtype=np.float64)


def _warn(metrics: Sequence[SetMetrics], known: Doubles) -> None:
    """Report what the numbers of images do to a Fréchet distance."""
    count, width = known.shape
    counts = sorted({one.images for one in metrics})
    if min(count, *counts) < IMAGES_PER_FEATURE * width:
        notice(
            f"{counts[0]} images and {count} of the reference are few for a Fréchet distance on {width} features: it is "
            f"too high, the more so the fewer the images; KID and CMMD are unbiased"
        )
    if len(counts) > 1:
        notice(f"sets of {counts[0]} to {counts[-1]} images: compare Fréchet distances of sets of equal size only")
