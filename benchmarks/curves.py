"""Time the analysis of a million-row trial table, from the Parquet file to all curves with their intervals.

    python benchmarks/curves.py [--rows 1000000]

The table has two strategies, a hundred prompts and as many seeds as the number of rows needs. Timed are reading, the
mean curves with bootstrap intervals of the verifier's score and of the held-out metric over every cost (from pools for
Best-of-N), the speed-up, the win rate and the saturation fit. Demand: 10 seconds or less
for a million rows.
"""  # fmt: skip

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from lotts_search.core.trial_table import write_parquet
from lotts_search.curves import AXES, load
from lotts_search.testing.studies import Simulated, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table, about")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of the table")
    options = parser.parse_args()

    strategies = {"base": Simulated(images=64), "ours": Simulated("lotts", 16, speed=3)}
    rows = 2 * sum(one.images for one in strategies.values()) * options.prompts  # an image and its scoring are two rows
    seeds = max(options.rows // rows, 1)
    table = simulate(strategies, options.prompts, seeds, rng=np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = write_parquet(table, Path(folder) / "trials.parquet")
        began, used = time.perf_counter(), time.process_time()
        results = load(path)
        read = time.perf_counter()
        base, ours = results.find("base"), results.find("ours")
        curves = 0
        for over in AXES:
            for of in ("score", "truth"):
                for setup in (base, ours):
                    results.panel(setup, of, over).curve()
                    curves += 1
        drawn = time.perf_counter()
        faster = results.speed_up(base, ours, over="images", quality=1.2)
        wins, saturation = results.win_rate(ours, base), results.saturation(base, over="images")
        ended, used = time.perf_counter(), time.process_time() - used
    print(f"{len(table):,} rows, {len(results.trials.ids):,} searches")
    print(f"read {read - began:.2f} s, {curves} curves {drawn - read:.2f} s, comparisons {ended - drawn:.2f} s")
    print(f"speed-up {faster} (planted 3), win rate {wins}, quality at unlimited cost {saturation.limit}")
    print(f"total {ended - began:.2f} s (demand 10 for a million rows), CPU time {used:.2f} s")


if __name__ == "__main__":
    main()
