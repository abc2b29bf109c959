"""``lotts-search submit``, against a stand-in for the dashboard of a Ray cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="submitting jobs needs the extra cluster")

from lotts_search.actors import jobs
from lotts_search.actors.jobs import Jobs
from lotts_search.errors import Failure
from tests.actors.dashboard import Dashboard
from tests.cli.test_cli import call

YAML = """\
name: first
strategies: [best-of-n]
prompts: prompts.txt
budgets: {nfe: [20]}
"""


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A cluster, and a folder with a study in which the test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(jobs.VARIABLE, "http://127.0.0.1:1")  # the option comes first
    monkeypatch.setattr(jobs, "RETRY_S", 0.01)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # Ray sets it where a test has started a cluster
    Path("study.yaml").write_text(YAML)
    Path("prompts.txt").write_text("red star\n")
    with Dashboard() as found:
        yield found


def submit(dashboard: Dashboard, *words: str) -> int:
    return call("submit", "--address", dashboard.address, *words)


def test_a_study_is_sent_and_its_log_followed(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(dashboard, "study.yaml", "--generators", "4", "--device", "cuda", "--", "--json") == 0
    command = f"{dashboard.job['entrypoint']}"
    start = 'exec python -m lotts_search study --out "$HOME"/lotts-search/first '
    assert command.startswith(start)
    assert shlex.split(command.removeprefix(start)) == [
        "study.yaml", "--generators", "4", "--device", "cuda", "--json",
    ]  # fmt: skip
    assert {"study.yaml", "prompts.txt"} <= set(dashboard.files)
    assert dashboard.files["prompts.txt"] == b"red star\n"
    assert int(dashboard.job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) == jobs.STOP_S
    printed = capsys.readouterr()
    assert printed.out == dashboard.log
    assert "~/lotts-search/first" in printed.err and "job-0 done" in printed.err


def test_one_search_is_a_job_too(dashboard: Dashboard) -> None:
    Path("mine.py").write_text("")
    assert (
        submit(dashboard, "--out", "/shared/a b", "--include", "mine.py", "--", "generate", "a red fox", "--nfe", "9")
        == 0
    )
    assert shlex.split(dashboard.job["entrypoint"])[3:] == [
        "lotts_search", "generate", "--out", "/shared/a b", "a red fox", "--nfe", "9",
    ]  # fmt: skip
    assert set(dashboard.files) == {"mine.py"}


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (("FAILED", 3, "it broke"), 3, "job-0 failed: it broke"),
        (("FAILED", None, "no node"), 1, "job-0 failed: no node"),
        (("STOPPED", None, ""), 130, "the same command resumes it"),
    ],
)
def test_the_exit_code_is_that_of_the_job(
    dashboard: Dashboard, ends: tuple[str, int | None, str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.ends = ends
    assert submit(dashboard, "study.yaml") == code
    assert said in capsys.readouterr().err


def test_the_log_is_written_once_though_the_connection_breaks(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.breaks = 3
    assert submit(dashboard, "study.yaml") == 0
    assert dashboard.breaks == 0 and capsys.readouterr().out == dashboard.log


def test_a_cluster_that_is_gone_ends_the_command_and_not_the_job(dashboard: Dashboard) -> None:
    cluster = Jobs(dashboard.address)
    job = cluster.submit("true", Path.cwd(), "/out", "hash")
    dashboard.refuses = 503
    with pytest.raises(Failure, match="may go on: the same command follows it again"):
        cluster.follow(job.id, print, print)


def test_the_same_command_follows_a_running_job_and_another_is_refused(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(dashboard, "study.yaml", "--detach") == 0
    assert submit(dashboard, "study.yaml", "--generators", "2") == 1
    assert "--stop stops it" in capsys.readouterr().err
    Path("prompts.txt").write_text("blue star\n")
    assert submit(dashboard, "study.yaml") == 1, "the job has other prompts"
    Path("prompts.txt").write_text("red star\n")
    assert submit(dashboard, "study.yaml") == 0 and len(dashboard.jobs) == 1
    assert submit(dashboard, "study.yaml") == 0 and len(dashboard.jobs) == 2, "the first has ended: this one resumes it"


def test_stop_ends_the_job_of_the_study(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(dashboard, "study.yaml", "--stop") == 2
    assert "no job at" in capsys.readouterr().err
    submit(dashboard, "study.yaml", "--detach")
    assert submit(dashboard, "study.yaml", "--stop") == 0
    assert dashboard.job["status"] == "STOPPED"


def test_ctrl_c_stops_the_job_and_the_rest_of_the_log_is_written(dashboard: Dashboard) -> None:
    cluster, written, said = Jobs(dashboard.address), list[str](), list[str]()
    job = cluster.submit("true", Path.cwd(), "/out", "hash")

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 1:
            raise KeyboardInterrupt

    assert cluster.follow(job.id, write, said.append).status == "stopped"
    assert "".join(written) == dashboard.log and len(said) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "ray://head:10001",
            "the address of Ray's client; jobs go to the dashboard of the head node: http://head:8265",
        ),
        ("head:6379", "not the address of a dashboard; jobs go to the dashboard of the head node: http://head:8265"),
        ("auto", "http://HEAD:8265"),
    ],
)
def test_other_addresses_of_ray_are_refused(address: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("submit", "missing.yaml", "--address", address) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("status", "said"), [(401, "wants a token"), (403, "the token is RAY_AUTH_TOKEN")])
def test_a_missing_or_wrong_token_is_named(
    dashboard: Dashboard, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.refuses = status
    assert submit(dashboard, "study.yaml") == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study.yaml", "other.yaml"], "a job runs one study"),
        (["study.yaml", "--out", "runs/first"], "begins with / or ~/"),
        (["study.yaml", "--include", "none.py"], "there is no file none.py"),
        (["study.yaml", "--include", "/etc/hostname"], "not below the current folder"),
    ],
)
def test_bad_input_sends_nothing(
    dashboard: Dashboard, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(dashboard, *words) == 2
    assert said in capsys.readouterr().err.replace("\n", " ") and not dashboard.jobs


def test_nothing_listens_there(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("submit", "study.yaml", "--address", "http://127.0.0.1:1") == 1
    assert "does not answer at http://127.0.0.1:1" in capsys.readouterr().err
