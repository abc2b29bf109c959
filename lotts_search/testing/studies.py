"""Simulated studies with a known truth: trial tables of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Simulated:
    """A strategy that makes one image after the other, each the best of ``speed`` unseen draws by the verifier.

    After n images it is as good as Best-of-N with ``speed``·n images: its speed-up in images over a strategy of speed 1 is
    ``speed`` at every quality.

    Attributes:
        strategy: name in the column ``strategy``.
        images: images of each search.
        speed: draws behind each image, 1 or more.
        nfe: NFE of each image.
        budget: whether ``images`` is written as the budget.
    """

    strategy: str = "best-of-n"
    images: int = 9
    speed: int = 1
    nfe: float = 10.0
    budget: bool = True


def expected_best(n: int) -> float:
    """Return the mean of the greatest of n standard normal draws, by quadrature; 0 for n = 1."""
    x = np.linspace(-9, 9, 20001)
    density = n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1)
    return float(np.trapezoid(x * density, x))


def simulate(
    strategies: Mapping[str, Simulated],
    prompts: int = 40,
    seeds: int = 1,
    *,
    rng: np.random.Generator,
    fidelity: float = 0.8,
    difficulty: float = 0.5,
    model: str = "simulated",
) -> pa.Table:
    """Return a trial table of every strategy on every prompt and seed.

    A draw u ~ N(0, 1) for a prompt of ease d ~ N(0, difficulty²) has the guiding score ``d + u`` and the held-out value
    ``d + fidelity·u + noise``, where the last two terms have variance 1. So the expected held-out value of the best of n is
    ``fidelity · expected_best(n)``.
    """
    import pyarrow as pa

    ease = difficulty * rng.normal(size=prompts)
    parts = [_searches(label, one, ease, seeds, rng, fidelity, model) for label, one in strategies.items()]
    return pa.concat_tables(parts)


def _searches(
    label: str, one: Simulated, ease: np.ndarray, seeds: int, rng: np.random.Generator, fidelity: float, model: str
) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    searches, n = len(ease) * seeds, one.images
    drawn = np.zeros((searches, n))
    for _ in range(one.speed):
        fresh = rng.normal(size=(searches, n))
        drawn = fresh if not _ else np.maximum(drawn, fresh)
    own = np.repeat(ease, seeds)[:, None]
    score = own + drawn
    truth = own + fidelity * drawn + np.sqrt(1 - fidelity**2) * rng.normal(size=drawn.shape)

    rows = searches * n * 2  # each image and its scoring
    image = np.tile([True, False], rows // 2)
    search, position = np.repeat(np.arange(searches), 2 * n), np.tile(np.arange(2 * n), searches)

    def both(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.ravel(), 2)

    def name(codes: np.ndarray, names: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names)).cast(pa.string())

    def same(value: str) -> pa.Array:
        return name(np.zeros(rows, dtype=np.int32), [value])

    def only(values: np.ndarray) -> pa.Array:
        return pa.array(values, pa.float64(), mask=~image)

    prompt, seed = search // seeds, search % seeds
    serial = pa.array(np.arange(rows)).cast(pa.string())
    mate = pa.array(np.arange(rows) - 1).cast(pa.string())
    return pa.table(
        {
            "run_id": same("simulated"),
            "search_id": name(search, [f"{label} {i}" for i in range(searches)]),
            "prompt_id": name(prompt, [f"p{i}" for i in range(len(ease))]),
            "prompt": name(prompt, [f"prompt {i}" for i in range(len(ease))]),
            "model": same(model),
            "strategy": same(one.strategy),
            "strategy_args": same("{}"),
            "search_seed": pa.array(seed),
            "trial_id": serial,
            "parent_id": pc.if_else(pa.array(image), pa.scalar(None, pa.string()), mate),
            "kind": name(position % 2, ["sample", "score"]),
            "label": same(label),
            "budget_nfe": pa.nulls(rows, pa.float64()),
            "budget_images": pa.array(np.full(rows, n), pa.int64(), mask=np.full(rows, not one.budget)),
            "nfe": pa.array(np.where(image, one.nfe, 0.0)),
            "rows": pa.array(np.where(image, int(2 * one.nfe), 0)),
            "flops": pa.array(np.where(image, one.nfe * 1e9, 0.0)),
            "images": pa.array(image.astype(np.int64)),
            "device_s": pa.array(np.where(image, one.nfe * 0.01, 0.001) * rng.lognormal(0, 0.1, rows)),
            "best_so_far": pa.array(both(np.maximum.accumulate(score, axis=1))),
            "score": pa.array(both(score)),
            "metric_truth": only(both(truth)),
            "image": pc.if_else(
                pa.array(image), pc.binary_join_element_wise(same(label), serial, "-"), pa.scalar(None, pa.string())
            ),
            "status": same("done"),
            "error": same(""),
        }
    )
