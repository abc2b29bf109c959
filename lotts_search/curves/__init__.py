"""Scaling curves: quality against compute, estimated from trial tables, with intervals. See ``docs/curves.md``.

Imports numpy, scipy, pyarrow and ``errors``: no search, no engine, no model. ::

    from lotts_search.curves import load

    results = load("runs/NAME")
    print(results.speed_up(results.find("best-of-n"), results.find("lotts"), over="images"))
"""

from lotts_search.curves.intervals import Interval, interval
from lotts_search.curves.order import best_of, best_of_curve
from lotts_search.curves.overoptimization import Tradeoff, tradeoff
from lotts_search.curves.panel import Panel, best_of_n, best_so_far, mean_interval
from lotts_search.curves.results import Results, load
from lotts_search.curves.saturation import Saturation, fit
from lotts_search.curves.speedup import SpeedUp, speed_up
from lotts_search.curves.steps import Curve, StepFunction, mean_curve
from lotts_search.curves.trials import AXES, Setup, Trials, from_table
from lotts_search.curves.wins import WinRate, win_rate

__all__ = [
    "AXES", "Curve", "Interval", "Panel", "Results", "Saturation", "Setup", "SpeedUp", "StepFunction", "Tradeoff", "Trials",
    "WinRate", "best_of", "best_of_curve", "best_of_n", "best_so_far", "fit", "from_table", "interval", "load",
    "mean_curve", "mean_interval", "speed_up", "tradeoff", "win_rate",
]  # fmt: skip
