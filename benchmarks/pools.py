"""Compare the throughput of `RayPool` with one actor with that of `LocalPool`: the cost of a second process.

    python benchmarks/pools.py [--model shapes-sd] [--trials 32] [--rounds 5]

Both pools stay open and alternate, round by round, so that other load on the machine affects both alike. The ratio is the
median over the rounds (demand: 0.9 or more).
"""

from __future__ import annotations

import argparse
import statistics
import time

from lotts_search.actors.ray_pool import RayPool
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Fresh, Sampling, Segment

PROMPT = "a red square"


def rate(pool: Pool, trials: int) -> float:
    """Return the whole samples per second, all submitted at once."""
    defaults = pool.info.defaults
    sampling = Sampling(PROMPT, defaults.steps, defaults.guidance, eta=defaults.eta)
    began = time.perf_counter()
    futures = [
        pool.submit(Segment(0, sampling, (f"seed {seed}",), sampling.steps, noise=Fresh(seed)))
        for seed in range(trials)
    ]
    for future in futures:
        future.result()
    return trials / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or hub id")
    parser.add_argument("--trials", type=int, default=32, help="samples in flight at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    backbone = load_backbone(options.model)
    with (
        LocalPool(backbone, {}, options.max_batch, options.threads) as local,
        RayPool(options.model, [], 1, options.max_batch, options.threads) as remote,
    ):
        for pool in (local, remote):
            rate(pool, options.max_batch)
        ratios: list[float] = []
        for number in range(options.rounds):
            pair = (local, remote) if number % 2 == 0 else (remote, local)
            rates = {pool: rate(pool, options.trials) for pool in pair}
            ratios.append(rates[remote] / rates[local])
            print(
                f"round {number + 1}: LocalPool {rates[local]:.3f}/s, RayPool {rates[remote]:.3f}/s, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"RayPool / LocalPool = {statistics.median(ratios):.3f} (demand 0.9), {options.trials} trials in flight")


if __name__ == "__main__":
    main()
