"""The work of ``lotts-search report``."""

from __future__ import annotations

import importlib.util
import json as json_module
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lotts_search.curves import Results, Setup
from lotts_search.curves.results import load_whole
from lotts_search.errors import BadInput, LottsError
from lotts_search.report.study_files import write_figures, write_tables
from lotts_search.report.study_gallery import Again, Case, Gallery
from lotts_search.report.study_numbers import Numbers, base_of, numbers
from lotts_search.report.study_page import Shown, write_study_page

SIDES = 4
"""Strategies that the gallery shows side by side."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command."""

    runs: list[Path]
    out: Path | None
    metric: str | None
    baseline: str | None
    prompts: int
    trees: int | None
    figures: bool | None
    device: str


def run(wanted: Wanted, json: bool) -> None:
    """Write the report and say where.

    Raises:
        BadInput: a run that is none, or an unknown metric or label.
    """
    console = Console(stderr=True, highlight=False)
    results, table = load_whole(*wanted.runs)
    found = numbers(results, wanted.metric, wanted.baseline)
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
        sides[model] = _sides(results, found, model, wanted.baseline)
        values = list(dict.fromkeys([found.main, "score"]))
        cases[model] = gallery.cases(sides[model], found.main, values, wanted.prompts)

    def write(trees: Sequence[Shown] = ()) -> Path:
        return write_study_page(
            out / "index.html", results, found, table, cases=cases, trees=trees, command=_command(wanted),
            files=[str(path.relative_to(out)) for path in files],
        )  # fmt: skip

    page = write()  # a page without trees stays where making them is interrupted
    trees: list[Shown] = []
    for model, some in cases.items():
        trees += _trees(gallery, results, some, sides[model][:2], wanted, console)
    if trees:
        page = write(trees)
    if json:
        print(json_module.dumps({"report": str(page), "files": [str(f) for f in files], "results": _plain(found)}))
        return
    for against in found.against:
        console.print(f"{against.setup.label} on {against.setup.model}, {against.setup.budget}, against {against.base.label}: "
                      f"{found.main} {against.difference.signed}, {against.faster['nfe']} in NFE")  # fmt: skip
    console.print(f"report: {page}")


def _sides(results: Results, found: Numbers, model: str, baseline: str | None) -> list[Setup]:
    """What the gallery shows: the strongest strategy, the baseline at as many images, then the others."""
    lines = [line for line in found.lines if line.setup.model == model]
    setups = [line.setup for line in lines]
    base = base_of(results, setups, baseline)
    others = [line for line in lines if base is None or line.setup.label != base.label]
    others.sort(key=lambda line: (results.strategy(line.setup) != "lotts", -line.values[found.main].mean))
    chosen: list[Setup] = []
    for line in others:
        if line.setup.label not in [a.label for a in chosen]:
            chosen.append(line.setup)
    rival = next((a.base for a in found.against if chosen and a.setup == chosen[0]), base)
    return ([*chosen[:1], rival, *chosen[1:]] if rival is not None else chosen)[:SIDES]


def _trees(
    gallery: Gallery, results: Results, cases: Sequence[Case], setups: Sequence[Setup], wanted: Wanted, console: Console
) -> list[Shown]:
    """The searches of the first and last cases, made again."""
    from lotts_search import registry

    about = results.about
    model = next((m["model"] for m in about.get("models", ()) if m["label"] == setups[0].model), None)
    count = wanted.trees
    if count is None:
        count = 2 if model in registry.models() else 0
    if not count or model is None or not cases:
        return []
    picked = list({c.prompt: c for c in (*cases[: (count + 1) // 2], *cases[len(cases) - count // 2 :])}.values())
    shown: list[Shown] = []
    with (
        console.status("making searches again for their trees; --trees 0 leaves them out"),
        Again(about, wanted.device) as again,
    ):
        for case in picked:
            for setup in (setup for setup in setups if not results.pooled(setup)):
                search = gallery.search(setup, case.prompt)
                if search is None:
                    continue
                prompt_id, seed = results.trials.prompts[case.prompt], int(results.trials.seed[search])
                try:
                    result = again.search(setup, case.text, prompt_id, seed)
                except LottsError as error:  # a report without trees is still a report
                    console.print(f"no trees: {error}")
                    return shown
                title = (
                    "Gains most" if case.gap > 0 and case is picked[0] else "Loses most" if case.gap < 0 else "A search"
                )
                shown.append(Shown(title, f"{setup.label} on {setup.model}, {case.gap:+.3f}", result))
    return shown


def _command(wanted: Wanted) -> str:
    parts = ["lotts-search", "report", *map(str, wanted.runs)]
    for name in ("out", "metric", "baseline"):
        if getattr(wanted, name) is not None:
            parts += [f"--{name}", str(getattr(wanted, name))]
    return shlex.join(parts)


def _plain(found: Numbers) -> list[dict[str, object]]:
    return [
        {"model": line.setup.model, "label": line.setup.label, "budget": line.setup.budget,
         **{of: [i.mean, i.low, i.high] for of, i in line.values.items()}, **line.costs}
        for line in found.lines
    ]  # fmt: skip
