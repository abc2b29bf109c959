"""The number of rows of a network call: what unused rows cost a search alone, and what small calls cost searches together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator

from lotts_search.api import asearch
from lotts_search.bench.setting import Ratio, Setting, of, prompts
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_verifier
from lotts_search.work.batch_sizes import BatchSizes
from lotts_search.work.pool import Pool

SIZES = "4", "8", "1,2,4,8,16"
SEARCHES = (("best-of-n", 1, 1), ("best-of-n", 3, 1), ("lotts", 9, 1), ("adaptive-mosaic", 9, 1), ("lotts", 9, 8))
"""Strategy, images, and how many searches run at once."""


def batches(setting: Setting) -> Iterator[Ratio]:
    """Measure searches with other sizes of a call against the setting's."""
    verifiers = {setting.verifier: load_verifier(setting.verifier)}
    with contextlib.ExitStack() as opened:
        pools = {
            name: opened.enter_context(
                LocalPool(setting.backbone, verifiers, BatchSizes.parse(name).batch, setting.threads)
            )
            for name in (*SIZES, str(setting.batch))
        }
        for strategy, images, count in SEARCHES:
            actions = {name: _searching(pool, strategy, images, count) for name, pool in pools.items()}
            taken = setting.alternate(actions)
            alone = "a search" if count == 1 else f"{count} searches at once"
            for name in SIZES:
                what = f"time: {alone} with {strategy}, {images} image{'s' if images > 1 else ''}"
                yield Ratio(f"{what}, rows {name} ÷ {setting.batch}", of(taken[name], taken[str(setting.batch)]))


def _searching(pool: Pool, strategy: str, images: int, count: int) -> Callable[[int], float]:
    async def all_searches(number: int) -> float:
        texts = itertools.islice(prompts(), count * (number + 1), count * (number + 2))
        await asyncio.gather(*(asearch(text, strategy=strategy, images=images, pool=pool) for text in texts))
        return count

    return lambda number: asyncio.run(all_searches(number))
