"""Measure on renders how reliable the oracle is: ``python -m lotts_search.shapes.measure.oracle_check``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.shapes.world.oracle import Verdict, judge_many
from lotts_search.shapes.world.render import cell_box, render, to_uint8
from lotts_search.shapes.world.scene import Split, scenes
from lotts_search.shapes.world.wrong_captions import one_wrong
from lotts_search.work.requests import Bools, Bytes

Trip = Callable[[Bytes], Bytes]


def check(count: int = 300, *, split: Split = "tune", seed: int = 0, trip: Trip | None = None) -> dict[str, float]:
    """Measure the oracle on ``count`` undamaged and as many damaged renders.

    Args:
        count: number of scenes.
        split: split of the scenes.
        seed: seed of the scenes and of their renders.
        trip: a distortion [N, 64, 64, 3] → the same that should not change verdicts, e.g. an autoencoder.

    Returns:
        Shares and correlations in 0..1, and the speed in images per second, by name.
    """
    rng = np.random.default_rng(seed)
    wanted = scenes(split, count, seed)
    clean = np.stack([to_uint8(render(s, rng).image) for s in wanted])
    broken = [render(s, rng, damage=0.4) for s in wanted]
    damaged = np.stack([to_uint8(r.image) for r in broken])
    truth = np.stack([r.damaged for r in broken])
    area = np.stack([[r.region[cell_box(c)].sum() for c in range(9)] for r in broken])
    altered = [one_wrong(s, rng) for s in wanted]

    judge_many(clean[:1], wanted[:1])  # renders the templates, which should not be timed
    started = time.perf_counter()
    on_clean = judge_many(clean, wanted)
    speed = count / (time.perf_counter() - started)
    on_damaged = judge_many(damaged, wanted)
    figures = {
        "undamaged renders, cells judged right and undamaged": 1 - _cells(on_clean, "flawed").mean(),
        "undamaged renders judged perfect": float(np.mean([v.perfect for v in on_clean])),
        "wrong captions, only the wrong object judged wrong": _pinpointed(judge_many(clean, [a for a, _ in altered]),
                                                                          [cell for _, cell in altered]),
        **_damage_figures("damaged renders", on_damaged, truth, area),
        "images per second": speed,
    }  # fmt: skip
    if trip is not None:
        clean_after, damaged_after = judge_many(trip(clean), wanted), judge_many(trip(damaged), wanted)
        figures |= {
            "round trip, verdicts unchanged": _same(on_clean + on_damaged, clean_after + damaged_after),
            "round trip, verdicts unchanged on undamaged renders": _same(on_clean, clean_after),
            "round trip, verdicts unchanged on damaged renders": _same(on_damaged, damaged_after),
            "round trip, undamaged renders judged perfect": float(np.mean([v.perfect for v in clean_after])),
            **_damage_figures("round trip", damaged_after, truth, area),
        }
    return {name: float(value) for name, value in figures.items()}


def _cells(verdicts: Sequence[Verdict], name: str) -> npt.NDArray[Any]:
    return np.stack([getattr(v, name) for v in verdicts])


def _pinpointed(verdicts: Sequence[Verdict], cells: Sequence[int]) -> float:
    return float(np.mean([(v.right == (np.arange(9) != cell)).all() for v, cell in zip(verdicts, cells, strict=True)]))


def _damage_figures(
    where: str, verdicts: Sequence[Verdict], truth: Bools, area: npt.NDArray[np.int64]
) -> dict[str, float]:
    expected, judged, found = (_cells(verdicts, n) for n in ("expected", "area", "flawed"))
    return {
        f"{where}, damaged objects found": found[truth].mean(),
        f"{where}, undamaged objects taken for damaged or wrong": found[expected & ~truth].mean(),
        f"{where}, correlation of damaged area per object": np.corrcoef(judged[expected], area[expected])[0, 1],
        f"{where}, correlation of damaged area per image": np.corrcoef(judged.sum(axis=1), area.sum(axis=1))[0, 1],
    }


def _same(before: Sequence[Verdict], after: Sequence[Verdict]) -> float:
    """Return the share of expected objects whose verdict (present, colour, shape, damaged) is unchanged."""
    same = np.logical_and.reduce(
        [_cells(before, n) == _cells(after, n) for n in ("present", "colour_right", "shape_right", "damaged")]
    )
    return float(same[_cells(before, "expected")].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderKL for the round trip")
    parser.add_argument("--images", type=int, default=300, help="number of undamaged and of damaged renders")
    parser.add_argument("--split", choices=("train", "tune", "test"), default="tune", help="split of the scenes")
    args = parser.parse_args()
    trip: Trip | None = None
    if args.vae is not None:
        from lotts_search.shapes.reward.round_trip import RoundTrip

        trip = RoundTrip(args.vae)
    for name, value in check(args.images, split=args.split, trip=trip).items():
        print(f"{value:8.4f}  {name}")


if __name__ == "__main__":
    main()
