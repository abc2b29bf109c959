"""Quality by prompt and cost: the one table that all curves, intervals and comparisons are computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Bools, Doubles, Interval, Ints, share_interval
from lotts_search.curves.order import best_of_curve, sizes
from lotts_search.curves.steps import Curve
from lotts_search.curves.trials import Setup, Trials
from lotts_search.errors import BadInput

POINTS = 300
"""The largest number of points of a best-so-far curve."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The quality of the returned image by prompt and cost, averaged over the seeds of each prompt.

    Attributes:
        x: [g] costs, ascending.
        y: [p, g] quality at these costs.
        prompts: [p] indices of the prompts, ascending.
        spent: [p] total cost of a search for each prompt.
        over: name of the cost, see :data:`~lotts_search.curves.trials.AXES`.
        of: name of the quality: ``score`` or a metric.
        share: whether every image has a quality of 0 or 1, so that the means are shares with Wilson's interval.
    """

    x: Doubles
    y: Doubles
    prompts: Ints
    spent: Doubles
    over: str
    of: str
    share: bool = False

    @property
    def final(self) -> Doubles:
        """The quality at the highest cost [p]."""
        return np.asarray(self.y[:, -1])

    def curve(self, confidence: float = 0.95, resamples: int = RESAMPLES) -> Curve:
        """Return the mean over prompts with its bootstrap interval, a share with Wilson's interval."""
        if self.share:
            found = [share_interval(float(mean), len(self.prompts), confidence) for mean in self.y.mean(axis=0)]
            return Curve(self.x, *(np.array([getattr(i, part) for i in found]) for part in ("mean", "low", "high")))
        replicates = resampling_weights(len(self.prompts), resamples) @ self.y
        return Curve(self.x, self.y.mean(axis=0), *percentile_interval(replicates, len(self.prompts), confidence))

    def among(self, prompts: Ints) -> Panel:
        """Return the panel of some of its prompts."""
        index = np.searchsorted(self.prompts, prompts)
        return replace(self, y=self.y[index], prompts=prompts, spent=self.spent[index])

    def interval(self) -> Interval:
        """Return the mean of the quality at the highest cost, with the interval of :meth:`curve`."""
        return share_interval(float(self.final.mean()), len(self.final)) if self.share else mean_interval(self.final)


