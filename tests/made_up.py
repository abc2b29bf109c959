"""A search that never ran: renders of the shapes world instead of samples, with consistent records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from lotts_search.core.budget import Budget, Ledger
from lotts_search.core.costs import Costs
from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.shapes.world.render import Render, render
from lotts_search.shapes.world.scene import Scene, parse_caption, scenes
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Bytes, Located, Sampling, Usage

PROMPT = scenes("test", 1)[0].caption
STEPS, T0 = 16, 7


def _bytes(image: np.ndarray) -> Bytes:
    return (image * 255).round().astype(np.uint8)


def _score(damaged: np.ndarray, rng: np.random.Generator) -> float:
    return float(1 - 4 * damaged.mean() + 0.03 * rng.normal())


class _Writer:
    def __init__(self, strategy: str, prompt: str, seed: int) -> None:
        self.trials: list[TrialRecord] = []
        self.images: dict[str, Bytes] = {}
        self.ledger = Ledger(limits=Budget(nfe=110.0), costs=Costs(STEPS, True, Defaults(STEPS, 3.0, T0, 2)))
        self.shared = ("run", "search", "prompt", prompt, "shapes-sd", strategy, "{}", seed)
        self.best: TrialRecord | None = None
        self.best_refined: TrialRecord | None = None

    def add(self, key: str, parent: str | None, kind: str, nfe: float, score: float | None, **more: object) -> None:
        made = int(score is not None)
        usage = Usage(nfe, int(2 * nfe), nfe * 8e8, made, made, made, 0.004 * nfe)
        self.ledger += usage
        before = self.best.score if self.best is not None else None
        values = [v for v in (before, score) if v is not None]
        record = TrialRecord(
            *self.shared, key, parent, kind, score=score, nfe_cum=self.ledger.nfe,
            best_so_far=max(values, default=None), image=key if made else None, **vars(usage) | more,  # type: ignore[arg-type]
        )  # fmt: skip
        self.trials.append(record)
        if score is not None and (before is None or score > before):
            self.best = record
        refined = self.best_refined.score if self.best_refined is not None else None
        if kind == "refine" and score is not None and (refined is None or score > refined):
            self.best_refined = record
        if score is not None:  # a real search records the scoring as a separate trial
            scored = replace(
                record, trial_id=f"{key}-score", parent_id=key, kind="score", start=None, stop=None, nfe=0.0, rows=0,
                flops=0.0, images=0, decodes=0, device_s=0.0, image=None, best_so_far=self.best.score if self.best else None,
            )  # fmt: skip
            record.scores = 0
            self.trials.append(scored)


def _located(image: Render, rng: np.random.Generator) -> Located:
    damage = ndimage.zoom(image.region.astype(float), 0.25, order=1)

    def seen(noise: float) -> np.ndarray:
        return ndimage.gaussian_filter(damage + noise * rng.random((16, 16)), 0.7).astype(np.float32)

    good, bad, heat = seen(1.0), seen(0.8), seen(0.5)
    contrast = bad - good
    stages = {
        "ori": seen(1.2), "pos": good, "neg": bad, "contrast": contrast,
        "propagated": ndimage.gaussian_filter(contrast, 1), "reweighted": heat,
    }  # fmt: skip
    mask = np.zeros(256, dtype=bool)
    mask[np.argsort(heat.ravel())[-128:]] = True
    return Located(mask.reshape(16, 16), heat, stages, 0.3)


def made_up_search(strategy: str, prompt: str = PROMPT, seed: int = 0, cancelled: int = 0) -> SearchResult:
    """Make up a search by ``lotts`` (3 first images, 2 refinements each) or ``best-of-n`` (6 images).

    Args:
        cancelled: number of cancelled samples at the end of the search.
    """
    rng = np.random.default_rng([seed, len(strategy)])
    scene: Scene = parse_caption(PROMPT if "on " not in prompt else prompt)
    writer, located = _Writer(strategy, prompt, seed), {}
    for n in range(3 if strategy == "lotts" else 6):
        first = render(scene, rng, damage=0.4)
        key, lineage = f"s{n}", (f"seed {n}",)
        writer.images[key] = _bytes(first.image)
        writer.add(key, None, "sample", STEPS, _score(first.region, rng), lineage=lineage, start=0, stop=STEPS)
        if strategy != "lotts":
            continue
        located[f"l{n}"] = _located(first, rng)
        writer.add(f"l{n}", key, "localize", 1.5, None, lineage=lineage, mask_ratio=0.5)
        inside = np.kron(located[f"l{n}"].mask, np.ones((4, 4), dtype=bool))
        for k in range(2):
            again = render(scene, rng, damage=0.1)
            image = writer.images[key].copy()
            image[inside] = _bytes(again.image)[inside]
            writer.images[f"r{n}{k}"] = image
            score = _score((first.region & ~inside) | (again.region & inside), rng)
            writer.add(
                f"r{n}{k}", key, "refine", STEPS - T0, score,
                lineage=(*lineage, f"refine@{T0} {k}"), start=T0, stop=STEPS, mask_ratio=0.5,
            )  # fmt: skip
    for n in range(cancelled):
        writer.add(f"c{n}", None, "sample", 0, None, status="cancelled", error="stopped", lineage=(f"seed {90 + n}",))
    info = ModelInfo(
        "shapes-sd", "stable-diffusion", (4, 16, 16), (64, 64), Prices(row=4e8), writer.ledger.costs.defaults
    )
    return SearchResult(
        prompt, info, strategy, {}, "shapes-reward", seed, Sampling(prompt, STEPS, 3.0), writer.ledger.limits,
        "interrupted" if cancelled else "done", writer.ledger, writer.trials, writer.images, located, writer.best,
        writer.best_refined,
    )  # fmt: skip
