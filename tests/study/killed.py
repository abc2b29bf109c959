"""A program: runs studies in child processes, kills each child by SIGKILL at a random moment and goes on, until there were
so many kills. Prints, as JSON, one line a process: the NFE that it asked of the pool, those known before, and how it ended.

    python -m tests.study.killed FOLDER KILLS SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from concurrent.futures import Future
from pathlib import Path

from lotts_search.core.journal import Journal
from lotts_search.study.folder import RunFolder
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Result, Work
from tests.study.worlds import files, lasting, run, world

YAML = """\
model: ./analytic
rewriter: shapes-rewriter
strategies:
  - best-of-n
  - strategy: lotts
    grid: {refinements: [1, 2]}
  - tests.study.greedy:Greedy
  - {strategy: ttgen, budgets: {nfe: 40}}
prompts: [red star, blue ring, green cross, pink square]
budgets: {nfe: [24, 60]}
metrics: [tests.actors.fakes:Brightness]
images: all
"""
SLOW_S = 0.0005


class Slow(AnalyticPool):
    """Takes its time, and writes down the NFE that it is asked for."""

    def __init__(self, asked: Path):
        super().__init__(shuffle=os.getpid())
        self.log = open(asked, "ab", buffering=0)  # noqa: SIM115

    def _answer(self, work: Work, future: Future[Result]) -> None:
        time.sleep(SLOW_S)
        super()._answer(work, future)

    def submit(self, work: Work) -> Future[Result]:
        self.log.write(f"{work.nfe}\n".encode())
        return super().submit(work)


def known(out: Path) -> float:
    """NFE of all trials that a run folder holds."""
    if not out.exists():
        return 0.0
    folder = RunFolder(out)
    rows = folder.rows()
    finished = {} if rows is None else dict(zip(rows["search_id"].to_pylist(), rows["nfe"].to_pylist(), strict=True))
    total = 0.0 if rows is None else float(sum(rows["nfe"].to_pylist()))
    for path in folder.journals.glob("*.journal"):
        if path.stem not in finished:
            with Journal(path, path.stem) as journal:
                total += journal.nfe
    folder.close()
    return total


def child(yaml: Path, out: Path, asked: Path) -> int:
    """Start a process that runs the study to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(yaml, out, Slow(asked))
            code = 0
        finally:
            os._exit(code)
    return pid


def main(folder: Path, kills: int, seed: int) -> None:
    rng, yaml, rounds = random.Random(seed), world(folder, YAML), 0
    run(yaml, folder / "warm", AnalyticPool())  # everything is imported then, so that children begin at once
    began = time.monotonic()
    os.waitpid(child(yaml, folder / "whole", folder / "asked"), 0)
    took = time.monotonic() - began
    expected, kept = lasting(folder / "whole"), files(folder / "whole")
    total = sum(row["nfe"] for row in expected)
    print(json.dumps({"total": total, "took": took, "rows": len(expected)}))
    while kills > 0:
        rounds += 1
        out = folder / f"killed {rounds}"
        while True:
            before, asked = known(out), folder / "asked once"
            asked.write_bytes(b"")
            pid = child(yaml, out, asked)
            if kills > 0:
                time.sleep(rng.uniform(0.0, 0.25 * took))
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            ended = os.WIFEXITED(status)
            kills -= not ended
            spent = sum(map(float, asked.read_text().split()))
            print(json.dumps({"before": before, "asked": spent, "after": known(out), "killed": not ended}))
            if ended:
                break
        same = lasting(out) == expected and files(out) == kept
        print(json.dumps({"equal": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
