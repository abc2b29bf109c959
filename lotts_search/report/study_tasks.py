"""A study's values by kind of task, where its prompts are tasks of GenEval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lotts_search.curves import Interval, Results, Setup
from lotts_search.errors import BadInput
from lotts_search.geneval.tasks import TAGS, Task

METRIC = "geneval"


@dataclass(frozen=True)
class TaskLine:
    """One setup: the share of right images by kind of task, of kinds that the study has.

    Attributes:
        setup: model, strategy and budget.
        shares: by kind, in the order of :data:`~lotts_search.geneval.tasks.TAGS`.
        prompts: number of prompts by kind.
    """

    setup: Setup
    shares: dict[str, Interval]
    prompts: dict[str, int]

    @property
    def mean(self) -> float:
        """The mean over the kinds, each of equal weight: GenEval's overall score, where all six kinds are there."""
        return float(np.mean([share.mean for share in self.shares.values()]))


def task_lines(results: Results, setups: Iterable[Setup]) -> list[TaskLine]:
    """Return the lines of setups; none where the study lacks the metric, or has a prompt that is no task."""
    if METRIC not in results.metrics:
        return []
    try:
        tags = np.array([Task.of(text).tag for text in results.trials.texts])
    except BadInput:
        return []
    lines = []
    for setup in setups:
        panel = results.final(setup, METRIC)
        own = tags[panel.prompts]
        shares = {tag: panel.among(panel.prompts[own == tag]).interval() for tag in TAGS if tag in own}
        lines.append(TaskLine(setup, shares, {tag: int((own == tag).sum()) for tag in shares}))
    return lines
