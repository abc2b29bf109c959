"""Shared parts of the measurements: samples and refinements through a pool, judged by the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from lotts_search.shapes.world.oracle import Verdict, judge_many
from lotts_search.shapes.world.render import SIZE, cell_box
from lotts_search.shapes.world.scene import Scene
from lotts_search.work.masks import MaskSource
from lotts_search.work.pool import Pool
from lotts_search.work.requests import (
    Bools,
    Bytes,
    Floats,
    Fresh,
    Generate,
    Locate,
    Located,
    Region,
    Result,
    Sampling,
    Score,
    Segment,
    State,
)


@dataclass
class JudgedImage:
    """A complete image that should show a scene, with its seed, its clean state and the oracle's verdict."""

    scene: Scene
    seed: int
    state: State
    image: Bytes
    verdict: Verdict


def run_all(pool: Pool, work: Sequence[Generate | Score], title: str) -> list[Result]:
    """Run ``work`` with a progress bar and return the results in its order."""
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=len(work))
        futures = [pool.submit(w) for w in work]
        for _ in as_completed(futures):
            bar.advance(task)
    return [f.result() for f in futures]


def sample(
    pool: Pool, scenes: Sequence[Scene], seeds: int, *, steps: int | None = None, guidance: float | None = None,
    template: str = "{}", title: str = "sampling",
) -> list[list[JudgedImage]]:  # fmt: skip
    """Draw plain samples with the seeds 0 to ``seeds`` − 1 for each scene; return one list per scene."""
    work: list[Generate | Score] = []
    for scene in scenes:
        settings = Sampling.of(pool.info, template.format(scene.caption), steps=steps, guidance=guidance)
        work += [Segment(0, settings, (f"seed {s}",), settings.steps, noise=Fresh(s)) for s in range(seeds)]
    flat = judged(run_all(pool, work, title), [s for s in scenes for _ in range(seeds)])
    for index, image in enumerate(flat):
        image.seed = index % seeds
    return [flat[i * seeds : (i + 1) * seeds] for i in range(len(scenes))]


def judged(results: Sequence[Result], scenes: Sequence[Scene]) -> list[JudgedImage]:
    """Return the images of complete results with the oracle's verdicts."""
    images = [r.image for r in results if r.image is not None]
    states = [r.state for r in results if r.state is not None]
    verdicts = judge_many(np.stack(images), scenes)
    return [
        JudgedImage(scene, 0, state, image, verdict)
        for scene, state, image, verdict in zip(scenes, states, images, verdicts, strict=True)
    ]


def scores(pool: Pool, images: Sequence[JudgedImage], verifier: str) -> npt.NDArray[np.float64]:
    """Return the verifier's scores of images for their captions [images]."""
    work: list[Generate | Score] = [Score(verifier, p.scene.caption, p.image) for p in images]
    return np.array([r.score for r in run_all(pool, work, "scoring")], dtype=np.float64)


def locate(pool: Pool, images: Sequence[JudgedImage], source: MaskSource, title: str = "localizing") -> list[Located]:
    """Return the region that ``source`` finds in each image."""
    work: list[Generate | Score] = [
        Locate(
            0, (f"seed {p.seed}",), p.state, Sampling.of(pool.info, p.scene.caption), source,
            p.image if source.needs_image else None,
        )
        for p in images
    ]  # fmt: skip
    found = [r.located for r in run_all(pool, work, title)]
    return [f for f in found if f is not None]


def refine(
    pool: Pool, images: Sequence[JudgedImage], masks: Sequence[Bools], *, start: int, integrate: int,
    seed: int = 0,
) -> list[JudgedImage]:  # fmt: skip
    """Refine each image once inside its mask, from step ``start``, with ``integrate`` unmasked last steps."""
    work: list[Generate | Score] = []
    for p, mask in zip(images, masks, strict=True):
        settings = Sampling.of(pool.info, p.scene.caption)
        lineage = (f"seed {p.seed}", f"refine@{start} {seed}")
        region = Region(mask, p.state.latent, lineage, integrate)
        work.append(Segment(0, settings, lineage, settings.steps, state=p.state, renoise=start, region=region))
    return judged(run_all(pool, work, f"refining from {start}"), [p.scene for p in images])


def cell_means(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return the mean of a map [h, w] of the whole image in each cell [9]; for a mask, the share that it covers."""
    scale = SIZE // values.shape[0]
    full = values.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.array([full[cell_box(c)].mean() for c in range(9)])


def object_heat(heat: Floats, scene: Scene) -> npt.NDArray[np.float64]:
    """Return the mean of ``heat`` [h, w], a map of the whole image, in the cell of each object [objects]."""
    return cell_means(heat)[[o.cell for o in scene.objects]]


def write(path: Path, figures: dict[str, object], describe: Callable[[str], None] = print) -> None:
    """Write figures as JSON and pass the text to ``describe``."""
    text = json.dumps(figures, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    describe(text)
