"""Prepare environments from recipes, and say what state they are in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lotts_search.errors import BadInput, Failure
from lotts_search.verifiers.environments.recipe import Recipe
from lotts_search.work.replacing import replacing

VARIABLE = "LOTTS_ENVIRONMENTS"
"""Environment variable that names the folder of all environments."""
RECORD = "environment.json"
SHOWN = 12
"""Lines of pip that the message of a failure shows."""


def environments_folder() -> Path:
    """Return the folder of all environments: ``$LOTTS_ENVIRONMENTS``, or ``lotts-search/environments`` in the user's
    cache."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lotts-search" / "environments"


@dataclass(frozen=True)
class Environment:
    """The environment of a recipe, prepared or not.

    Attributes:
        recipe: the recipe.
        path: its folder.
    """

    recipe: Recipe
    path: Path

    @classmethod
    def of(cls, recipe: Recipe, folder: Path | None = None) -> Environment:
        """Return the environment of a recipe in the folder of all environments."""
        return cls(recipe, (folder or environments_folder()) / recipe.name)

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.path / "bin" / "python"

    @property
    def record(self) -> dict[str, Any]:
        """Return what its preparation wrote down; empty without one."""
        try:
            found = json.loads((self.path / RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def state(self) -> Literal["missing", "incomplete", "stale", "ready"]:
        """Return whether it can be used. It is stale when its recipe has changed, or its Python is gone."""
        if not self.path.is_dir():
            return "missing"
        if not self.record:
            return "incomplete"
        return "ready" if self.record.get("recipe") == self.recipe.hash and self.python.exists() else "stale"

    def require(self, name: str) -> None:
        """Raise Failure with the command that helps, unless the environment is ready.

        Args:
            name: what ``lotts-search verifier-env`` calls it.
        """
        what = {
            "missing": "is not prepared",
            "incomplete": "was not prepared to the end",
            "stale": "is stale: its recipe has changed since it was prepared, or its Python is gone",
        }
        if (state := self.state) != "ready":
            raise Failure(
                f"the environment {self.recipe.name} of verifier {name!r} {what[state]} ({self.path}); "
                f"run: lotts-search verifier-env {name}"
            )


def prepare(
    environment: Environment,
    *,
    python: Path | None = None,
    on_step: Callable[[float, str], None] = lambda share, what: None,
) -> dict[str, Any]:
    """Create an environment, in place of an earlier one, and return its record.

    Args:
        environment: which.
        python: interpreter to make it from; None = the running one.
        on_step: called with the share of the work that is done (0..1) and what comes next.

    Raises:
        BadInput: the recipe does not fit this Python.
        Failure: pip fails; the message has its last lines. The environment is removed.
    """
    recipe, path = environment.recipe, environment.path
    version = _version(python) if python else "{}.{}".format(*sys.version_info)
    if recipe.python and version not in recipe.python:
        raise BadInput(
            f"the environment {recipe.name} needs Python {' or '.join(recipe.python)}, not {version}; "
            "--python names another interpreter"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with FileLock(f"{path}.lock", timeout=0):
            shutil.rmtree(path, ignore_errors=True)
            try:
                _fill(environment, python, on_step)
                record = {
                    "recipe": recipe.hash,
                    "python": version,
                    "packages": _run([*_pip(environment), "freeze"], environment).splitlines(),
                    "seconds": round(time.monotonic() - began, 1),
                    "bytes": sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir()),
                }
                with replacing(path / RECORD) as temporary:
                    temporary.write_text(json.dumps(record, indent=1))
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    except Timeout as error:
        raise Failure(f"another process prepares the environment {recipe.name} now ({path}.lock)") from error
    return record


def _fill(environment: Environment, python: Path | None, on_step: Callable[[float, str], None]) -> None:
    recipe, path = environment.recipe, environment.path
    parts = len(recipe.steps) + 2
    on_step(0.0, "create the virtual environment")
    if python:
        _run([str(python), "-m", "venv", "--without-pip", str(path)], environment)
    else:
        venv.create(path, symlinks=True)
    lock: list[str] = []
    if recipe.lock:
        (path / "lock.txt").write_text(recipe.lock)
        lock = ["-c", str(path / "lock.txt")]
    for number, step in enumerate(recipe.steps):
        on_step((number + 1) / parts, f"install {', '.join(step.install)}")
        options = [*lock, "--no-input", "--no-warn-script-location", *(["--no-deps"] if step.no_deps else [])]
        _run([*_pip(environment), "install", *options, *step.install], environment)
    on_step((parts - 1) / parts, "complete its files")
    packages = Path(_run([str(environment.python), "-c", _WHERE], environment).strip())
    for file in recipe.files:
        to = packages / file.to
        to.parent.mkdir(parents=True, exist_ok=True)
        if file.copy is not None:
            if not (packages / file.copy).is_file():
                raise Failure(f"the environment {recipe.name} has no file {file.copy} to copy to {file.to}")
            shutil.copyfile(packages / file.copy, to)
        else:
            to.write_text(file.text or "")


_WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def _pip(environment: Environment) -> list[str]:
    return [sys.executable, "-m", "pip", "--python", str(environment.python), "--disable-pip-version-check"]


def _run(command: list[str], environment: Environment) -> str:
    """Run a command and return its output; what it prints goes to the log of the environment."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, check=False, env=variables, text=True, capture_output=True, errors="replace")
    except OSError as error:
        raise Failure(f"{command[0]} cannot be run: {error.strerror}") from error
    with open(f"{environment.path}.log", "a") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if not line.startswith("WARNING")]
        shown = "\n  ".join(lines[-SHOWN:])
        raise Failure(
            f"the environment {environment.recipe.name} cannot be prepared: {' '.join(command[:3])} … ended with code "
            f"{done.returncode}; the log is {environment.path}.log\n  {shown}"
        )
    return done.stdout


def _version(python: Path) -> str:
    try:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        return subprocess.run([str(python), "-c", code], text=True, capture_output=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BadInput(f"--python {python} is not a Python interpreter: {error}") from error
