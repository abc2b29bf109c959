"""One of several drivers of a study on the analytic model: python -m tests.study.one_driver STUDY FOLDER [FATE]."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path

from lotts_search.study.conduct import conduct
from lotts_search.study.drivers import given
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.state import standing
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Result, Segment, Work
from tests.study.worlds import opening


class Fated(AnalyticPool):
    """Dies (``die``) or stops to answer (``hang``) after 20 segments."""

    fate = ""

    def submit(self, work: Work) -> Future[Result]:
        if self.fate and sum(isinstance(one, Segment) for one in self.asked) >= 20:
            if self.fate == "die":
                os._exit(3)
            return Future()
        return super().submit(work)


def main(yaml: str, path: str, fate: str = "") -> None:
    study = read_study(Path(yaml))
    folder = RunFolder(Path(path))
    tasks, failed = given(folder, tasks_of(study))
    pool = Fated()
    pool.fate = fate
    began = time.monotonic()
    conducted = conduct(study, folder, tasks, standing(folder, tasks, study.metrics, failed), opening(pool), command="")
    folder.close()
    print(f"{len(tasks)} searches in {time.monotonic() - began:.1f} s", file=sys.stderr)
    sys.exit({"done": 0, "interrupted": 130}.get(conducted.outcome.status, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
