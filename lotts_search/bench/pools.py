"""`RayPool` with one actor against `LocalPool`: the cost of a second process. Both stay open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from lotts_search.actors.ray_pool import RayPool
from lotts_search.bench.setting import Ratio, Setting, of
from lotts_search.engine.local_pool import LocalPool
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Fresh, Segment

IN_FLIGHT = 32
"""Samples that are submitted at once."""


def pools(setting: Setting) -> Iterator[Ratio]:
    """Measure whole samples of both pools, in wall time: the actor is another process."""
    sampling = replace(setting.sampling, prompt="a red square")

    def samples(pool: Pool) -> Callable[[int], float]:
        def go(number: int) -> float:
            futures = [
                pool.submit(Segment(0, sampling, (f"seed {seed}",), sampling.steps, noise=Fresh(seed)))
                for seed in range(IN_FLIGHT)
            ]
            for future in futures:
                future.result()
            return IN_FLIGHT

        return go

    with (
        LocalPool(setting.backbone, {}, setting.batch, setting.threads) as local,
        RayPool(setting.model, [], 1, setting.batch, setting.threads) as remote,
    ):
        taken = setting.alternate({"local": samples(local), "ray": samples(remote)}, time.perf_counter)
    yield Ratio("images per second: RayPool with one actor ÷ LocalPool", of(taken["local"], taken["ray"]), least=0.9)
