"""Quality by prompt and cost: the one shape that all curves, intervals and comparisons are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles, Interval, Ints
from lotts_search.curves.order import best_of_curve, sizes
from lotts_search.curves.steps import Curve
from lotts_search.curves.trials import Bools, Setup, Trials
from lotts_search.errors import BadInput

POINTS = 300
"""Most points of a curve over a cost that is not counted in images or steps."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The quality of what is handed out, by prompt and cost; seeds of a prompt are averaged.

    Attributes:
        x: [g] costs, ascending.
        y: [p, g] quality at these costs.
        prompts: [p] indices of the prompts, ascending.
        spent: [p] what a search of each prompt cost in all.
        over, of: the cost (see :data:`~lotts_search.curves.trials.AXES`) and the value.
    """

    x: Doubles
    y: Doubles
    prompts: Ints
    spent: Doubles
    over: str
    of: str

    @property
    def final(self) -> Doubles:
        """Quality at the end [p]."""
        return np.asarray(self.y[:, -1])

    def curve(self, confidence: float = 0.95, resamples: int = RESAMPLES) -> Curve:
        """The mean over prompts with its bootstrap interval."""
        replicates = resampling_weights(len(self.prompts), resamples) @ self.y
        return Curve(self.x, self.y.mean(axis=0), *percentile_interval(replicates, len(self.prompts), confidence))

    def up_to(self, cost: float) -> Panel:
        """The part at costs of at most ``cost``, the first point at least."""
        keep = max(int(np.searchsorted(self.x, cost, side="right")), 1)
        return Panel(self.x[:keep], self.y[:, :keep], self.prompts, self.spent, self.over, self.of)

    def among(self, prompts: Ints) -> Panel:
        """The same for some of its prompts."""
        index = np.searchsorted(self.prompts, prompts)
        return Panel(self.x, self.y[index], prompts, self.spent[index], self.over, self.of)


def mean_interval(values: Doubles, confidence: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """The mean of ``values`` [prompts] and its bootstrap interval."""
    low, high = percentile_interval(resampling_weights(len(values), resamples) @ values, len(values), confidence)
    return Interval(float(values.mean()), float(low), float(high))


def common(a: Panel, b: Panel) -> tuple[Panel, Panel]:
    """Both on the prompts that both have.

    Raises:
        BadInput: there are none.
    """
    prompts = np.intersect1d(a.prompts, b.prompts)
    if not prompts.size:
        raise BadInput("the two have no prompt in common")
    return a.among(prompts), b.among(prompts)


def searched(trials: Trials, setup: Setup) -> Setup:
    """The setup whose searches a setup is read from: itself, or the largest of its label, whose beginnings it is.

    Raises:
        BadInput: there is none.
    """
    if setup in trials.setups:
        return setup
    whole = [i for i, a in enumerate(trials.setups) if (a.model, a.label) == (setup.model, setup.label)]
    if not whole or setup.label not in trials.nested:
        raise BadInput(f"the table has no searches by {setup.label} on {setup.model} with a budget of {setup.budget}")
    # The limits may be of another kind than those that were searched with, e.g. images of a budget in NFE.
    return trials.setups[max(whole, key=lambda i: (trials.first[1:] - trials.first[:-1])[trials.setup == i].sum())]


def _rows(trials: Trials, setup: Setup) -> tuple[Ints, Bools]:
    """The searches of a setup, and which rows [n] belong to it: those within its budget, where it is the beginning of
    the searches of a larger one."""
    whole = searched(trials, setup)
    inside = trials.setup == trials.setups.index(whole)
    rows = inside[trials.search]
    if whole != setup:
        for over, limit in (("nfe", setup.nfe), ("images", setup.images)):
            if limit is not None:
                rows &= trials.cost(over) <= limit + 1e-9
    return np.flatnonzero(inside), rows


def spent(trials: Trials, setup: Setup, over: str) -> Doubles:
    """What each search of a setup that found an image cost in all [searches]."""
    searches, rows = _rows(trials, setup)
    costs = np.zeros(len(trials.ids))
    np.maximum.at(costs, trials.search[rows], trials.cost(over)[rows])
    found = np.unique(trials.search[rows & trials.leading])
    return np.asarray(costs[np.intersect1d(searches, found)])


def best_so_far(trials: Trials, setup: Setup, of: str, over: str, *, refined: bool = False) -> Panel:
    """The value ``of`` the image that the guide likes best, of those made up to each cost.

    A search that ended keeps its last value, as it would be handed out. The first point is where every search has a
    image. Searches without any image (all their trials failed) are left out.

    Args:
        of: ``score`` or a metric.
        over: one of :data:`~lotts_search.curves.trials.AXES`.
        refined: look at the refined images alone: "best of the refined" of the ablations.

    Raises:
        BadInput: no search of this setup has an image, or some best image lacks the metric.
    """
    searches, rows = _rows(trials, setup)
    if refined:
        trials = replace(trials, image=trials.image & trials.refined)
    leads = np.flatnonzero(rows & trials.leading)
    if not leads.size:
        raise BadInput(f"no search by {setup.label} on {setup.model} has a {'refined ' * refined}image")
    values, costs = trials.values(of)[leads], trials.cost(over)
    if (missing := int(np.isnan(values).sum())) > 0:
        raise BadInput(f"{missing} of {leads.size} best images by {setup.label} have no {of}")
    searches = np.intersect1d(searches, trials.search[leads])
    index = np.searchsorted(searches, trials.search[leads])  # of each leading image's search among these
    total = np.zeros(len(trials.ids))
    np.maximum.at(total, trials.search[rows], costs[rows])
    ends, begins = total[searches], np.full(len(searches), np.inf)
    np.minimum.at(begins, index, costs[leads])

    grid = np.unique(np.concatenate([costs[leads], ends]))
    grid = grid[grid >= begins.max()]
    if grid.size > POINTS:
        grid = np.linspace(begins.max(), ends.max(), POINTS)
    # Each value is written where it begins to hold, the latest last, and carried forward from there.
    column = np.searchsorted(grid, costs[leads], side="left")
    at = np.full((len(searches), grid.size), -1, dtype=np.int64)
    early = column < grid.size
    at[index[early], column[early]] = np.flatnonzero(early)
    held = values[np.maximum.accumulate(at, axis=1)]
    return _by_prompt(trials.prompt[searches], grid, held, ends, over, of)


def best_of_n(trials: Trials, setup: Setup, of: str, over: str = "images", most: int | None = None) -> Panel:
    """The whole Best-of-N curve from the pools of independent images that a setup made, by the order-statistics
    estimator: expected value ``of`` the guide's best of N for N = 1 … ``most``, or the
    size of the smallest pool of a prompt.

    All images of a prompt, whatever their seed, are one pool. N images cost N times an image's mean cost.

    Raises:
        BadInput: the images are not independent samples, or lack the metric.
    """
    _, rows = _rows(trials, setup)
    made = np.flatnonzero(rows & trials.image & ~np.isnan(trials.columns["score"]))
    if not made.size or not trials.alone[made].all():
        raise BadInput(f"{setup.label} on {setup.model} is no pool of independent samples: Best-of-N needs images from noise alone")  # fmt: skip
    if np.isnan(trials.values(of)[made]).any():
        raise BadInput(f"some images by {setup.label} have no {of}: the pool needs the metric of every image")
    prompt = trials.prompt[trials.search[made]]
    made = made[np.argsort(prompt, kind="stable")]
    prompts, counts = np.unique(prompt, return_counts=True)
    # Pools of one size are one matrix; there are few sizes, for pools differ by failed images only.
    chosen = sizes(int(min(counts.min(), most or counts.min())))
    y, begins = np.empty((len(prompts), chosen.size)), np.cumsum(counts) - counts
    for size in np.unique(counts):
        where = np.flatnonzero(counts == size)
        block = made[begins[where][:, None] + np.arange(size)]
        y[where] = best_of_curve(trials.columns["score"][block], trials.values(of)[block], chosen)
    price = float(trials.columns[over][rows].sum() / made.size) if over != "images" else 1.0
    return Panel(price * chosen.astype(np.float64), y, prompts, price * counts.astype(np.float64), over, of)


def _by_prompt(prompt: Ints, x: Doubles, y: Doubles, total: Doubles, over: str, of: str) -> Panel:
    """Means over the searches of each prompt."""
    order = np.argsort(prompt, kind="stable")
    prompts, first, counts = np.unique(prompt[order], return_index=True, return_counts=True)
    means = np.add.reduceat(y[order], first, axis=0) / counts[:, None]
    return Panel(
        x, means, prompts, np.asarray(np.add.reduceat(total[order], first) / counts, dtype=np.float64), over, of
    )
