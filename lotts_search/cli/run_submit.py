"""The work of ``lotts-search submit``: a study, or a search, as a job on a Ray cluster."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from lotts_search.errors import BadInput, Failure
from lotts_search.study.packing import pack
from lotts_search.study.read import read_study

HOME = "~/"
SEARCH = "generate"
CODES = {"done": 0, "stopped": 130}
"""Exit codes by how a job ended; a failed one has its own."""


def run(
    words: Sequence[str], address: str, options: Sequence[str], include: Sequence[Path], out: str | None,
    detach: bool, stop: bool,
) -> int:  # fmt: skip
    """Submit a study or a search, or follow the job that runs it already.

    Args:
        words: a study file and further options of ``lotts-search study``, or ``generate`` with its words.
        options: of both commands.

    Returns:
        The exit code of the job; 0 where there is nothing to wait for.

    Raises:
        BadInput: something in the study or in the options is wrong.
        Failure: the cluster does not answer, or runs something else into the same folder.
    """
    from lotts_search.actors.jobs import Jobs, check_address

    check_address(address)
    study = read_study(Path(words[0])) if words[0] != SEARCH else None
    if study is not None and words[1:] and not words[1].startswith("-"):
        raise BadInput(f"a job runs one study, not {shlex.join(words)}")
    if out is None:
        search = f"search-{blake2b(shlex.join(words).encode(), digest_size=4).hexdigest()}"
        out = f"{HOME}lotts-search/{study.name if study is not None else search}"
    if not out.startswith(("/", HOME)):
        raise BadInput(
            f"--out {out}: a path on the cluster begins with / or {HOME}, because the folder of a job is deleted with it"
        )
    jobs = Jobs(address)
    job = jobs.of(out)
    if stop:
        if job is None:
            raise BadInput(f"no job at {address} writes to {out}")
        jobs.stop(job.id)
        _say(f"stopping {job.id}")
    else:
        with tempfile.TemporaryDirectory(prefix="lotts-") as name:
            folder = Path(name)
            file = pack(folder, include, study)
            first = [SEARCH] if file is None else ["study", str(file)]
            command = _command([*first, *options, *words[1:]], out)
            contents = {
                path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
            }
            digest = blake2b(command.encode(), digest_size=8)
            for place, path in contents.items():
                digest.update(place.encode() + b"\0" + path.read_bytes())
            if job is None:
                job = jobs.submit(command, folder, out, digest.hexdigest())
                _say(f"{job.id} at {address}: {', '.join(contents) or 'no files'}")
            elif job.sent == digest.hexdigest():
                _say(f"{job.id} runs already")
            else:
                raise Failure(
                    f"{job.id} writes to {out}, with other files or options: --stop stops it, another --out lets it be"
                )
    _say(f"results in {out}")
    if detach:
        return 0
    ended = jobs.follow(job.id, (lambda text: None) if stop else _write, _say)
    _say(f"{job.id} {ended.status}" + (f": {ended.message}" if ended.status == "failed" else ""))
    if ended.status == "stopped" and not stop:
        _say("the same command resumes it")
    return 0 if stop else CODES.get(ended.status, ended.code or 1)


def _command(words: Sequence[str], out: str) -> str:
    """Return the command line of a job; a shell of the cluster expands its home folder.

    ``exec`` leaves one process, which gets the signal to stop and gives the exit code.
    """
    where = f'"$HOME"/{shlex.quote(out.removeprefix(HOME))}' if out.startswith(HOME) else shlex.quote(out)
    return f"exec python -m lotts_search {words[0]} --out {where} {shlex.join(words[1:])}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr)
