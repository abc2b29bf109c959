"""What a joined cluster's workers get of the driver's code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError, RayError

import lotts_search
from lotts_search.actors import connection
from lotts_search.actors.crew import Died
from lotts_search.actors.ray_worker import _classify
from lotts_search.errors import BadInput, Failure


def test_packages_are_copied_to_the_workers_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module as its file, a package as its folder, and this package only where that is asked for."""
    (tmp_path / "my_module.py").write_text("")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(connection, "_check_listening", lambda address: None)
    monkeypatch.setattr(connection, "_warn_if_short", lambda needed: None)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "init", lambda **options: asked.append(options["runtime_env"]))
    mine = [str(tmp_path / "my_module.py"), str(tmp_path / "my_package")]
    ours = str(Path(lotts_search.__file__).resolve().parent)
    connection.connect("head:1", {}, packages=["my_module", "my_package"])
    connection.connect("head:1", {}, packages=["my_module"], ship_code=True)
    connection.connect("head:1", {})
    assert asked == [{"py_modules": mine}, {"py_modules": [ours, mine[0]]}, {}]
    for wrong in ("my_modul", "my_package.part", "sys", ""):
        with pytest.raises(BadInput, match=f"no top-level package or module '{wrong}'"):
            connection.connect("head:1", {}, packages=[wrong])
    assert "my_module" not in sys.modules


@pytest.mark.parametrize(
    ("mode", "hint"), [("token", "is the token (RAY_AUTH_TOKEN, "), ("", "RAY_AUTH_MODE=token is not set here")]
)
@pytest.mark.parametrize(
    "error", [ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"), AuthenticationError("no")]
)
def test_a_cluster_that_does_not_let_one_in_may_want_a_token(
    monkeypatch: pytest.MonkeyPatch, mode: str, hint: str, error: Exception
) -> None:
    """Ray says only that it failed to connect."""

    def refuse(**options: Any) -> None:
        raise error

    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(connection, "_check_listening", lambda address: None)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "init", refuse)
    with pytest.raises(Failure) as found:
        connection.connect("10.0.0.1:6379", {})
    assert hint in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(("module", "how"), [("lotts_search", "ship_code=True"), ("my_masks", "packages=['my_masks']")])
def test_a_module_that_workers_lack_is_no_dead_actor(module: str, how: str) -> None:
    """Trying again elsewhere would not help; the message says what does."""
    error = RayError(f"ModuleNotFoundError: No module named '{module}.part'")
    found = _classify(error)
    assert type(found) is Failure and f"cannot import {module}: " in str(found) and how in str(found)
    assert type(_classify(RayError("the node died"))) is Died
