"""LoTTS against its baselines on test prompts with common seeds, judged by the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lotts_search.api import asearch
from lotts_search.core.budget import Costs
from lotts_search.core.result import SearchResult
from lotts_search.core.strategy import Strategy
from lotts_search.curves.intervals import Doubles, interval
from lotts_search.shapes.world.oracle import judge_many
from lotts_search.shapes.world.scene import Scene, Split, scenes
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.more_steps import MoreSteps
from lotts_search.work.masks import HIGH_QUALITY
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes, Sampling


@dataclass(frozen=True)
class Contestant:
    """A strategy with its budget: NFE, or images; ``first`` looks only at its so many first images."""

    strategy: Strategy
    nfe: float | None = None
    images: int | None = None
    first: int | None = None


def field(info: ModelInfo, initial: int, lotts: Mapping[str, object]) -> dict[str, Contestant]:
    """LoTTS with ``initial`` branches, and the baselines at its strict NFE and at its number of images."""
    strategy = LoTTS(initial=initial, **lotts)  # type: ignore[arg-type]
    costs = Costs.of(info, Sampling.of(info, "any"))
    branch = costs.sample.nfe + strategy.localization(costs).nfe
    branch += strategy.refinements * strategy.refinement(costs).nfe
    nfe, images = initial * branch, initial * (1 + strategy.refinements)
    plain, quality, paid = BestOfN(), BestOfN(template=HIGH_QUALITY), int(nfe // costs.sample.nfe)
    # Equal NFE and equal images share one pool of images.
    most = max(images, paid)
    return {
        "LoTTS": Contestant(strategy, nfe),
        "Best-of-N, equal NFE": Contestant(plain, images=most, first=paid),
        "Best-of-N, equal images": Contestant(plain, images=most, first=images),
        "Best-of-N with p+, equal NFE": Contestant(quality, images=most, first=paid),
        "Best-of-N with p+, equal images": Contestant(quality, images=most, first=images),
        "MoreSteps, equal NFE": Contestant(MoreSteps(), nfe),
    }


def winner(result: SearchResult, first: int | None = None) -> tuple[Bytes, float, float, int]:
    """Image, guiding score, NFE and images of a search, or of the seeds below ``first`` of a Best-of-N search."""
    if first is None:
        assert result.image is not None and result.score is not None
        return result.image, result.score, result.ledger.nfe, result.ledger.images
    kept = [t for t in result.trials if t.kind == "sample" and t.lineage[0] in {f"seed {s}" for s in range(first)}]
    best = max(kept, key=lambda t: -np.inf if t.score is None else t.score)
    return result.images[best.trial_id], best.score or 0.0, sum(t.nfe for t in kept), len(kept)


def searches(contestants: Mapping[str, Contestant]) -> int:
    """Searches that :func:`compare` runs for each prompt."""
    return len({_pool_of(c) for c in contestants.values()})


async def _all(
    pool: Pool, contestants: Mapping[str, Contestant], chosen: list[Scene], seed: int, tick: Callable[[], None]
) -> dict[str, list[SearchResult]]:
    # More searches at once than this only wait in the pool.
    gate = asyncio.Semaphore(24)

    async def one(scene: Scene, index: int, contestant: Contestant) -> SearchResult:
        async with gate:
            result = await asearch(
                scene.caption, pool=pool, strategy=contestant.strategy, nfe=contestant.nfe,
                images=contestant.images, seed=seed + index,
            )  # fmt: skip
        tick()
        return result

    lists = {
        key: [one(scene, i, contestant) for i, scene in enumerate(chosen)]
        for key, contestant in {_pool_of(c): c for c in contestants.values()}.items()
    }
    flat = iter(await asyncio.gather(*(search for searches in lists.values() for search in searches)))
    shared = {key: [next(flat) for _ in chosen] for key in lists}
    return {name: shared[_pool_of(contestant)] for name, contestant in contestants.items()}


def _pool_of(contestant: Contestant) -> tuple[int, float | None, int | None]:
    """What makes two contestants share their searches; strategies are compared by identity."""
    return id(contestant.strategy), contestant.nfe, contestant.images


def compare(
    pool: Pool,
    contestants: Mapping[str, Contestant],
    *,
    split: Split,
    prompts: int,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, object]:
    """Oracle quality of each contestant's winner, and paired differences of the first one to the others.

    Prompt i is searched with seed ``seed + i`` by everybody, so that the first images are the same.
    """
    chosen = scenes(split, prompts, seed=6)
    results = asyncio.run(_all(pool, contestants, chosen, seed, tick))
    quality: dict[str, Doubles] = {}
    rows: dict[str, object] = {}
    for name, found in results.items():
        images, rewards, nfe, counts = zip(*(winner(r, contestants[name].first) for r in found), strict=True)
        verdicts = judge_many(np.stack(images), chosen)
        quality[name] = np.array([v.quality for v in verdicts])
        rows[name] = {
            "quality": str(interval(quality[name])),
            "perfect": float(np.mean([v.perfect for v in verdicts])),
            "reward": float(np.mean(rewards)),
            "nfe": float(np.mean(nfe)),
            "images": float(np.mean(counts)),
        }
    first = next(iter(quality))
    differences = {name: str(interval(quality[first] - other)) for name, other in quality.items() if name != first}
    return {"split": split, "prompts": prompts, "contestants": rows, f"{first} minus": differences}
