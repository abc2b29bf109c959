"""Tuning the settings of a strategy: a study of settings from its space, on tuning prompts, and the best of them.

The settings are the points of a scrambled Halton sequence, which cover a space more evenly than random ones and of which more
can follow; the defaults are always among them. All trials search the same prompts with the same seeds, so that differences
are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lotts_search import registry
from lotts_search.core.space import Space, value_at
from lotts_search.errors import BadInput, unknown
from lotts_search.settings import describe
from lotts_search.study.prompts import prompt_sets

TUNING = "shapes-tune"
"""The only named prompt set for tuning; results are reported on the others."""
DRAWS = 50
"""Points tried per wanted trial, until the trials are all different."""


@dataclass(frozen=True)
class Tried:
    """A trial of tuning.

    Attributes:
        settings: those that were varied; {} = the defaults.
        values: of its searches [prompts].
        difference: to the defaults, paired by prompt, mean and standard error; (0, 0) of the defaults themselves.
    """

    settings: Mapping[str, Any]
    values: Sequence[float]
    difference: tuple[float, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


def space_of(name: str, vary: Mapping[str, Sequence[object]], fixed: Iterable[str] = ()) -> Space:
    """Return the space of a strategy, with the choices of ``vary`` in place of its own and without ``fixed`` settings.

    Raises:
        BadInput: there is nothing to vary, or a setting that the strategy does not have.
    """
    found = registry.resolve_strategy(name)
    settings = [setting.name for setting in describe(found)]
    for key in vary:
        if key not in settings:
            raise unknown(f"setting of strategy {name!r}:", key, settings)
    space = {key: values for key, values in {**found.space, **vary}.items() if key not in set(fixed)}
    if not space:
        raise BadInput(f"{name} has no settings left to tune: vary some of {', '.join(settings) or 'none'}")
    return space


def points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return up to ``count`` different settings: first {}, the defaults; fewer where the space has no more. A larger number
    begins with the smaller one."""
    from scipy.stats import qmc

    found: dict[str, dict[str, Any]] = {"{}": {}}
    halton = qmc.Halton(len(space), scramble=True, seed=seed)
    for _ in range(DRAWS * count):
        if len(found) == count:
            break
        (shares,) = halton.random(1)
        settings = {key: value_at(values, share) for (key, values), share in zip(space.items(), shares, strict=True)}
        found.setdefault(repr(settings), settings)
    return list(found.values())


def study_of(
    name: str,
    trials: Sequence[Mapping[str, Any]],
    fixed: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    verifier: str | None,
    metrics: Sequence[str],
    prompts: str,
    count: int,
    seed: int,
    budget: Mapping[str, float],
) -> dict[str, Any]:
    """Return the study file of a tuning as a dictionary. Trials are labelled by their number; 0 is the defaults.

    Raises:
        BadInput: the prompts are a set to report results on.
    """
    if prompts in prompt_sets() and prompts != TUNING:
        raise BadInput(f"{prompts} is for reporting results: tune on {TUNING}, or on a file of other prompts")
    strategies = [
        {"strategy": name, "label": f"trial {number}", "settings": {**fixed, **settings}}
        for number, settings in enumerate(trials)
    ]
    return {
        "name": f"tune-{name.rpartition(':')[2]}",
        "models": [dict(model)],
        **({"verifier": verifier} if verifier else {}),
        **({"metrics": list(metrics)} if metrics else {}),
        "strategies": strategies,
        "baselines": ["trial 0"],
        "prompts": {"from": prompts, "count": count, "seed": seed},
        "seeds": [seed],
        "budgets": [dict(budget)],
        "images": "none",
    }


def ranked(
    trials: Sequence[Mapping[str, Any]], searches: Iterable[Mapping[str, Any]], metric: str | None
) -> list[Tried]:
    """Return the trials, the best mean first, over the prompts that all of them have finished.

    Args:
        trials: settings by number.
        searches: those of ``study.json``.
        metric: decides by its values, None = the verifier's scores.
    """
    values: dict[str, dict[str, float]] = {}
    for search in searches:
        if search["status"] == "done":
            value = search["score"] if metric is None else search["metrics"].get(metric)
            if value is not None:
                values.setdefault(search["label"], {})[search["prompt_id"]] = value
    if len(values) < len(trials):
        return []
    prompts = sorted(set.intersection(*(set(found) for found in values.values())))
    if not prompts:
        return []
    table = np.array([[values[f"trial {number}"][prompt] for prompt in prompts] for number in range(len(trials))])
    found = []
    for settings, row in zip(trials, table, strict=True):
        difference = row - table[0]
        error = float(difference.std(ddof=1) / np.sqrt(len(prompts))) if len(prompts) > 1 else 0.0
        found.append(Tried(settings, row.tolist(), (float(difference.mean()), error)))
    return sorted(found, key=lambda tried: -tried.mean)
