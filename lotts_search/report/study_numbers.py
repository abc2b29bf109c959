"""The numbers of a study report: one list for each table, figure and CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lotts_search.curves import AXES, Curve, Interval, Results, Saturation, Setup, SpeedUp, Tradeoff, WinRate
from lotts_search.errors import BadInput, unknown
from lotts_search.report.study_tasks import METRIC, TaskLine, task_lines

if TYPE_CHECKING:
    import pyarrow as pa

COSTS = ("images", "nfe", "device_s")
"""The costs that tables show and in which speed-ups are reported, beside the one that is asked for."""


@dataclass(frozen=True)
class Line:
    """One setup: mean values of the returned images, mean costs of a search, numbers of searches and prompts."""

    setup: Setup
    values: dict[str, Interval]
    costs: dict[str, float]
    searches: int
    prompts: int


@dataclass(frozen=True)
class Trace:
    """The curve of one label on one model: best so far or Best-of-N within searches; or ``points``, one per budget."""

    model: str
    label: str
    over: str
    of: str
    curve: Curve
    points: bool


@dataclass(frozen=True)
class Against:
    """One setup compared with a baseline.

    Attributes:
        differences: paired by prompt, by value; the main value is the first.
        wins, faster: share of prompts with the better image, and speed-ups by cost, in the main value.
    """

    setup: Setup
    base: Setup
    differences: dict[str, Interval]
    wins: WinRate
    faster: dict[str, SpeedUp]

    @property
    def difference(self) -> Interval:
        """Return the difference in the main value."""
        return next(iter(self.differences.values()))


@dataclass(frozen=True)
class Held:
    """A held-out value of one label on one model against its guiding score."""

    model: str
    label: str
    curve: Tradeoff


@dataclass(frozen=True)
class Numbers:
    """All numbers of a report.

    Attributes:
        main: the value that decides; ``values``: all values, the main one first.
        cost: the cost that decides; ``costs``: those of the tables.
        prices: name of the prices of FLOPs; "" = those of the models themselves.
        lines, traces, against: the tables.
        held: held-out values against the guiding score, over NFE.
        fits: saturation fits over NFE, by model and label.
        tasks: shares of right images by kind of task, in studies of GenEval's tasks.
        notes: reasons for values that are missing.
    """

    main: str
    values: list[str]
    cost: str
    costs: tuple[str, ...]
    prices: str
    lines: list[Line]
    traces: list[Trace]
    against: list[Against]
    held: list[Held]
    fits: dict[tuple[str, str], Saturation]
    tasks: list[TaskLine]
    notes: list[str]

    @property
    def axes(self) -> Mapping[str, str]:
        """Return the label of each cost."""
        return AXES | ({"flops": f"{AXES['flops']}, at the prices of {self.prices}"} if self.prices else {})


def numbers(
    results: Results,
    main: str | None = None,
    baselines: Sequence[str] = (),
    cost: str | None = None,
    prices: str = "",
) -> Numbers:
    """Compute all numbers of a study's report.

    Args:
        results: of a study.
        main: the metric that decides; None = the study's first.
        baselines: labels of the strategies to compare the others with; empty = those of the study, else the first that
            is a pool of independent samples, else the first.
        cost: the cost that decides; None = FLOPs where all budgets limit them, else NFE.
        prices: name of the prices of FLOPs; "" = those of the study.

    Raises:
        BadInput: no such metric, label or cost.
    """
    cost = cost or ("flops" if all(setup.flops is not None for setup in results.setups) else "nfe")
    prices = prices or " and ".join(dict.fromkeys(m["as"] for m in results.about.get("models", ()) if m.get("as")))
    if cost not in AXES:
        raise unknown("cost", cost, AXES)
    costs = COSTS if cost in COSTS else (*COSTS, cost)
    main = main or results.main
    results.trials.values(main)
    for label in baselines:
        results.find_label(label)
    values = [main, *(v for v in (*results.metrics, "score") if v != main)]
    notes: list[str] = []
    lines = [line for setup in _ordered(results) if (line := _line(results, setup, values, notes)) is not None]
    usable = {line.setup for line in lines}
    traces = [t for model, label in _labels(results) for t in _traces(results, model, label, values, usable, notes)]
    against: list[Against] = []
    fits: dict[tuple[str, str], Saturation] = {}
    for model in dict.fromkeys(setup.model for setup in results.setups):
        setups = [line.setup for line in lines if line.setup.model == model]
        for base in bases_of(results, setups, baselines):
            against += [_against(results, s, base, values, costs) for s in setups if s.label != base.label]
    for model, label in _labels(results):
        setup = _largest(results, model, label, usable)
        if setup is not None and (fit := _fit(results, setup, main)) is not None:
            fits[model, label] = fit
    held = [h for model, label in _labels(results) for h in _held(results, model, label, results.metrics, usable)]
    tasks = task_lines(results, [line.setup for line in lines if METRIC in line.values])
    return Numbers(
        main, values, cost, costs, prices, lines, traces, against, held, fits, tasks, list(dict.fromkeys(notes))
    )


def whole_prompts(table: pa.Table, about: Mapping[str, Any]) -> pa.Table:
    """Return the rows of prompts that all strategies of a model have finished."""
    import pyarrow as pa

    names = ("model", "prompt_id", "search_seed")
    lacking = {tuple(s[name] for name in names) for s in about.get("searches", ()) if s["status"] != "done"}
    rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    return table.filter(pa.array([row not in lacking for row in rows], pa.bool_()))


def bases_of(results: Results, setups: Sequence[Setup], baselines: Sequence[str]) -> list[Setup]:
    """Return the setups that the others are compared with: the largest budget of each baseline."""
    labels = list(dict.fromkeys(setup.label for setup in setups))
    if len(labels) < 2:
        return []
    asked = [label for label in baselines or results.about.get("baselines", ()) if label in labels]
    pools = [setup.label for setup in setups if results.pooled(setup)]
    return [
        max((s for s in setups if s.label == label), key=lambda s: results.spent(s, "nfe"))
        for label in asked or [*pools, *labels][:1]
    ]


def limits(setup: Setup) -> tuple[float, int, float]:
    """Return the limits of a setup, to sort by; 0 = none."""
    return setup.nfe or 0.0, setup.images or 0, setup.flops or 0.0


def _ordered(results: Results) -> list[Setup]:
    """Return the setups by model and label in the order of the study, then by budget."""
    places = {pair: i for i, pair in enumerate(_labels(results))}
    return sorted(results.setups, key=lambda a: (places[a.model, a.label], *limits(a)))


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
    costs = {over: results.spent(setup, over) for over in AXES}
    return Line(setup, found, costs, searches, len(panel.prompts))


def _of_label(results: Results, model: str, label: str, usable: set[Setup]) -> list[Setup]:
    """Return the setups of a label whose searches are in the table; a nested label has one."""
    return [a for a in results.trials.setups if (a.model, a.label) == (model, label) and a in usable]


def _traces(
    results: Results, model: str, label: str, values: Sequence[str], usable: set[Setup], notes: list[str]
) -> list[Trace]:
    setups = _of_label(results, model, label, usable)
    found = []
    for over in AXES:
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


def _held(results: Results, model: str, label: str, metrics: Sequence[str], usable: set[Setup]) -> list[Held]:
    setups = _of_label(results, model, label, usable)
    found = []
    for of in metrics if setups else ():
        with suppress(BadInput):  # a note says what is missing
            found.append(Held(model, label, results.tradeoff(setups, of)))
    return found


def _largest(results: Results, model: str, label: str, usable: set[Setup]) -> Setup | None:
    setups = _of_label(results, model, label, usable)
    return max(setups, key=lambda setup: results.spent(setup, "nfe"), default=None)


def _against(results: Results, setup: Setup, base: Setup, values: Sequence[str], costs: Sequence[str]) -> Against:
    main, rival = values[0], _match(results, setup, base)
    differences = {main: results.difference(setup, rival, main)}
    for of in values[1:]:
        with suppress(BadInput):  # a note says what is missing
            differences[of] = results.difference(setup, rival, of)
    faster = {over: results.speed_up(base, setup, main, over) for over in costs}
    return Against(setup, rival, differences, results.win_rate(setup, rival, main), faster)


def _match(results: Results, setup: Setup, base: Setup) -> Setup:
    """Return the baseline's setup with the same budget; else the smallest that makes as many images; else the largest."""
    rivals = [a for a in results.setups if (a.model, a.label) == (base.model, base.label)]
    same = [a for a in rivals if limits(a) == limits(setup)]
    spent = results.spent(setup, "images")
    paid = [a for a in rivals if results.spent(a, "images") >= spent - 1e-9]
    return min(same or paid or [base], key=lambda a: results.spent(a, "images"))


def _fit(results: Results, setup: Setup, main: str) -> Saturation | None:
    try:
        return results.saturation(setup, main, "nfe")
    except (BadInput, ValueError):
        return None
