"""All ratios of the framework's speed that ``lotts-search bench ratios`` measures, as one table and one plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lotts_search.bench.batches import batches
from lotts_search.bench.confined import confined
from lotts_search.bench.loops import filling, many_searches, one_search
from lotts_search.bench.masked import masked
from lotts_search.bench.memory import memory
from lotts_search.bench.pools import pools
from lotts_search.bench.setting import Ratio, Setting
from lotts_search.bench.throughput import localization, throughput
from lotts_search.errors import BadInput

PARTS: Mapping[str, Callable[[Setting], Iterator[Ratio]]] = {
    "engine": throughput,
    "search": one_search,
    "searches": many_searches,
    "batch": batches,
    "fill": filling,
    "localization": localization,
    "ray": pools,
    "memory": memory,
    "masked": masked,
    "confined": confined,
}


def demand(ratio: Ratio) -> str:
    """Return the demands on a ratio as text."""
    bounds = ("≥", ratio.least), ("≤", ratio.most)
    return " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def row(ratio: Ratio) -> str:
    """Return a ratio as a row of the table, with the lowest and highest of its rounds."""
    wanted = demand(ratio)
    verdict = ("met" if ratio.met else "not met") if wanted else ""
    rounds = f"{min(ratio.rounds):.3f} to {max(ratio.rounds):.3f}" if len(ratio.rounds) > 1 else ""
    return f"| {ratio.name} | {ratio.value:.3f} | {rounds} | {wanted} | {verdict} |"


HEAD = "| what | ratio | rounds | demand | |\n|---|---|---|---|---|"


def draw(ratios: list[Ratio], path: Path) -> None:
    """Draw the ratios with their rounds and demands.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("a plot needs matplotlib: pip install 'lotts-search[figures]'") from error
    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 0.28 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    for place, ratio in enumerate(ratios):
        axes.plot([min(ratio.rounds), max(ratio.rounds)], [place] * 2, color="#94a3b8", linewidth=2)
        axes.plot(ratio.value, place, "o", color="#2563eb" if ratio.met else "#dc2626", markersize=5)
        for bound, mark in ((ratio.least, "$[$"), (ratio.most, "$]$")):
            if bound is not None:
                axes.plot(bound, place, marker=mark, color="black", markersize=9)
    axes.set_yticks(range(len(ratios)), [ratio.name for ratio in ratios], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="#cbd5e1", linewidth=0.8, zorder=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("ratio; brackets are demands", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
