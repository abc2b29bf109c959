"""The numbers of a study's report: one list for each table, figure and CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lotts_search.curves import Curve, Interval, Results, Saturation, Setup, SpeedUp, WinRate
from lotts_search.errors import BadInput

COSTS = ("images", "nfe", "device_s")
"""The costs by which speed-ups are told."""


@dataclass(frozen=True)
class Line:
    """One setup: mean values of what it handed out, mean costs of a search, how many searches and prompts."""

    setup: Setup
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
    """One setup against the baseline, by the main value."""

    setup: Setup
    base: Setup
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
    lines = [line for setup in _ordered(results) if (line := _line(results, setup, values, notes)) is not None]
    usable = {line.setup for line in lines}
    traces = [t for model, label in _labels(results) for t in _traces(results, model, label, values, usable, notes)]
    against: list[Against] = []
    fits: dict[tuple[str, str], Saturation] = {}
    for model in dict.fromkeys(setup.model for setup in results.setups):
        setups = [line.setup for line in lines if line.setup.model == model]
        base = base_of(results, setups, baseline)
        against += [
            _against(results, setup, base, main) for setup in setups if base is not None and setup.label != base.label
        ]
    for model, label in _labels(results):
        setup = _largest(results, model, label, usable)
        if setup is not None and (fit := _fit(results, setup, main)) is not None:
            fits[model, label] = fit
    return Numbers(main, values, lines, traces, against, fits, list(dict.fromkeys(notes)))


def base_of(results: Results, setups: Sequence[Setup], baseline: str | None) -> Setup | None:
    """The setup that the others are compared with: of the largest budget."""
    labels = list(dict.fromkeys(setup.label for setup in setups))
    pools = [setup.label for setup in setups if results.pooled(setup)]
    label = baseline if baseline in labels else next(iter([*pools, *labels]), None)
    if label is None or len(labels) < 2:
        return None
    found = [setup for setup in setups if setup.label == label]
    return max(found, key=lambda setup: results.spent(setup, "nfe"))


def _ordered(results: Results) -> list[Setup]:
    """The setups by model and label, in the order of the study, and by budget."""
    places = {pair: i for i, pair in enumerate(_labels(results))}
    return sorted(results.setups, key=lambda a: (places[a.model, a.label], a.nfe or 0.0, a.images or 0))


def _labels(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((setup.model, setup.label) for setup in results.setups))


def _line(results: Results, setup: Setup, values: Sequence[str], notes: list[str]) -> Line | None:
    found: dict[str, Interval] = {}
    for of in values:
        try:
            panel = results.final(setup, of)
        except BadInput as error:
            notes.append(str(error))
            continue
        found[of] = results.value(setup, of)
    if values[0] not in found:
        return None
    whole = next((a for a in results.trials.setups if (a.model, a.label) == (setup.model, setup.label)), setup)
    place = results.trials.setups.index(setup if setup in results.trials.setups else whole)
    searches = int((results.trials.setup == place).sum())
    costs = {over: results.spent(setup, over) for over in ("images", "nfe", "rows", "flops", "device_s")}
    return Line(setup, found, costs, searches, len(panel.prompts))


def _traces(
    results: Results, model: str, label: str, values: Sequence[str], usable: set[Setup], notes: list[str]
) -> list[Trace]:
    setups = [a for a in results.trials.setups if (a.model, a.label) == (model, label) and a in usable]
    found = []
    for over in ("images", "nfe", "rows", "flops", "device_s"):
        for of in values:
            try:
                if len(setups) > 1:
                    curve = results.budgets(setups, of, over).curve()
                elif setups:
                    curve = results.panel(setups[0], of, over).curve()
                else:
                    continue
            except BadInput as error:
                notes.append(str(error))
                continue
            found.append(Trace(model, label, over, of, curve, len(setups) > 1))
    return found


def _largest(results: Results, model: str, label: str, usable: set[Setup]) -> Setup | None:
    setups = [a for a in results.trials.setups if (a.model, a.label) == (model, label) and a in usable]
    return max(setups, key=lambda setup: results.spent(setup, "nfe"), default=None)


def _against(results: Results, setup: Setup, base: Setup, main: str) -> Against:
    rival = _match(results, setup, base)
    faster = {over: results.speed_up(base, setup, main, over) for over in COSTS}
    return Against(setup, rival, results.difference(setup, rival, main), results.win_rate(setup, rival, main), faster)


def _match(results: Results, setup: Setup, base: Setup) -> Setup:
    """The baseline's budget that is nearest to what the setup spent, of its budgets that pay as much; else the largest."""
    rivals = [a for a in results.setups if (a.model, a.label) == (base.model, base.label)]
    spent = results.spent(setup, "images")
    paid = [a for a in rivals if results.spent(a, "images") >= spent - 1e-9]
    return min(paid or [base], key=lambda a: results.spent(a, "images"))


def _fit(results: Results, setup: Setup, main: str) -> Saturation | None:
    try:
        return results.saturation(setup, main, "nfe")
    except (BadInput, ValueError):
        return None
