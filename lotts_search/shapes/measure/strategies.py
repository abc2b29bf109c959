"""All strategies at several budgets on test prompts with common seeds, judged by the oracle, on one or many processes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.progress import Progress, TimeElapsedColumn

from lotts_search import registry
from lotts_search.api import asearch
from lotts_search.core.result import SearchResult
from lotts_search.errors import BadInput
from lotts_search.shapes.measure.comparison import winner
from lotts_search.shapes.measure.standings import Record, line, markdown, read, standings
from lotts_search.shapes.world.scene import Scene, Split, scenes
from lotts_search.work.masks import HIGH_QUALITY
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes

SAMPLES = (4.25, 8.5, 17.0)
"""The default budgets in samples' worth of NFE: 42.5, 85 and 170 NFE where T = 10."""
QUALITY_BASELINE = f"best-of-n template={shlex.quote(HIGH_QUALITY)}"
SAME_IMAGES = {"random-search": "best-of-n"}
"""Strategies that make the images of another one; they are left out unless asked for."""


@dataclass(frozen=True)
class Job:
    """What one process does, plain values alone.

    Attributes:
        model: a registered name or a folder.
        entries: strategies, each a name and settings ``key=value`` as in a shell.
        budgets: NFE; empty = the default multiples of the model's own sample.
        split, prompts, numbers: the first so many scenes of a split, and which of them are this job's.
        folder: where the records go.
        file: the name of the job's own file there.
        until: when to stop, in seconds since the epoch; None = when done.
        seed: prompt i is searched with seed ``seed + i``.
        at_once: searches that run at the same time.
    """

    model: str
    entries: tuple[str, ...]
    budgets: tuple[float, ...]
    split: Split
    prompts: int
    numbers: tuple[int, ...]
    folder: Path
    file: str
    until: float | None = None
    seed: int = 0
    at_once: int = 64
    device: str = "cpu"
    dtype: str = "bfloat16"
    compile: bool = False
    max_batch: int = 32
    steps: int | None = None
    guidance: float | None = None


Judge = Callable[[Bytes, Scene], tuple[float, bool]]


def oracle(image: Bytes, scene: Scene) -> tuple[float, bool]:
    """Quality 0..1 and whether the image is perfect."""
    from lotts_search.shapes.world.oracle import judge

    verdict = judge(image, scene)
    return verdict.quality, verdict.perfect


def default_entries() -> list[str]:
    """All strategies of the package that make images of their own, and Best-of-N with p+ as its prompt."""
    own = [e.name for e in registry.strategies().values() if e.target.startswith("lotts_search.")]
    return [*(name for name in own if name not in SAME_IMAGES), QUALITY_BASELINE]


