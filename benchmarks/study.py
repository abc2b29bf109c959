"""How busy a study keeps the generators, and the overhead of recording.

    python benchmarks/study.py [--searches 200] [--generators 2] [--nfe 48] [--device cpu] [--local] [--rows 0]

A study of that many searches, half Best-of-N and half LoTTS, runs on Ray actors into a temporary folder. Printed are

- busy: the generators' device seconds over actors × wall time, from the first trial submitted to the last one finished
  (demand: 0.9 or more),
- writing: seconds in which the driver wrote journals, images, rows and tables, over the wall time (demand: at most 0.02),

and with ``--rows`` how long it takes to bring a table of that many rows up to date.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lotts_search.cli.pools import Compute
from lotts_search.core.journal import Journal
from lotts_search.study.conduct import conduct
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.study.state import standing
from lotts_search.work.pool import Pool

YAML = """\
model: {model}
strategies: [best-of-n, lotts]
prompts: {{from: shapes-test, count: {prompts}}}
budgets: {{nfe: {nfe}}}
"""


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return ``function`` with the seconds of each call appended to ``spent``."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)

    return call


def study(options: argparse.Namespace, folder: Path) -> tuple[float, float, dict[str, float]]:
    """Run the study; return wall seconds, busy share, and seconds of writing by kind."""
    yaml = folder / "study.yaml"
    yaml.write_text(YAML.format(model=options.model, prompts=options.searches // 2, nfe=options.nfe))
    asked = read_study(yaml)
    tasks, compute = (
        tasks_of(asked),
        Compute(options.local, None, None if options.local else options.generators, options.device),
    )
    journal: list[float] = []
    Journal.add = timed(Journal.add, journal)  # type: ignore[method-assign]

    @contextmanager
    def opened(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
        with compute.pool(model.model, *verifiers) as pool:
            yield pool

    run = RunFolder(folder / "run")
    generators = 1 if options.local else compute.actors
    done = conduct(asked, run, tasks, standing(run, tasks), opened, generators=generators)
    run.close()
    meter = done.progress.meter
    assert meter is not None and meter.busy is not None and done.outcome.status == "done"
    nfe, count = meter.nfe, len(done.searches)
    print(f"{count} searches, {nfe:.0f} NFE in {meter.seconds:.1f} s on {compute}: {nfe / meter.seconds:.1f} NFE/s")
    return meter.seconds, meter.busy, {"journals": sum(journal), "rows and images": done.progress.writing}


def table(rows: int, folder: Path) -> None:
    """Measure the time to merge one more search into a table of ``rows`` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = RunFolder(folder / "run")
    asked = read_study(folder / "study.yaml")
    small = pq.read_table(run.path / "trials.parquet")
    times = -(-rows // small.num_rows)
    ids = small["search_id"].to_pylist()
    copies = [
        small.set_column(1, "search_id", pa.array([f"{number:04x}{name[4:]}" for name in ids]))
        for number in range(times)
    ]
    large = pa.concat_tables([small, *copies])
    pq.write_table(large, run.path / "trials.parquet", compression="zstd")
    began = time.perf_counter()
    tasks = tasks_of(asked)
    stand = standing(run, tasks)
    looked = time.perf_counter() - began
    began = time.perf_counter()
    run.merge(tasks, asked.name)
    merged = time.perf_counter() - began
    size = (run.path / "aside.parquet").stat().st_size / 1e6
    print(
        f"{large.num_rows} rows ({size:.0f} MB): looked through in {looked:.2f} s, brought up to date in {merged:.2f} s"
    )
    print(f"  ({stand})")
    run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or hub id")
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--nfe", type=float, default=48, help="budget of a search")
    parser.add_argument("--device", default="cpu", help="torch device of the generators")
    parser.add_argument("--local", action="store_true", help="in this process: one generator")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds, busy, writing = study(options, Path(name))
        if options.rows:
            table(options.rows, Path(name))
    share = sum(writing.values()) / seconds
    print(f"busy     {busy:.3f}  (demand 0.9)")
    parts = ", ".join(f"{what} {spent:.2f} s" for what, spent in writing.items())
    print(f"writing  {share:.4f}  (demand 0.02; {parts})")
    if options.json:
        print(json.dumps({"busy": busy, "writing": share, "seconds": seconds}))


if __name__ == "__main__":
    main()
