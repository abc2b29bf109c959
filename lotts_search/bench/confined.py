"""Whole searches with refinements that are confined to their masks, against the same with all steps whole."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator

from lotts_search.bench.loops import IMAGES, search_all
from lotts_search.bench.masked import DEMAND, EMBEDDED
from lotts_search.bench.setting import Ratio, Setting, of, prompts
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.work.confined import EVERY

AT_ONCE = 1, 8
"""Searches at once: one alone, and the least that a study has in flight."""


def confined(setting: Setting) -> Iterator[Ratio]:
    """Measure the time of searches with ``lotts`` for the same images, on the embedded models whatever that of the setting is, and the
    time per FLOP that they are charged, which stays the same where confined steps save what is counted."""
    device, dtype = str(setting.backbone.device), str(setting.backbone.network.dtype).removeprefix("torch.")
    verifiers = {setting.verifier: load_verifier(setting.verifier)}
    for model in EMBEDDED:
        backbone = load_backbone(model, device=device, dtype=dtype)
        with LocalPool(backbone, verifiers, setting.batch, setting.threads) as pool:
            for count in AT_ONCE:
                yield from _compare(setting, pool, count)


def _compare(setting: Setting, pool: LocalPool, count: int) -> Iterator[Ratio]:
    flops: dict[str, list[float]] = defaultdict(list)

    def searching(refresh: str) -> Callable[[int], float]:
        def go(number: int) -> float:
            texts = list(itertools.islice(prompts(), count * (number + 1), count * (number + 2)))
            settings = {"refresh": int(refresh)}
            found = search_all(texts, strategy="lotts", settings=settings, images=IMAGES, pool=pool)
            flops[refresh].append(sum(one.ledger.flops for one in found))
            return count

        return go

    taken = setting.alternate({refresh: searching(refresh) for refresh in (str(EVERY), "1")})
    times = of(taken[str(EVERY)], taken["1"])
    counted = of(flops[str(EVERY)], flops["1"])[1:]  # the first round warmed up
    what = f"{count} × lotts on {pool.info.name}, every second masked step whole ÷ all whole"
    yield Ratio(f"time: {what}", times)
    yield Ratio(f"time ÷ counted cost: {what}", of(times, counted), most=DEMAND)