def with_settings(entries: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Entries with the settings ``strategy.key=value`` added to those of that strategy.

    Raises:
        BadInput: a setting without a dot or ``=``, or of a strategy that is no entry.
    """
    made = list(entries)
    for setting in settings:
        name, dot, pair = setting.partition(".")
        if not dot or "=" not in pair:
            raise BadInput(f"--set takes STRATEGY.KEY=VALUE, not {setting!r}")
        if not any(shlex.split(entry)[0] == name for entry in made):
            raise BadInput(f"--set {setting}: {name!r} is not among the strategies: {', '.join(made)}")
        made = [f"{entry} {shlex.quote(pair)}" if shlex.split(entry)[0] == name else entry for entry in made]
    return made


def parse(entry: str) -> tuple[str, dict[str, object]]:
    """The name and the settings of an entry, checked.

    Raises:
        BadInput: an unknown strategy or setting.
    """
    name, *pairs = shlex.split(entry)
    split = [pair.partition("=") for pair in pairs if "=" in pair]
    settings: dict[str, object] = {key: value for key, _, value in split}
    if len(settings) < len(pairs):
        raise BadInput(f"a strategy takes KEY=VALUE settings after its name, not {entry!r}")
    registry.make_strategy(name, settings)
    return name, settings


async def searches(pool: Pool, job: Job, judge: Judge = oracle, verifier: str = "shapes-reward") -> None:
    """Run the searches of a job that have no record yet, prompt by prompt, and append their records as they come."""
    chosen = scenes(job.split, job.prompts, seed=6)
    steps = job.steps or pool.info.defaults.steps
    budgets = job.budgets or tuple(round(s * steps, 1) for s in SAMPLES)
    job.folder.mkdir(parents=True, exist_ok=True)
    known = {record.key for record in read(job.folder)}
    gate = asyncio.Semaphore(job.at_once)
    # Judging takes long enough to keep the pool waiting: beside the loop, not in it.
    judges = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()

    async def one(file: Callable[[str], object], entry: str, nfe: tuple[float, ...], number: int) -> None:
        scene, (name, settings) = chosen[number], parse(entry)
        blank = [Record(job.model, entry, b, job.split, number, job.seed + number) for b in nfe]
        blank = [record for record in blank if record.key not in known]
        async with gate:
            if not blank or _over(job):
                return
            try:
                result = await asearch(
                    scene.caption, pool=pool, strategy=name, settings=settings, nfe=max(r.budget for r in blank),
                    seed=job.seed + number, steps=job.steps, guidance=job.guidance, verifier=verifier,
                )  # fmt: skip
            except Exception as error:  # a fault of one strategy must not cost the others their figures
                for record in blank:
                    file(line(dataclasses.replace(record, error=f"{type(error).__name__}: {error}")))
                return
            for record in blank:
                image, reward, spent, images = winner(result, _first(result, record.budget, len(blank)))
                quality, perfect = await loop.run_in_executor(judges, judge, image, scene)
                file(line(dataclasses.replace(
                    record, quality=quality, perfect=bool(perfect), reward=reward, nfe=spent, images=images
                )))  # fmt: skip

    with (job.folder / job.file).open("a", buffering=1) as out:
        work = []
        for number in job.numbers:
            for entry in job.entries:
                # The images of a smaller Best-of-N are the first ones of a larger.
                shared = [budgets] if shlex.split(entry)[0] == "best-of-n" else [(b,) for b in budgets]
                work += [one(out.write, entry, nfe, number) for nfe in shared]
        try:
            await asyncio.gather(*work)
        finally:
            judges.shutdown()


def _over(job: Job) -> bool:
    """Whether the time is up, or the process that began this one is gone and nobody waits any longer."""
    parent = multiprocessing.parent_process()
    return (job.until is not None and time.time() > job.until) or (parent is not None and not parent.is_alive())


def _first(result: SearchResult, budget: float, shared: int) -> int | None:
    """How many of the images count when several budgets share a search."""
    return max(1, int(budget / result.sampling.steps + 1e-9)) if shared > 1 else None


def run(job: Job) -> None:
    """Open the model and do a job, in this process."""
    import torch

    from lotts_search.engine.local_pool import LocalPool
    from lotts_search.shapes.verifier import ShapesReward

    torch.set_num_threads(1)
    verifier = ShapesReward.load()
    verifier.net.to(job.device)
    backbone = registry.load_backbone(job.model, device=job.device, dtype=job.dtype, compile=job.compile)
    # Figures need speed, not bitwise equality.
    rewriters = {"shapes-rewriter": registry.load_rewriter("shapes-rewriter")}
    with LocalPool(backbone, {"shapes-reward": verifier}, job.max_batch, 1, pad=False, rewriters=rewriters) as pool:
        asyncio.run(searches(pool, job))


def shards(job: Job, processes: int) -> list[Job]:
    """The job in as many parts, prompts dealt out in turn, so that a time limit leaves whole prompts of each part."""
    return [
        dataclasses.replace(job, numbers=job.numbers[i::processes], file=f"{Path(job.file).stem}-{i}.jsonl")
        for i in range(min(processes, len(job.numbers)))
    ]


@dataclass
class Outcome:
    """How the parts of a job ended: what failed, in words, by part."""

    failed: dict[str, str] = field(default_factory=dict)


def run_all(job: Job, processes: int, expected: int, title: str) -> Outcome:
    """Do a job on several processes. One that dies is reported and does not end the others; records are kept."""
    outcome, parts = Outcome(), shards(job, processes)
    spawn = multiprocessing.get_context("spawn")
    running = {part.file: spawn.Process(target=run, args=(part,), name=part.file, daemon=True) for part in parts}
    for process in running.values():
        process.start()
    try:
        with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as bar:
            task = bar.add_task(title, total=expected)
            while any(process.is_alive() for process in running.values()):
                time.sleep(1.0)
                bar.update(task, completed=_count(job))
                # A search that is under way when the time is over may end; one that does not is ended.
                if job.until is not None and time.time() > job.until + 30:
                    break
            bar.update(task, completed=_count(job))
    finally:
        for name, process in running.items():
            if process.is_alive():
                process.terminate()
                outcome.failed[name] = "was still at work after the time limit"
            process.join()
            if process.exitcode and name not in outcome.failed:
                outcome.failed[name] = f"ended with exit code {process.exitcode}"
    return outcome


def _count(job: Job) -> int:
    return sum(file.read_bytes().count(b"\n") for file in job.folder.glob(f"{Path(job.file).stem}-*.jsonl"))


def measure(
    models: Sequence[str], entries: Sequence[str], out: Path, job: Job, processes: int, seconds: float | None
) -> dict[str, object]:
    """The whole measurement: ``out/records``, ``out/strategies.json`` and ``out/strategies.md``.

    ``seconds`` are shared out evenly among the models; what one leaves is the next one's.
    """
    for entry in entries:
        parse(entry)
    started = time.time()
    failed: dict[str, str] = {}
    budgets = len(job.budgets or SAMPLES)
    for index, model in enumerate(models):
        until = None
        if seconds is not None:
            left = started + seconds - time.time()
            until = time.time() + max(0.0, left) / (len(models) - index)
        mine = dataclasses.replace(
            job, model=model, entries=tuple(entries), folder=out / "records", until=until,
            file=f"{Path(model).name}.jsonl",
        )  # fmt: skip
        expected = len(job.numbers) * len(entries) * budgets
        outcome = run_all(mine, processes, expected, f"{model}: {expected} searches")
        for name, why in outcome.failed.items():
            typer.echo(f"{name}: the process {why}; its records are kept", err=True)
        failed |= outcome.failed
    return table(out, job.split, failed)


def table(out: Path, split: str, failed: dict[str, str] | None = None) -> dict[str, object]:
    """The table of the records in ``out/records``, written as JSON and Markdown."""
    records = [record for record in read(out / "records") if record.split == split]
    rows = standings(records)
    figures: dict[str, object] = {"split": split, "searches": len(records), "rows": rows}
    if failed:
        figures["failed processes"] = failed
    (out / "strategies.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    (out / "strategies.md").write_text(markdown(rows))
    return figures
