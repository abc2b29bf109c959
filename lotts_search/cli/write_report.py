"""The work of ``lotts-search report``."""

from __future__ import annotations

import importlib.util
import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lotts_search import registry
from lotts_search.cli.console import Console
from lotts_search.cli.progress import Live, SearchProgress, span
from lotts_search.core.budget import Budget
from lotts_search.core.failures import Failures
from lotts_search.core.recipe import option, repeating
from lotts_search.curves import Results, Setup, from_table
from lotts_search.curves.results import load_whole
from lotts_search.errors import BadInput, LottsError
from lotts_search.report.study_files import write_figures, write_tables
from lotts_search.report.study_gallery import Again, Case, Gallery
from lotts_search.report.study_numbers import Numbers, bases_of, numbers, whole_prompts
from lotts_search.report.study_page import HEAD, Shown, write_study_page
from lotts_search.work.prices import published

if TYPE_CHECKING:
    from lotts_search.core.result import SearchResult

SIDES = 4
"""Number of strategies that the gallery shows side by side."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command; ``places`` are the runs as they were given."""

    runs: list[Path]
    out: Path | None = None
    metric: str | None = None
    cost: str | None = None
    prices: str = ""
    baselines: list[str] = field(default_factory=list)
    prompts: int = 6
    trees: int | None = None
    figures: bool | None = None
    device: str = "cpu"
    places: Sequence[str] = ()

    @property
    def command(self) -> str:
        """Return the command line."""
        given: dict[str, object] = {
            "out": self.out, "metric": self.metric, "cost": self.cost, "as": self.prices or None, "prompts": self.prompts,
            "trees": self.trees, "device": self.device,
        }  # fmt: skip
        standard = {"prompts": 6, "device": "cpu"}
        chosen = {name: value for name, value in given.items() if value is not None and value != standard.get(name)}
        words = [word for name, value in chosen.items() for word in option(f"--{name}", value)]
        words += [word for label in self.baselines for word in option("--baseline", label)]
        if self.figures is not None:
            words.append("--figures" if self.figures else "--no-figures")
        return repeating("report", self.places or self.runs, words)


@dataclass(frozen=True)
class Written:
    """A written report: its numbers, the failed trials of its study, its page and its other files."""

    found: Numbers
    failures: Failures
    page: Path
    files: list[Path]


def run(wanted: Wanted, json: bool) -> None:
    """Write the report, and print its main results.

    Raises:
        BadInput: a run that is none, or an unknown metric, label, cost or list of prices.
    """
    console = Console(stderr=True)
    made = write(wanted, console)
    if json:
        files = [str(path) for path in made.files]
        said = {"report": str(made.page), "files": files, "failed_trials": asdict(made.failures)}
        print(json_module.dumps(said | {"results": _plain(made.found)}))
        return
    cost = made.found.cost
    for a in made.found.against:
        console.print(f"{a.setup.label} on {a.setup.model}, {a.setup.budget}, compared with {a.base.label}: "
                      f"{made.found.main} {a.difference.signed}; speed-up in {HEAD[cost]}: {a.faster[cost]}", soft_wrap=True)  # fmt: skip
    if made.failures.count:
        console.print(str(made.failures), soft_wrap=True)
    console.print(f"report: {made.page}", soft_wrap=True)


def write(wanted: Wanted, console: Console, searched: Mapping[str, SearchResult] | None = None) -> Written:
    """Write the report.

    Args:
        searched: results of searches by id, for their trees; others are repeated.

    Raises:
        BadInput: a run that is none, or an unknown metric or label.
    """
    price = published(wanted.prices).flops if wanted.prices else None
    results, table = load_whole(*wanted.runs, price=price)
    if results.about.get("seconds_limit") is not None:
        table = whole_prompts(table, results.about)
        if not len(table):
            raise BadInput("nothing to report: no prompt was finished by all strategies")
        results = Results(from_table(table, results.about, price), results.about)
    found = numbers(results, wanted.metric, wanted.baselines, wanted.cost, wanted.prices)
    if not found.lines:
        raise BadInput(f"nothing to report: {'; '.join(found.notes)}")
    out = wanted.out or (wanted.runs[0] if wanted.runs[0].is_dir() else wanted.runs[0].parent) / "report"
    out.mkdir(parents=True, exist_ok=True)
    files = write_tables(found, out)
    if wanted.figures or (wanted.figures is None and importlib.util.find_spec("matplotlib") is not None):
        files += write_figures(found, out / "figures")
    folders = [path if path.is_dir() else path.parent for path in wanted.runs]
    gallery = Gallery(results, table, folders)
    cases: dict[str, list[Case]] = {}
    sides: dict[str, list[Setup]] = {}
    for model in dict.fromkeys(line.setup.model for line in found.lines):
        sides[model] = _sides(results, found, model, wanted.baselines)
        values = list(dict.fromkeys([found.main, "score"]))
        cases[model] = gallery.cases(sides[model], found.main, values, wanted.prompts)

    def page(trees: Sequence[Shown] = ()) -> Path:
        return write_study_page(
            out / "index.html", results, found, table, cases=cases, trees=trees, command=wanted.command,
            files=[str(path.relative_to(out)) for path in files],
        )  # fmt: skip

    written = page()  # remains if the making of trees is interrupted
    picked = {model: _picked(gallery, some, sides[model][:2], wanted, searched or {}) for model, some in cases.items()}
    trees = _trees(gallery, [one for some in picked.values() for one in some], wanted, out, console, searched or {})
    return Written(found, Failures.of_table(table), page(trees) if trees else written, files)


