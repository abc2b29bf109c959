"""Whole searches with refinements that are confined to their masks, against the same with all steps whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from lotts_search.api import search
from lotts_search.bench.loops import IMAGES
from lotts_search.bench.masked import DEMAND
from lotts_search.bench.setting import Ratio, Setting, of, prompts
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.work.confined import EVERY
from lotts_search.work.pool import Pool

MODELS = "shapes-sd", "shapes-sdxl", "shapes-flux"
STRATEGIES = "lotts", "adaptive-mosaic"


def confined(setting: Setting) -> Iterator[Ratio]:
    """Measure the time of a search per FLOP that it is charged, on the embedded models whatever that of the setting is. It
    stays the same where confined steps save what is counted."""
    device, dtype = str(setting.backbone.device), str(setting.backbone.network.dtype).removeprefix("torch.")
    verifiers = {setting.verifier: load_verifier(setting.verifier)}
    for model in MODELS:
        backbone = load_backbone(model, device=device, dtype=dtype)
        with LocalPool(backbone, verifiers, setting.batch, setting.threads) as pool:
            for strategy in STRATEGIES:
                actions = {str(refresh): _searching(pool, strategy, refresh) for refresh in (EVERY, 1)}
                taken = setting.alternate(actions)
                name = f"time per FLOP: {strategy} on {model}, every second masked step whole ÷ all whole"
                yield Ratio(name, of(taken[str(EVERY)], taken["1"]), most=DEMAND)


def _searching(pool: Pool, strategy: str, refresh: int) -> Callable[[int], float]:
    """Return what searches with a strategy, for another prompt in each round, and returns the FLOPs of the search."""
    nfe, settings = IMAGES * pool.info.defaults.steps, {"refresh": refresh}

    def go(number: int) -> float:
        (text,) = itertools.islice(prompts(), number + 1, number + 2)
        return search(text, strategy=strategy, settings=settings, nfe=nfe, pool=pool).ledger.flops

    return go
