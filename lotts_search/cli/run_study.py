"""The work of ``lotts-search study``: the plan, the progress and the outcome of a study."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lotts_search import registry
from lotts_search.cli.console import Console
from lotts_search.cli.pools import Compute
from lotts_search.cli.progress import Live, span
from lotts_search.cli.used import used
from lotts_search.core.budget import CURRENCIES, Budget
from lotts_search.core.costs import Costs
from lotts_search.core.failures import Failures
from lotts_search.core.recipe import option, repeating
from lotts_search.core.result import SearchResult
from lotts_search.core.run import check
from lotts_search.errors import BadInput, Failure
from lotts_search.report.page import large
from lotts_search.shapes.world.vocabulary import report_unknown_words
from lotts_search.study.conduct import Conducted, conduct
from lotts_search.study.drivers import Command, gather, given, shares
from lotts_search.study.folder import RunFolder
from lotts_search.study.model_files import folder_of
from lotts_search.study.read import read_study
from lotts_search.study.remote import fetched, is_remote, mirrored
from lotts_search.study.runner import Progress
from lotts_search.study.searches import Task, estimate, tasks_of, unchecked
from lotts_search.study.spec import Limit, ModelEntry, Study
from lotts_search.study.state import Standing, standing
from lotts_search.study.watch import Snapshot
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Fresh, Sampling, Segment

PROBE_STEPS = 4
SHOWN = 6
"""Labels whose mean scores fit into the progress line."""
WIDTH = 1000
"""Columns of the tables' lines: a narrow terminal wraps them, and no label is cut."""


def run(file: Path, compute: Compute, out: str | None, dry_run: bool, json: bool, drivers: int = 1) -> None:
    """Run a study, or only print what there is to do.

    Args:
        out: the run folder, a path or a URL.
        drivers: processes that share the searches.

    Exits with 130 if it was interrupted.

    Raises:
        BadInput: something in the file is wrong.
        Failure: the study could not continue, or searches failed; finished work is kept.
    """
    study = read_study(file)
    place = out or f"runs/{study.name}"
    console = Console(stderr=json, soft_wrap=True, width=WIDTH)
    if dry_run:
        with fetched(place) as path:
            _look(
                study,
                compute.beside(study.place, [_options(model) for model in study.models]),
                path,
                place,
                console,
                json,
            )
        return
    line = _line(file, out, compute, drivers)
    with mirrored(place) as path:
        _report(carry_out(study, compute, path, line, console, json, drivers=drivers), place, console, json)


def _look(study: Study, compute: Compute, path: Path, place: str, console: Console, json: bool) -> None:
    """Print what there is to do in the folder ``path``."""
    tasks = tasks_of(study)
    stand = Standing(new=tasks)
    if path.exists():
        if any(path.iterdir()) or not is_remote(place):
            folder = RunFolder(path)
            stand = standing(folder, tasks, study.metrics)
            folder.close()
    elif not os.access(next(parent for parent in path.resolve().parents if parent.exists()), os.W_OK | os.X_OK):
        raise BadInput(f"--out {path}: cannot write there")
    _dry(study, tasks, stand, compute, place, console, json)


def drive(file: Path, compute: Compute, folder: Path) -> None:
    """Run the searches of a study that one of several drivers was given, in its folder."""
    study = read_study(file)
    console = Console(stderr=True, soft_wrap=True, width=WIDTH)
    _report(carry_out(study, compute, folder, "", console, True, driver=True), str(folder), console, True)