def mean_interval(values: Doubles, confidence: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Return the mean of ``values`` [prompts] with its bootstrap interval."""
    low, high = percentile_interval(resampling_weights(len(values), resamples) @ values, len(values), confidence)
    return Interval(float(values.mean()), float(low), float(high))


def common(a: Panel, b: Panel) -> tuple[Panel, Panel]:
    """Restrict both panels to the prompts that they share.

    Raises:
        BadInput: they share none.
    """
    prompts = np.intersect1d(a.prompts, b.prompts)
    if not prompts.size:
        raise BadInput("the two have no prompt in common")
    return a.among(prompts), b.among(prompts)


def searched(trials: Trials, setup: Setup) -> Setup:
    """Return the setup whose searches hold those of ``setup``: itself, or the largest budget of a nested label.

    Raises:
        BadInput: the table has no such searches.
    """
    if setup in trials.setups:
        return setup
    whole = [i for i, a in enumerate(trials.setups) if (a.model, a.label) == (setup.model, setup.label)]
    if not whole or setup.label not in trials.nested:
        raise BadInput(f"the table has no searches by {setup.label} on {setup.model} with a budget of {setup.budget}")
    # Budgets of different kinds (images, NFE, FLOPs) cannot be compared by their limits: the longest searches hold the others.
    return trials.setups[max(whole, key=lambda i: (trials.first[1:] - trials.first[:-1])[trials.setup == i].sum())]


def _rows(trials: Trials, setup: Setup) -> tuple[Ints, Bools]:
    """Return the searches of a setup and which rows [n] belong to it: of a nested budget, only the rows within it."""
    whole = searched(trials, setup)
    inside = trials.setup == trials.setups.index(whole)
    rows = inside[trials.search]
    if whole != setup:
        rows &= trials.within(setup)
    return np.flatnonzero(inside), rows


def spent(trials: Trials, setup: Setup, over: str) -> Doubles:
    """Return the total cost of each search of a setup that produced an image [searches]."""
    searches, rows = _rows(trials, setup)
    costs = np.zeros(len(trials.ids))
    np.maximum.at(costs, trials.search[rows], trials.cost(over)[rows])
    found = np.unique(trials.search[rows & trials.leading])
    return np.asarray(costs[np.intersect1d(searches, found)])


def returned(trials: Trials, setup: Setup) -> Ints:
    """Return the row of the image that each search of a setup returns; searches without an image are left out."""
    _, rows = _rows(trials, setup)
    leads = np.flatnonzero(rows & trials.leading)
    last = np.append(trials.search[leads][1:] != trials.search[leads][:-1], True)[: leads.size]
    return np.asarray(leads[last])


def best_so_far(trials: Trials, setup: Setup, of: str, over: str, *, refined: bool = False) -> Panel:
    """Return the value ``of`` the image that the search would return if it stopped at each cost: the verifier's best.

    A search that has ended keeps its last value. The first point is where every search has an image. Searches without
    any image (all their trials failed) are left out.

    Args:
        of: ``score`` or a metric.
        over: one of :data:`~lotts_search.curves.trials.AXES`.
        refined: consider refined images only, for "best of the refined" in the ablations.

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
    index = np.searchsorted(searches, trials.search[leads])  # the place of each leading image's search in ``searches``
    total = np.zeros(len(trials.ids))
    np.maximum.at(total, trials.search[rows], costs[rows])
    ends, begins = total[searches], np.full(len(searches), np.inf)
    np.minimum.at(begins, index, costs[leads])

    grid = np.unique(np.concatenate([costs[leads], ends]))
    grid = grid[grid >= begins.max()]
    if grid.size > POINTS:
        grid = np.linspace(begins.max(), ends.max(), POINTS)
    # Each value is written at the cost from which it holds, the latest last, and carried forward from there.
    column = np.searchsorted(grid, costs[leads], side="left")
    at = np.full((len(searches), grid.size), -1, dtype=np.int64)
    early = column < grid.size
    at[index[early], column[early]] = np.flatnonzero(early)
    held = values[np.maximum.accumulate(at, axis=1)]
    return replace(_by_prompt(trials.prompt[searches], grid, held, ends, over, of), share=trials.share(of))


def best_of_n(trials: Trials, setup: Setup, of: str, over: str = "images", most: int | None = None) -> Panel:
    """Estimate the whole Best-of-N curve from a setup's pools of independent images by order statistics.

    The curve is the expected value ``of`` the verifier's best of N images, for N from 1 to ``most``, by default the
    size of the smallest pool. All images of a prompt form one pool, whatever their seed. N images cost N times the mean
    cost of an image.

    Raises:
        BadInput: the images are not independent samples, or lack the metric.
    """
    _, rows = _rows(trials, setup)
    made = np.flatnonzero(rows & trials.image & ~np.isnan(trials.columns["score"]))
    if not made.size or not trials.independent[made].all():
        raise BadInput(f"{setup.label} on {setup.model} is not a pool of independent samples: Best-of-N needs images from pure noise")  # fmt: skip
    if np.isnan(trials.values(of)[made]).any():
        raise BadInput(f"some images by {setup.label} have no {of}: the pool needs the metric of every image")
    prompt = trials.prompt[trials.search[made]]
    made = made[np.argsort(prompt, kind="stable")]
    prompts, counts = np.unique(prompt, return_counts=True)
    # Pools of one size form one matrix. There are few sizes, because pools differ by failed images only.
    chosen = sizes(int(min(counts.min(), most or counts.min())))
    y, begins = np.empty((len(prompts), chosen.size)), np.cumsum(counts) - counts
    for size in np.unique(counts):
        where = np.flatnonzero(counts == size)
        block = made[begins[where][:, None] + np.arange(size)]
        y[where] = best_of_curve(trials.columns["score"][block], trials.values(of)[block], chosen)
    price = float(trials.columns[over][rows].sum() / made.size) if over != "images" else 1.0
    x, total = price * chosen.astype(np.float64), price * counts.astype(np.float64)
    return Panel(x, y, prompts, total, over, of, trials.share(of))


def _by_prompt(prompt: Ints, x: Doubles, y: Doubles, total: Doubles, over: str, of: str) -> Panel:
    """Average the searches of each prompt."""
    order = np.argsort(prompt, kind="stable")
    prompts, first, counts = np.unique(prompt[order], return_index=True, return_counts=True)
    means = np.add.reduceat(y[order], first, axis=0) / counts[:, None]
    return Panel(
        x, means, prompts, np.asarray(np.add.reduceat(total[order], first) / counts, dtype=np.float64), over, of
    )