def _sides(results: Results, found: Numbers, model: str, baselines: Sequence[str]) -> list[Setup]:
    """Return the setups of the gallery: LoTTS or the best strategy, the baseline it is compared with, the others."""
    lines = [line for line in found.lines if line.setup.model == model]
    base = next(iter(bases_of(results, [line.setup for line in lines], baselines)), None)
    others = [line for line in lines if base is None or line.setup.label != base.label]
    others.sort(key=lambda line: (results.strategy(line.setup) != "lotts", -line.values[found.main].mean))
    chosen: list[Setup] = []
    for line in others:
        if line.setup.label not in [a.label for a in chosen]:
            chosen.append(line.setup)
    rival = next((a.base for a in found.against if chosen and a.setup == chosen[0]), base)
    return ([*chosen[:1], rival, *chosen[1:]] if rival is not None else chosen)[:SIDES]


@dataclass(frozen=True)
class Tree:
    """A search to show as a tree: its index, its setup, its case and its place on the page."""

    search: int
    setup: Setup
    case: Case
    title: str


def _picked(
    gallery: Gallery,
    cases: Sequence[Case],
    setups: Sequence[Setup],
    wanted: Wanted,
    searched: Mapping[str, SearchResult],
) -> list[Tree]:
    """Return the searches of the first and last cases."""
    results = gallery.results
    model = next((m["model"] for m in results.about.get("models", ()) if m["label"] == setups[0].model), None)
    count = wanted.trees if wanted.trees is not None else 2 if searched or model in registry.models() else 0
    if not count or model is None:
        return []
    picked = list({c.prompt: c for c in (*cases[: (count + 1) // 2], *cases[len(cases) - count // 2 :])}.values())
    found = []
    for case in picked:
        title = "Largest gain" if case.gap > 0 and case is picked[0] else "A loss" if case.gap < 0 else "A search"
        for setup in (setup for setup in setups if not results.pooled(setup)):
            if (search := gallery.search(setup, case.prompt)) is not None:
                found.append(Tree(search, setup, case, title))
    return found


def _trees(
    gallery: Gallery, picked: Sequence[Tree], wanted: Wanted, out: Path, console: Console,
    searched: Mapping[str, SearchResult],
) -> list[Shown]:  # fmt: skip
    """Return the searches as trees. Those that are not in ``searched`` are repeated, each with a journal in ``out``.

    A later report replays the journals, which takes no time.
    """
    trials = gallery.results.trials
    repeated = [tree for tree in picked if trials.ids[tree.search] not in searched]
    new = [tree for tree in repeated if not journal_of(out, trials.ids[tree.search]).exists()]
    if new:
        ends = [trials.first[tree.search + 1] - 1 for tree in new]
        nfe, device_s = (float(trials.cost(over)[ends].sum()) for over in ("nfe", "device_s"))
        kept = f", {len(repeated) - len(new)} more are in {out / 'trees'}" if len(new) < len(repeated) else ""
        console.print(
            f"search trees: repeating {len(new)} search{'es' * (len(new) > 1)} of {nfe:,.0f} NFE in all, which took the "
            f"study {span(device_s)} of device time{kept}; --trees 0 omits them, Ctrl-C stops",
            soft_wrap=True,
        )
    shown: list[Shown] = []
    with (
        Live("preparing search trees", quiet=not repeated) as live,
        Again(gallery.results.about, wanted.device) as again,
    ):
        for number, tree in enumerate(picked):
            search_id = trials.ids[tree.search]
            result = searched.get(search_id)
            if result is None:
                what = f"tree {number + 1} of {len(picked)}: {tree.setup.label} on {tree.setup.model}"
                live.update(0.0, "", what=what)
                budget = Budget(nfe=tree.setup.nfe, images=tree.setup.images, flops=tree.setup.flops)
                try:
                    result = again.search(
                        tree.setup, tree.case.text, trials.prompts[tree.case.prompt], int(trials.seed[tree.search]),
                        journal=journal_of(out, search_id), on_event=SearchProgress(live, budget),
                    )  # fmt: skip
                except LottsError as error:  # a report without trees is still a report
                    console.print(f"no trees: {error}", soft_wrap=True)
                    return shown
                if result.status == "interrupted":
                    console.print("stopped; the same command resumes the trees")
                    return shown
                _compare(result, gallery, tree, live.console)
            note = f"{tree.setup.label} on {tree.setup.model}, {tree.case.gap:+.3f}"
            shown.append(Shown(tree.title, tree.setup.label, note, result))
    return shown


def _compare(result: SearchResult, gallery: Gallery, tree: Tree, console: Console) -> None:
    """Say so if a repeated search did not end as the study's."""
    row = gallery.winner(tree.setup, tree.case.prompt)
    score = np.nan if row is None else float(gallery.results.trials.columns["score"][row])
    again = np.nan if result.score is None else result.score
    if not np.isclose(score, again, rtol=0, atol=1e-3, equal_nan=True):
        console.print(
            f"the tree of {tree.setup.label} for {tree.case.text!r} is not that of the study, whose search ended with the score "
            f"{score:.4f}, this one with {again:.4f}: another machine, device or version computes other last digits",
            soft_wrap=True,
        )


def journal_of(out: Path, search_id: str) -> Path:
    """Return the journal of a search that a report has repeated."""
    return out / "trees" / f"{search_id}.journal"


def _plain(found: Numbers) -> list[dict[str, object]]:
    return [
        {"model": line.setup.model, "label": line.setup.label, "budget": str(line.setup.budget),
         **{of: [i.mean, i.low, i.high] for of, i in line.values.items()}, **line.costs}
        for line in found.lines
    ]  # fmt: skip
