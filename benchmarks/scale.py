"""What the driver of a study costs at scale: hundreds of generators, 10^5 trials, on made-up workers.

    python benchmarks/scale.py [--trials 10000] [--generators 256] [--side 1024] [--images 9] [--profile]
    python benchmarks/scale.py --sweep docs/results/scale.svg

A study of Best-of-N and LoTTS runs into a temporary folder. Searches, worker groups, journals, images and tables are the
project's own; a generator only takes the time of SDXL on an H100 (40 ms a row, batches of 16 rows, 50 guided steps), and
answers with arrays of that size. Time is virtual: the CPU seconds of the driver's event loop and of its worker groups, which here share a
core, plus the waiting that is skipped. Hashes, journals and images, which a driver leaves to threads, take CPU seconds on as many
further cores as ``--threads`` says; with 0 all is done on one core. So the busy share is that of a driver with cores of its own,
on any machine, however busy. What Ray takes for a call comes on top.

Printed are, for each tenth of the study, trials, the driver's CPU milliseconds a trial, its resident memory and the busy share;
then trials per second of CPU; with ``--profile`` also where the time goes. ``--sweep`` draws the cost of a trial over the number of
generators, of images of a search and of trials, for small images.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulated import Clock, SimulatedPool, Speed, VirtualPolicy, resident_mb

from lotts_search.study.conduct import conduct
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.runner import Progress
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.study.state import standing
from lotts_search.work.pool import Pool

YAML = """\
model: shapes-sd
strategies: [{strategies}]
prompts: {{texts: [{prompts}]}}
seeds: {seeds}
budgets: {{images: {images}}}
images: {keep}
"""
PER_IMAGE = 2.0
"""Trials of an image at least: it is made and scored."""


def study(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the study, and return its figures."""
    speed = Speed(side=options.side)
    strategies = options.strategies.split(",")
    searches = max(len(strategies), round(options.trials / options.images / PER_IMAGE))
    prompts = [f"prompt {number}" for number in range(-(-searches // len(strategies) // options.seeds))]
    yaml = folder / "study.yaml"
    yaml.write_text(
        YAML.format(
            strategies=", ".join(strategies), prompts=", ".join(prompts), seeds=options.seeds, images=options.images,
            keep=options.keep,
        )
    )  # fmt: skip
    asked = read_study(yaml)
    tasks = tasks_of(asked)
    pool = SimulatedPool(speed, options.generators)
    clock = Clock()
    asyncio.set_event_loop_policy(VirtualPolicy(clock, options.threads))
    run = RunFolder(folder / "run")
    stand = standing(run, tasks)
    marks: list[dict[str, float]] = []
    began = clock.now()
    cpu = time.process_time()

    def mark() -> None:
        seconds, done = clock.now() - began, pool.answered
        used = time.process_time() - cpu - clock.engines_s
        busy = sum(engine.busy_s for engine in pool.engines)
        marks.append({"trials": done, "seconds": seconds, "cpu": used, "memory": resident_mb(), "busy": busy})

    def tick(progress: Progress) -> None:
        if len(marks) < 10 * pool.answered / options.trials:
            mark()

    @contextmanager
    def opened(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
        yield pool

    wall = time.perf_counter()
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    mark()
    done = conduct(asked, run, tasks, stand, opened, generators=options.generators, batch=speed.batch, tick=tick)
    if profile is not None:
        profile.disable()
    mark()
    run.close()
    assert done.outcome.status == "done" and not done.outcome.errors, done.outcome
    print(f"{len(tasks)} searches, {pool.answered} trials, {options.generators} generators, "
          f"{time.perf_counter() - wall:.0f} s of real time")  # fmt: skip
    print("  trials   virtual s   CPU ms/trial   memory MB   busy")
    for before, after in pairwise(marks):
        if (trials := after["trials"] - before["trials"]) and (took := after["seconds"] - before["seconds"]) > 0:
            share = (after["busy"] - before["busy"]) / options.generators / took
            print(f"{after['trials']:8.0f} {after['seconds']:11.1f} {1e3 * (after['cpu'] - before['cpu']) / trials:14.3f} "
                  f"{after['memory']:11.0f} {share:6.3f}")  # fmt: skip
    # The beginning and the end of a study, where searches start and end, are no matter of the driver.
    inner = [m for m in marks if 0.2 * pool.answered <= m["trials"] <= 0.8 * pool.answered]
    first, last = (inner[0], inner[-1]) if len(inner) > 1 else (marks[0], marks[-1])
    found = {
        "generators": options.generators, "searches": len(tasks), "trials": pool.answered,
        "cpu_ms": 1e3 * marks[-1]["cpu"] / pool.answered,
        "busy": (last["busy"] - first["busy"]) / options.generators / (last["seconds"] - first["seconds"]),
        "demand": pool.answered / sum(e.busy_s for e in pool.engines) * options.generators,
        "peak_mb": max(m["memory"] for m in marks),
    }  # fmt: skip
    print(f"driver   {found['cpu_ms']:.3f} ms of CPU a trial: {1e3 / found['cpu_ms']:.0f} trials a second on one core; "
          f"the generators can do {found['demand']:.0f}")  # fmt: skip
    print(f"busy     {found['busy']:.3f} between 20 % and 80 % of the trials  (demand 0.95)")
    if profile is not None:
        show(profile, pool.answered)
    return found


def show(profile: cProfile.Profile, trials: int) -> None:
    """Print where the time goes: by file of the project, and by function outside of it."""
    spent: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        path = Path(file)
        inside = "lotts_search" in path.parts or path.parent.name == "actors"
        where = "/".join(path.parts[-2:]) if inside else f"{path.name.strip('~')} {name}".strip()
        spent["(made-up workers)" if path.name == "simulated.py" else where] += own
    total = sum(spent.values())
    print(f"profile  {1e3 * total / trials:.3f} ms a trial under the profiler")
    for where, own in spent.most_common(28):
        print(f"  {own / total:6.1%}  {1e6 * own / trials:8.1f} µs a trial  {where}")


SWEEP: dict[str, list[int]] = {"generators": [16, 64, 256, 1024], "images": [1, 9, 81], "trials": [1000, 4000, 16000]}
BASE = {"generators": 256, "images": 9, "trials": 4000, "side": 64}


def sweep(path: Path) -> None:
    """Draw the cost of a trial over each of the numbers, the others fixed; each point is a process of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SWEEP), figsize=(9, 2.8), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, SWEEP.items(), strict=True):
        costs = []
        for value in values:
            words = [word for option, number in (BASE | {name: value}).items() for word in (f"--{option}", str(number))]
            done = subprocess.run(
                [sys.executable, __file__, *words, "--json"], capture_output=True, text=True, check=True
            )
            costs.append(json.loads(done.stdout.splitlines()[-1])["cpu_ms"])
            print(f"{name} {value}: {costs[-1]:.3f} ms of CPU a trial", flush=True)
        axis.semilogx(values, costs, "o-", color="#2563eb")
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.minorticks_off()
        axis.set_xlabel({"images": "images of a search"}.get(name, name))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("driver's CPU, ms a trial")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--generators", type=int, default=256)
    parser.add_argument("--side", type=int, default=1024, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=9, help="of each search")
    parser.add_argument("--strategies", default="best-of-n,lotts")
    parser.add_argument("--seeds", type=int, default=10, help="searches of a strategy with the same prompt")
    parser.add_argument("--keep", default="best", choices=("all", "best", "none"), help="images that are written")
    parser.add_argument("--threads", type=int, default=3, help="cores of the driver beside that of its event loop")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="draw the cost of a trial, as SVG, PNG or PDF")
    options = parser.parse_args()
    if options.sweep is not None:
        sweep(options.sweep)
        return
    with tempfile.TemporaryDirectory() as name:
        found = study(options, Path(name))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
