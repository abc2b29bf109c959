"""Jobs on a Ray cluster: submit one, follow its log, stop it. They go to the dashboard of the head node, over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lotts_search.errors import BadInput, Failure

try:
    import aiohttp
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobDetails, JobSubmissionClient
except ImportError as error:
    raise Failure(f"submitting jobs needs more of Ray ({error}): pip install 'lotts-search[cluster]'") from error

for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # they report every upload and every closed connection

VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Ray's variable for the address of the dashboard."""
STOP_S = 60
"""Seconds that a job has to write what it has done, after it was told to stop. Ray's own limit is 3."""
RETRY_S = 2.0
RETRIES = 30
OUT, SENT = "lotts-search out", "lotts-search sent"
"""Keys of the metadata of our jobs."""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: its submission id.
        out: folder of its results, on the cluster.
        sent: hash of the command and of the files that were sent with it.
        status: ``running`` stands for pending, too.
        code: exit code of its command, None where it has none.
        message: what Ray says about it.
    """

    id: str
    out: str
    sent: str
    status: Literal["running", "done", "failed", "stopped"]
    code: int | None
    message: str

    @classmethod
    def of(cls, found: JobDetails) -> Job:
        """Return a job from Ray's description."""
        names = {"SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
        status: Any = names.get(found.status.value, "running")
        said = found.metadata or {}
        out, sent, message = said.get(OUT, ""), said.get(SENT, ""), found.message or ""
        return cls(found.submission_id or "", out, sent, status, found.driver_exit_code, message)


class Jobs:
    """The jobs of one cluster. Ray reads a token from ``RAY_AUTH_TOKEN`` or the file ``RAY_AUTH_TOKEN_PATH`` if
    ``RAY_AUTH_MODE`` is ``token``, and further HTTP headers from ``RAY_JOB_HEADERS``, as JSON.

    Args:
        address: of the dashboard, ``http://HEAD:8265``.

    Raises:
        BadInput: it is no such address, or the headers are not JSON.
        Failure: the dashboard does not answer, or refuses the token.
    """

    def __init__(self, address: str):
        check_address(address)
        self.address = address
        try:
            headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "{}"))
        except ValueError as error:
            raise BadInput(f"RAY_JOB_HEADERS must be a JSON object of headers: {error}") from error
        os.environ[VARIABLE] = address  # for Ray, it comes before the argument
        with self._errors():
            self._client = JobSubmissionClient(address, headers=headers)

    def of(self, out: str) -> Job | None:
        """Return the job that is writing into a folder of results; None where there is none."""
        with self._errors():
            found = [Job.of(one) for one in self._client.list_jobs() if one.submission_id]
        return next((job for job in found if job.out == out and job.status == "running"), None)

    def submit(self, command: str, folder: Path, out: str, sent: str) -> Job:
        """Submit a job.

        Args:
            command: what it runs, in a shell, in a copy of ``folder`` on the cluster.
            out: where the command writes its results.
            sent: see :class:`Job`.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        with self._errors():
            job = self._client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": str(folder), "env_vars": variables},
                metadata={OUT: out, SENT: sent},
            )
        return self.info(job)

    def info(self, job: str) -> Job:
        """Return what is known of a job."""
        with self._errors():
            return Job.of(self._client.get_job_info(job))

    def stop(self, job: str) -> None:
        """Ask a job to stop; after :data:`STOP_S` seconds Ray kills it."""
        with self._errors():
            self._client.stop_job(job)

    def follow(self, job: str, write: Callable[[str], object], say: Callable[[str], object]) -> Job:
        """Write the log of a job, from its beginning, until the job has ended.

        A lost connection is made again; nothing is written twice. Ctrl-C stops the job; a second one ends only this.

        Args:
            write: takes a part of the log.
            say: takes a line about the job.

        Returns:
            The job as it ended.

        Raises:
            Failure: the dashboard does not answer any more.
        """
        seen = lost = 0
        stopping = False

        def written(text: str) -> None:
            nonlocal seen, lost
            seen, lost = seen + len(text), 0
            write(text)

        while True:
            try:
                with self._errors():
                    asyncio.run(self._tail(job, seen, written))
                found = self.info(job)
                if found.status != "running":
                    return found
            except Failure as error:
                if lost == RETRIES:
                    raise Failure(f"{error}. {job} may go on: the same command follows it again") from error
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                say(f"stopping {job}; another Ctrl-C does not wait for it")
                self.stop(job)
                continue
            lost += 1
            time.sleep(RETRY_S)

    async def _tail(self, job: str, seen: int, write: Callable[[str], object]) -> None:
        """Write the log without its first ``seen`` characters."""
        async for text in self._client.tail_job_logs(job):
            if text[seen:]:
                write(text[seen:])
            seen = max(0, seen - len(text))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the connection into one message."""
        try:
            yield
        except AuthenticationError as error:
            sent = os.environ.get("RAY_AUTH_MODE") == "token"
            how = "the token is RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token by default"
            what = "refuses the token" if sent else "wants a token: set RAY_AUTH_MODE=token"
            raise Failure(f"the Ray cluster at {self.address} {what}; {how}") from error
        except (OSError, RuntimeError, ValueError, aiohttp.ClientError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Failure(f"the dashboard of a Ray cluster does not answer at {self.address}: {text}") from error


def check_address(address: str) -> None:
    """Raise BadInput for what is not the address of a dashboard."""
    scheme, _, host = address.rpartition("://")
    if scheme in ("http", "https") and host:
        return
    head = host.partition("/")[0].partition(":")[0]
    head = head if head not in ("", "auto", "local") else "HEAD"
    kind = "is the address of Ray's client" if scheme == "ray" else "is not the address of a dashboard"
    raise BadInput(f"--address {address!r} {kind}; jobs go to the dashboard of the head node: http://{head}:8265")
