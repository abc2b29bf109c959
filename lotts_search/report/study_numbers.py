"""The numbers of a study's report: one list for each table, figure and CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lotts_search.curves import Arm, Curve, Interval, Results, Saturation, SpeedUp, WinRate
from lotts_search.errors import BadInput

COSTS = ("images", "nfe", "device_s")
"""The costs by which speed-ups are told."""


@dataclass(frozen=True)
class Line:
    """One arm: mean values of what it handed out, mean costs of a search, how many searches and prompts."""

    arm: Arm
    values: dict[str, Interval]
    costs: dict[str, float]
    searches: int
    prompts: int


@dataclass(frozen=True)
class Trace:
    """The curve of one label on one model: best so far or Best-of-N within searches, or ``points``, one a budget."""

    model: str
    label: str
    over: str
    of: str
    curve: Curve
    points: bool


@dataclass(frozen=True)
class Against:
    """One arm against the baseline, by the main value."""

    arm: Arm
    base: Arm
    difference: Interval
    wins: WinRate
    faster: dict[str, SpeedUp]


@dataclass(frozen=True)
class Numbers:
    """All numbers of a report.

    Attributes:
        main: the value that it judges by; ``values`` are all values, the main one first.
        lines, traces, against: the tables.
        fits: saturation fits by model and label, over images or NFE.
        notes: what could not be computed, and why.
    """

    main: str
    values: list[str]
    lines: list[Line]
    traces: list[Trace]
    against: list[Against]
    fits: dict[tuple[str, str], Saturation]
    notes: list[str]


def numbers(results: Results, main: str | None = None, baseline: str | None = None) -> Numbers:
    """Compute everything.

    Args:
        results: of a study.
        main: the metric to judge by; None = the study's first.
        baseline: label of the strategy to compare with; None = the first that is a pool of independent samples, else
            the first.

    Raises:
        BadInput: no such metric or label.
    """
    main = main or results.main
    results.trials.values(main)
    if baseline is not None:
        results.find_label(baseline)
    values = [main, *(v for v in (*results.metrics, "score") if v != main)]
    notes: list[str] = []
    lines = [line for arm in _ordered(results) if (line := _line(results, arm, values, notes)) is not None]
    usable = {line.arm for line in lines}
    traces = [t for model, label in _labels(results) for t in _traces(results, model, label, values, usable, notes)]
    against: list[Against] = []
    fits: dict[tuple[str, str], Saturation] = {}
    for model in dict.fromkeys(arm.model for arm in results.arms):
        arms = [line.arm for line in lines if line.arm.model == model]
        base = base_of(results, arms, baseline)
        against += [_against(results, arm, base, main) for arm in arms if base is not None and arm.label != base.label]
    for model, label in _labels(results):
        arm = _largest(results, model, label, usable)
        if arm is not None and (fit := _fit(results, arm, main)) is not None:
            fits[model, label] = fit
    return Numbers(main, values, lines, traces, against, fits, list(dict.fromkeys(notes)))


def base_of(results: Results, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """The arm that the others are compared with: of the largest budget."""
    labels = list(dict.fromkeys(arm.label for arm in arms))
    pools = [arm.label for arm in arms if results.pooled(arm)]
    label = baseline if baseline in labels else next(iter([*pools, *labels]), None)
    if label is None or len(labels) < 2:
        return None
    found = [arm for arm in arms if arm.label == label]
    return max(found, key=lambda arm: results.spent(arm, "nfe"))


def _ordered(results: Results) -> list[Arm]:
    """The arms by model and label, in the order of the study, and by budget."""
    places = {pair: i for i, pair in enumerate(_labels(results))}
    return sorted(results.arms, key=lambda a: (places[a.model, a.label], a.nfe or 0.0, a.images or 0))


def _labels(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((arm.model, arm.label) for arm in results.arms))


def _line(results: Results, arm: Arm, values: Sequence[str], notes: list[str]) -> Line | None:
    found: dict[str, Interval] = {}
    for of in values:
        try:
            panel = results.final(arm, of)
        except BadInput as error:
            notes.append(str(error))
            continue
        found[of] = results.value(arm, of)
    if values[0] not in found:
        return None
    whole = next((a for a in results.trials.arms if (a.model, a.label) == (arm.model, arm.label)), arm)
    place = results.trials.arms.index(arm if arm in results.trials.arms else whole)
    searches = int((results.trials.arm == place).sum())
    costs = {over: results.spent(arm, over) for over in ("images", "nfe", "rows", "flops", "device_s")}
    return Line(arm, found, costs, searches, len(panel.prompts))


def _traces(
    results: Results, model: str, label: str, values: Sequence[str], usable: set[Arm], notes: list[str]
) -> list[Trace]:
    arms = [a for a in results.trials.arms if (a.model, a.label) == (model, label) and a in usable]
    found = []
    for over in ("images", "nfe", "rows", "flops", "device_s"):
        for of in values:
            try:
                if len(arms) > 1:
                    curve = results.budgets(arms, of, over).curve()
                elif arms:
                    curve = results.panel(arms[0], of, over).curve()
                else:
                    continue
            except BadInput as error:
                notes.append(str(error))
                continue
            found.append(Trace(model, label, over, of, curve, len(arms) > 1))
    return found


def _largest(results: Results, model: str, label: str, usable: set[Arm]) -> Arm | None:
    arms = [a for a in results.trials.arms if (a.model, a.label) == (model, label) and a in usable]
    return max(arms, key=lambda arm: results.spent(arm, "nfe"), default=None)


def _against(results: Results, arm: Arm, base: Arm, main: str) -> Against:
    rival = _match(results, arm, base)
    faster = {over: results.speed_up(base, arm, main, over) for over in COSTS}
    return Against(arm, rival, results.difference(arm, rival, main), results.win_rate(arm, rival, main), faster)


def _match(results: Results, arm: Arm, base: Arm) -> Arm:
    """The baseline's budget that is nearest to what the arm spent, of its budgets that pay as much; else the largest."""
    rivals = [a for a in results.arms if (a.model, a.label) == (base.model, base.label)]
    spent = results.spent(arm, "images")
    paid = [a for a in rivals if results.spent(a, "images") >= spent - 1e-9]
    return min(paid or [base], key=lambda a: results.spent(a, "images"))


def _fit(results: Results, arm: Arm, main: str) -> Saturation | None:
    try:
        return results.saturation(arm, main, "nfe")
    except (BadInput, ValueError):
        return None