def carry_out(
    study: Study, compute: Compute, path: Path, command: str, console: Console, json: bool,
    finished: Callable[[Task, SearchResult], object] = lambda task, result: None, *, drivers: int = 1, driver: bool = False,
) -> Conducted:  # fmt: skip
    """Run the open searches of a study into the folder ``path``, with a progress bar.

    Args:
        command: the command that resumes it.
        finished: called with each finished search.
        drivers: processes that share the searches.
        driver: this process is one of them, and ``path`` its folder.

    Raises:
        BadInput: several drivers without Ray, a time limit with several, or more of them than generators.
    """
    several = _drivers(study, compute, drivers) if drivers != 1 else None
    compute = compute.beside(study.place, [_options(model) for model in study.models])
    tasks = tasks_of(study)
    folder = RunFolder(path)
    try:
        failed: set[str] = set()
        if driver:
            tasks, failed = given(folder, tasks)
        else:
            gather(folder, tasks, study.name)
        stand = standing(folder, tasks, study.metrics, failed)
        _note(study, stand, console, json)
        with Live(f"starting {compute}" if stand.todo else "nothing to run", quiet=json) as live:

            @contextmanager
            def opened(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
                live.update(0.0, "", what=f"loading {model.label}")
                with compute.pool(model.model, *verifiers, rewriters=study.rewriters, **_options(model)) as pool:
                    sampling = Sampling.of(pool.info, "", **model.sampling)
                    budgets = ", ".join(
                        dict.fromkeys(str(limit) for entry in study.strategies for limit in entry.limits)
                    )
                    line = used(pool.info, sampling, model.verifier, budgets, model.priced_as)
                    live.console.print(line, soft_wrap=True)
                    live.update(0.0, "", what=f"{study.name} on {model.label}")
                    yield pool

            return conduct(
                study, folder, tasks, stand, opened, command=command,
                generators=1 if compute.local else compute.actors, batch=compute.rows.batch, device=compute.device,
                tick=lambda progress: live.update(progress.share, _status(progress)), finished=finished, drivers=several,
                watched=_metrics(study, compute, path.name if driver else "0"),
            )  # fmt: skip
    finally:
        folder.close()


def _metrics(study: Study, compute: Compute, driver: str) -> Callable[[Snapshot], object]:
    """Return what shows snapshots among Ray's metrics; without Ray, what shows nothing."""
    if compute.local:
        return lambda now: None
    from lotts_search.actors.metrics import StudyMetrics

    return StudyMetrics({"study": study.name, "driver": driver}).update


def _options(model: ModelEntry) -> dict[str, Any]:
    """Return a model's options for ``from_pretrained``: YAML has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in model.options.items()}


def _line(file: Path, out: str | None, compute: Compute, drivers: int) -> str:
    """Return the command that resumes the study."""
    words = [*(option("--out", out) if out is not None else []), *compute.words()]
    return repeating("study", [file], [*words, *(option("--drivers", drivers) if drivers > 1 else [])])


def _drivers(study: Study, compute: Compute, drivers: int) -> tuple[list[int], Command]:
    """Return the generators of each driver, and what starts one."""
    if compute.local:
        raise BadInput("several drivers need Ray: leave out --local")
    if study.seconds is not None:
        raise BadInput(f"{study.path}: a study with a time limit ('seconds') has one driver, not --drivers {drivers}")

    def command(folder: Path, generators: int) -> list[str]:
        words = replace(compute, generators=generators).words()
        return [sys.executable, "-m", "lotts_search", "study", str(study.path), "--driver", str(folder), *words]

    return shares(compute.actors, drivers), command


def _status(progress: Progress) -> str:
    """Return the text of the progress line."""
    parts = [f"{progress.finished} of {progress.total} searches"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.rate:
        parts.append(f"{progress.rate:.0f} NFE/s")
        if progress.left_s is not None:
            parts.append(f"{span(progress.left_s)} left")
    means = {label: float(np.mean(scores)) for label, scores in progress.scores.items()}
    if means:
        best = sorted(means, key=lambda label: -means[label])[:SHOWN]
        parts.append("best so far " + ", ".join(f"{label} {means[label]:.3f}" for label in best))
    return "  ".join(parts)


def _note(study: Study, stand: Standing, console: Console, json: bool) -> None:
    for note in study.renamed:
        console.print(note)
    for model in study.models:
        report_unknown_words(model.model, [prompt.text for prompt in study.prompts])
    if json:
        return
    console.print(f"{study.name}: {len(stand.done) + len(stand.todo)} searches: {stand}")
    if stand.aside:
        console.print(
            f"{stand.aside} finished searches of this folder are set aside in aside.parquet: the study no longer has them, "
            "or a file, a plug-in or the version that decides them has changed",
            soft_wrap=True,
        )
    unknown_state = unchecked(study) if stand.done or stand.begun else []
    if unknown_state:
        console.print(f"reused, though not checked for changes: {', '.join(unknown_state)}", soft_wrap=True)
    if stand.lacking:
        console.print(
            f"finished searches have no {', '.join(stand.lacking)}: metrics are computed when a search ends; "
            "choose another --out to run them again"
        )


def _dry(
    study: Study, tasks: Sequence[Task], stand: Standing, compute: Compute, place: str, console: Console, json: bool
) -> None:
    """Print what there is to do."""
    for note in study.renamed:
        console.print(note)
    todo = stand.todo
    if todo:
        compute.check_verifiers(study.verifiers, study.metrics)
    generators = 1 if compute.local else compute.actors
    lines, total = [], 0.0
    for model in study.models:
        mine = [task for task in todo if task.model == model]
        rate, mine = _probe(study, model, mine, stand.rate.get(model.label), compute, console)
        for entry in study.strategies:
            some = [task for task in mine if task.entry == entry]
            nfe, images, flops = (_total([getattr(task.cost, name) for task in some]) for name in CURRENCIES)
            seconds = None if nfe is None or not rate else nfe / rate / generators
            total += seconds or 0.0
            limits = ", ".join(dict.fromkeys(str(task.limit) for task in some)) or "—"
            lines.append(
                {"model": model.label, "label": entry.label, "budgets": limits, "nested": entry.nested,
                 "searches": len(some), "nfe": nfe, "images": images, "flops": flops, "seconds": seconds}
            )  # fmt: skip
    unknown_time = any(line["seconds"] is None for line in lines)
    if json:
        said = {
            "name": study.name,
            "out": place,
            "searches": len(tasks),
            "todo": len(todo),
            "reused": len(stand.done),
        }
        print(
            json_module.dumps(said | {"lines": lines, "seconds": None if unknown_time else total}, ensure_ascii=False)
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "strategy", "budget", "searches", "NFE", "images", "FLOPs", "time"):
        table.add_column(heading, justify="left" if heading in ("model", "strategy", "budget") else "right")
    for line in lines:
        numbers = ["?" if line[key] is None else f"{line[key]:,.0f}" for key in ("nfe", "images")]
        numbers.append("?" if line["flops"] is None else large(float(str(line["flops"]))))
        time_left = "?" if line["seconds"] is None else span(float(str(line["seconds"])))
        budget = str(line["budgets"]) + (" (and all below)" if line["nested"] and len(study.limits) > 1 else "")
        table.add_row(str(line["model"]), str(line["label"]), budget, str(line["searches"]), *numbers, time_left)
    console.print(
        f"{study.name}: {len(study.prompts)} prompts, {len(study.seeds)} seeds, {len(tasks)} searches: {stand}"
    )
    console.print(table)
    nfe = sum(task.cost.nfe or 0.0 for task in todo)
    about = "an unknown time" if unknown_time else f"about {span(total)}"
    console.print(f"{nfe:,.0f} NFE in {about} on {compute}; results in {place}")


def _total(costs: Sequence[float | None]) -> float | None:
    """Return the sum; None where one is not known."""
    return None if None in costs else sum(cost or 0 for cost in costs)


def _probe(
    study: Study, model: ModelEntry, tasks: list[Task], rate: float | None, compute: Compute, console: Console
) -> tuple[float | None, list[Task]]:
    """Load a local model and return the NFE/s of one generator, measured with a few steps of a full batch, and the model's
    tasks with the NFE and FLOPs that they will take.

    Args:
        rate: that of an earlier run; None = to be measured.

    Raises:
        BadInput: searches of the model would be refused.
        Failure: the model cannot be loaded; on a cluster, whose machines may differ from this one, this is printed.
    """
    # What a score takes is known once the verifier is loaded; those for large models are large themselves.
    limited = any(task.limit.flops is not None for task in tasks)
    scored = model.priced_as is None and (limited or model.model in registry.models())
    if not tasks or folder_of(model.model) is None or (rate is not None and not scored):
        return rate, tasks
    verifiers = [model.verifier] if scored else []
    kinds = {_kind(task): task for task in tasks}
    try:
        with Compute(local=True, device=compute.device, batch=compute.batch).pool(
            model.model, *verifiers, **_options(model)
        ) as pool:
            sampling, prices = Sampling.of(pool.info, "an image", **model.sampling), model.prices(pool.info)
            if scored and isinstance(pool, Checking):
                probe = pool.probe(model.verifier, tasks[0].prompt.text)
                prices = replace(prices, score=probe.result().usage.flops)
            costs = {image: Costs.of(pool.info, sampling, image=image, prices=prices) for image in (False, True)}
            for task in kinds.values():
                image = task.prompt.image if task.image else None
                check(task.entry.strategy, task.entry.name, task.limit.budget, costs[task.image], pool.info, image)
            found = {kind: estimate(task.entry, task.limit, costs[task.image]) for kind, task in kinds.items()}
            if not scored and model.priced_as is None:  # without those of the scores, FLOPs say nothing
                found = {kind: one._replace(flops=kinds[kind].cost.flops) for kind, one in found.items()}
            tasks = [replace(task, cost=found[_kind(task)]) for task in tasks]
            return rate or _rate(pool, sampling, compute.rows.most), tasks
    except Failure as error:
        if compute.address is None:
            raise
        console.print(f"{model.label}: {error}")
        return rate, tasks


def _kind(task: Task) -> tuple[str, Limit, bool]:
    return task.entry.label, task.limit, task.image


def _rate(pool: Pool, sampling: Sampling, rows: int) -> float:
    """Return the NFE/s of a pool with one generator, whose calls have so many rows."""
    sampling = replace(sampling, steps=max(PROBE_STEPS + 1, sampling.steps))
    count, taken = rows // (2 if sampling.guided else 1), 0.0
    for number in range(2):  # the first round is a warm-up
        began = time.perf_counter()
        asked = [
            pool.submit(Segment(number, sampling, (f"seed {seed}",), PROBE_STEPS, noise=Fresh(seed)))
            for seed in range(count)
        ]
        for future in asked:
            future.result()
        taken = time.perf_counter() - began
    return count * PROBE_STEPS / taken


def _report(conducted: Conducted, place: str, console: Console, json: bool) -> None:
    outcome, searches = conducted.outcome, conducted.searches
    states = {state: sum(s["status"] == state for s in searches) for state in ("done", "failed", "open")}
    if json:
        keys = ("name", "status", "error", "seconds", "busy", "failed_trials")
        said = {key: conducted.study[key] for key in keys} | {"searches": states, "out": place}
        print(json_module.dumps(said, ensure_ascii=False))
    else:
        _print(conducted, place, console)
    if outcome.status == "out of time" and not json:
        console.print(f"out of time after {states['done']} of {len(searches)} searches; the same command resumes")
    if outcome.status == "interrupted":
        if not json:
            console.print(f"stopped after {states['done']} of {len(searches)} searches; the same command resumes")
        sys.exit(130)
    if outcome.status == "failed":
        raise Failure(f"the study stopped: {outcome.error}; the same command resumes it")
    if states["failed"]:
        first = next(s for s in searches if s["status"] == "failed")
        raise Failure(
            f"{states['failed']} of {len(searches)} searches failed, the first ({first['label']}, {first['prompt_id']}) "
            f"with: {first['error']}; the same command retries them"
        )


def _print(conducted: Conducted, place: str, console: Console) -> None:
    done = [s for s in conducted.searches if s["status"] == "done"]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for s in done:
        budget = str(Budget(**{name: s.get(f"budget_{name}") for name in CURRENCIES}))
        groups.setdefault((s["model"], s["label"], budget), []).append(s)
    table = Table(box=None, pad_edge=False, header_style="bold")
    metrics = [m for m in conducted.study["metrics"] if any(m in s["metrics"] for s in done)]
    failures = Failures(**conducted.study["failed_trials"])
    headings = ("model", "strategy", "budget", "searches", "score", *metrics, "NFE", "images")
    for number, heading in enumerate((*headings, *(["failed trials"] if failures.count else []))):
        table.add_column(heading, justify="left" if number < 3 else "right")
    for names, some in groups.items():
        held_out = [[s["metrics"][m] for s in some if m in s["metrics"]] for m in metrics]
        values = [f"{np.mean(found):.3f}" if found else "" for found in ([s["score"] for s in some], *held_out)]
        nfe, images = (np.mean([s[key] for s in some]) for key in ("nfe", "images"))
        failed = [str(sum(s["failed_trials"] for s in some))] if failures.count else []
        table.add_row(*names, str(len(some)), *values, f"{nfe:.0f}", f"{images:.1f}", *failed)
    if groups:
        console.print(table)
    if failures.count:
        console.print(str(failures))
    console.print(f"trials   {place}/trials.parquet")
    console.print(f"study    {place}/study.json")
