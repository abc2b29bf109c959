"""Fingerprints: they change with every byte that decides a search, and with nothing else."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lotts_search import fingerprint
from lotts_search.core.strategy import Strategy
from lotts_search.strategies.lotts import LoTTS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fingerprint._known.cache_clear()


def overwrite(path: Path, at: int, byte: int) -> None:
    """Change one byte and put the file's time back, as a careless tool may."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("size", [10, 200_000, fingerprint.BLOCK + 7])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_byte_anywhere_in_a_models_files(tmp_path: Path, size: int, place: float) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    weights = folder / "unet" / "diffusion.safetensors"
    weights.write_bytes(bytes(size))
    (folder / "model_index.json").write_text("{}")
    before = fingerprint.of_model(str(folder))
    assert fingerprint.of_model(str(folder)) == before
    overwrite(weights, int(size * place), 1)
    changed = fingerprint.of_model(str(folder))
    assert changed != before
    overwrite(weights, int(size * place), 0)
    assert fingerprint.of_model(str(folder)) == before
    weights.rename(weights.with_name("other.safetensors"))
    assert fingerprint.of_model(str(folder)) not in (before, changed)


def test_a_copy_is_the_same_and_a_note_beside_it_too(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "two" / "README.md").write_text("a note")
    assert fingerprint.of_model(str(tmp_path / "one")) == fingerprint.of_model(str(tmp_path / "two"))


def test_what_cannot_be_looked_at_is_unchecked() -> None:
    assert fingerprint.of_model("nobody/has-this-model") == fingerprint.UNCHECKED
    here = type("Here", (Strategy,), {"__module__": "no_such_module"})
    assert fingerprint.of_code(here) == fingerprint.UNCHECKED


@pytest.mark.parametrize("option", ["lora", "lora with scale", "preview"])
def test_files_that_load_options_name(tmp_path: Path, option: str) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(bytes(300_000))
    options = {
        "lora": {"lora": [str(file)]},
        "lora with scale": {"lora": [f"{file}:0.5"]},
        "preview": {"preview": str(file)},
    }[option]
    before = fingerprint.of_options(options)
    overwrite(file, 150_000, 1)
    assert fingerprint.of_options(options) != before
    assert fingerprint.of_options({"dtype": "float16"}) == {"dtype": "float16"}


def package(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / "plug_in_of_a_test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FILES = {
    "__init__.py": "",
    "judge.py": "from . import helper\nclass Judge:\n    name = 'judge'\n",
    "helper.py": "from plug_in_of_a_test.deep.table import TABLE\n",
    "deep/__init__.py": "",
    "deep/table.py": "TABLE = [1]\n",
    "unrelated.py": "",
}


@pytest.mark.parametrize(
    ("file", "changes"),
    [("judge.py", True), ("helper.py", True), ("deep/table.py", True), ("__init__.py", True), ("unrelated.py", False)],
)
def test_the_source_of_a_plug_in_and_of_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, changes: bool
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, FILES)

    def found() -> str:
        for name in [name for name in sys.modules if name.startswith("plug_in_of_a_test")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return fingerprint.of_code(importlib.import_module("plug_in_of_a_test.judge").Judge)

    before = found()
    assert found() == before != fingerprint.UNCHECKED
    package(tmp_path, {file: FILES[file] + "# edited\n"})
    assert (found() != before) is changes


def test_a_newer_version_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.of_code(LoTTS)
    fingerprint.of_code.cache_clear()
    assert fingerprint.of_code(LoTTS) == before
    fingerprint.of_code.cache_clear()
    monkeypatch.setattr("lotts_search.__version__", "99.0")
    assert fingerprint.of_code(LoTTS) != before
    fingerprint.of_code.cache_clear()


def test_hashes_of_large_files_are_kept_and_small_changes_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(fingerprint.BLOCK))
    before = fingerprint.of_path(file)
    kept = (tmp_path / "cache" / "lotts-search" / "hashes.json").read_text()
    assert before in kept
    fingerprint._known.cache_clear()
    assert fingerprint.of_path(file) == before
    (tmp_path / "cache" / "lotts-search" / "hashes.json").write_text("{broken")
    fingerprint._known.cache_clear()
    assert fingerprint.of_path(file) == before


@dataclass
class Inner:
    """A plug-in among settings."""

    file: Path | str | None = None


@dataclass
class Outer:
    """A strategy with plug-ins and files among its settings."""

    parts: tuple[Inner, ...] = ()
    folder: Path | None = None
    name: str = "lotts"


def test_files_and_plug_ins_among_settings_count_by_their_contents(tmp_path: Path) -> None:
    file, folder = tmp_path / "mask.png", tmp_path / "folder"
    folder.mkdir()
    file.write_bytes(b"one")
    (folder / "a.txt").write_text("one")

    def found() -> tuple[str, ...]:
        return tuple(fingerprint.of_settings(Outer((Inner(str(file)), Inner()), folder)))

    before = found()
    assert len(before) == 5, "three classes, a file and a folder"
    assert found() == before
    file.write_bytes(b"two")
    other = found()
    assert sum(a != b for a, b in zip(before, other, strict=True)) == 1
    (folder / "a.txt").write_text("two")
    assert sum(a != b for a, b in zip(other, found(), strict=True)) == 1
    assert fingerprint.of_settings(Outer(name="a name")) == fingerprint.of_settings(Outer())
    assert fingerprint.of_settings(Outer((Inner("none.png"),))) == fingerprint.of_settings(Outer((Inner(),)))
