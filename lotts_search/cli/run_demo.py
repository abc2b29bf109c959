"""The work of ``lotts-search demo``: a study with a time limit, and its report."""

from __future__ import annotations

import json as json_module
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import yaml
from rich.table import Table

from lotts_search import registry
from lotts_search import study as package
from lotts_search.cli.console import Console
from lotts_search.cli.pools import Compute
from lotts_search.cli.run_study import carry_out
from lotts_search.cli.write_report import Wanted, Written, write
from lotts_search.core.result import SearchResult
from lotts_search.errors import BadInput, Failure
from lotts_search.study.conduct import Conducted
from lotts_search.study.read import read_study
from lotts_search.study.spec import Study

FILE = Path(package.__file__).with_name("demo.yaml")


def run(changes: Mapping[str, object], compute: Compute, out: Path, command: str, json: bool) -> None:
    """Run the demo's study and write its page.

    Exits with 130 if it was interrupted; the page then has the prompts finished until then.

    Args:
        changes: keys of the study file with other values.
        command: the command that repeats it.

    Raises:
        BadInput: an unknown strategy or model, or a bad budget.
        Failure: no prompt of any model was finished by both strategies.
    """
    console = Console(stderr=json)
    searched: dict[str, SearchResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE.name
        file.write_text(yaml.safe_dump(_checked(yaml.safe_load(FILE.read_text()) | dict(changes)), sort_keys=False))
        try:
            study = read_study(file)
            conducted = carry_out(
                study, compute, out, command, console, json,
                finished=lambda task, result: searched.__setitem__(task.search_id, result),
            )  # fmt: skip
        except BadInput as error:  # the lines of a temporary file say nothing to its user
            raise BadInput(re.sub(rf"^{re.escape(str(file))}(, line \d+)?: ", "", str(error))) from error
    _check_finished(study, conducted)
    written = write(Wanted([out], out, prompts=len(study.prompts), figures=False), console, searched)
    if json:
        print(json_module.dumps({"models": _summary(written), "page": str(written.page)}, ensure_ascii=False))
    else:
        _print(written, console)
    if conducted.outcome.status == "interrupted":
        sys.exit(130)


def _checked(given: dict[str, object]) -> dict[str, object]:
    """Check names, whose errors would otherwise name a line of a temporary file."""
    strategies, models = given["strategies"], given["models"]
    assert isinstance(strategies, list) and isinstance(models, list)
    for name in strategies:
        registry.make_strategy(name, {})
    for model in models:
        registry.check_model(model)
    if strategies[0] == strategies[1]:
        raise BadInput("a strategy is not compared with itself")
    if len(set(models)) < len(models):
        raise BadInput(f"a model is given twice: {', '.join(models)}")
    return given


def _check_finished(study: Study, conducted: Conducted) -> None:
    outcome = conducted.outcome
    if outcome.status == "failed":
        raise Failure(outcome.error)
    states: dict[tuple[str, str], set[str]] = defaultdict(set)
    for search in conducted.searches:
        states[search["model"], search["prompt_id"]].add(search["status"])
    if {"done"} in states.values():
        return
    if outcome.errors:
        raise Failure(next(iter(outcome.errors.values())))
    if outcome.status == "interrupted":
        print("stopped before a prompt was finished; the same command resumes", file=sys.stderr)
        sys.exit(130)
    raise Failure(f"no prompt was finished in {study.seconds:g} s: give more --seconds, or a smaller --nfe")


def _summary(written: Written) -> dict[str, dict[str, object]]:
    found = written.found
    models: dict[str, dict[str, object]] = {}
    for a in found.against:
        lines = [line for line in found.lines if line.setup.model == a.setup.model]
        models[a.setup.model] = {
            "prompts": lines[0].prompts,
            "nfe": a.setup.nfe,
            "strategies": {
                line.setup.label: {_key(of): value.mean for of, value in line.values.items()}
                | {cost: line.costs[cost] for cost in ("nfe", "images")}
                for line in lines
            },
            "difference": {_key(of): vars(value) for of, value in a.differences.items()},
        }
    return models


def _key(value: str) -> str:
    return "reward" if value == "score" else value


def _print(written: Written, console: Console) -> None:
    found = written.found
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(("model", "strategy", "prompts", *map(_key, found.values), "NFE", "images")):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line in found.lines:
        values = [f"{line.values[of].mean:.3f}" for of in found.values]
        costs = f"{line.costs['nfe']:.0f}", f"{line.costs['images']:.1f}"
        table.add_row(line.setup.model, line.setup.label, str(line.prompts), *values, *costs)
    console.print(table)
    for a in found.against:
        names = f"{a.setup.model}: {a.setup.label} − {a.base.label}, {found.main}"
        console.print(f"{names}, paired, 95 %: {a.difference.signed}")
    if written.failures.count:
        console.print(str(written.failures))
    console.print(f"look at {written.page}", style="bold", soft_wrap=True)
