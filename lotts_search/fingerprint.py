"""Fingerprints of everything that decides a search, so that no result is reused after one of them has changed.

A name such as ``my-model`` or ``my_package.judge:Judge`` says where something lies, not what it is. A fingerprint is a
hash of the contents: of every byte of a model's files, and of the source of a plug-in with the modules of its own
package that it imports. What cannot be looked at, e.g. a repository on the hub that was never downloaded, has the
fingerprint :data:`UNCHECKED`, and a report of reused results says so.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lotts_search
from lotts_search.work.replacing import replacing

UNCHECKED = "unchecked"
"""The fingerprint of what cannot be looked at."""
FORMAT = 4
"""Part of the ids of searches. Increment it when the same arguments begin to mean another search: no old trial is reused then."""
BLOCK = 1 << 22
"""Bytes read at a time."""


def of_path(path: Path) -> str:
    """Fingerprint a file, or all files of a folder by their names and contents, READMEs and caches left out.

    Contents are hashed once: hashes are kept in the user's cache by path, size, times and inode.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_file():
        return _file_hash(path)
    digest = blake2b(digest_size=8)
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix not in (".md", ".pyc"))
    for file in sorted(files):
        digest.update(f"{file.relative_to(path).as_posix()} {_file_hash(file)}\n".encode())
    return digest.hexdigest()


def of_model(source: str, revision: str | None = None, folder: Path | None = None) -> str:
    """Fingerprint a model, a LoRA adapter or a preview decoder: a file, a folder or a hub id.

    Args:
        source: as the user named it.
        folder: where a registered name lies.

    Returns:
        The hash of its files; of a hub id the commit that is in the hub's cache, or :data:`UNCHECKED`.
    """
    path = folder or Path(source).expanduser()
    if path.exists():
        return of_path(path)
    return _commit(source, revision) or UNCHECKED


def of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprint the load options of a model: their values, and the contents of the files that they name."""
    found = dict(options)
    for source in [*(options.get("lora") or ()), *filter(None, [options.get("preview")])]:
        name = getattr(source, "source", source)
        path, _, scale = str(name).rpartition(":")
        if path and _is_number(scale):
            name = path
        found[f"contents of {name}"] = of_model(str(name))
    return found


def of_settings(value: object) -> list[str]:
    """Fingerprint the code of a strategy, a mask source or a rewriter and of the plug-ins among its settings.

    The settings themselves are not looked at, except for paths of files and folders, which count by their contents.
    """
    if isinstance(value, list | tuple):
        return [found for part in value for found in of_settings(part)]
    if isinstance(value, str | Path):
        with suppress(OSError, ValueError):
            if Path(value).exists() and (os.sep in str(value) or Path(value).suffix):
                return [of_path(Path(value))]
        return []
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    found = [of_code(type(value))]
    method = getattr(value, "method", "")
    if isinstance(method, str) and ":" in method:
        found.append(_of_module(method.partition(":")[0]))
    return found + [part for field in dataclasses.fields(value) for part in of_settings(getattr(value, field.name))]


@cache
def of_named(target: str) -> str:
    """Fingerprint the class ``package.module:Class`` of a verifier: its code, and the files in the folder that its module
    names ``FOLDER``. :data:`UNCHECKED` where it cannot be imported, e.g. because only its actor has its requirements.
    """
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return UNCHECKED
    code = of_code(found if isinstance(found, type) else type(found))
    folder = getattr(sys.modules.get(target.partition(":")[0]), "FOLDER", None)
    files = of_path(folder) if isinstance(folder, Path) and folder.is_dir() else ""
    return UNCHECKED if code == UNCHECKED else combined([code, files])


@cache
def of_code(kind: type[Any]) -> str:
    """Fingerprint a class: its package's version for ours, for others the source of its module and of the modules of
    the same package that it imports, and of those of its bases.

    A class whose source cannot be found, e.g. one defined in a notebook or a shell, is :data:`UNCHECKED`.
    """
    modules = dict.fromkeys(base.__module__ for base in kind.__mro__)
    return _all_of([_of_module(module) for module in modules])


def _all_of(parts: list[str]) -> str:
    return UNCHECKED if UNCHECKED in parts else combined(parts)


def _of_module(module: str) -> str:
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return ""
    if package == "lotts_search":
        return lotts_search.__version__
    files = _sources(module, _origin(module))
    return combined([f"{file.name} {_file_hash(file)}" for file in sorted(files)]) if files else UNCHECKED


def combined(parts: Iterable[object]) -> str:
    """Hash values that JSON can hold, and others by their text."""
    text = json.dumps(list(parts), sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _sources(module: str, file: Path | None) -> set[Path]:
    """The files of a module and of all modules of its top-level package that it imports, directly or not."""
    package = module.partition(".")[0]
    found: set[Path] = set()
    waiting = [(module, file)] if file else []
    while waiting:
        name, path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for wanted in _imports(name, path):
            if wanted.partition(".")[0] == package and (origin := _origin(wanted)):
                waiting.append((wanted, origin))
    return found


def _imports(module: str, path: Path) -> Iterable[str]:
    """The modules that a source file imports, and for ``from a import b`` both ``a`` and ``a.b``."""
    is_package = path.name == "__init__.py"
    parents = module.split(".") if is_package else module.split(".")[:-1]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _origin(module: str) -> Path | None:
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            return Path(spec.origin)
    return None


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _commit(repository: str, revision: str | None) -> str:
    """The commit of a hub repository in the hub's cache; "" where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError, OSError):
        for file in ("model_index.json", "config.json", "adapter_config.json"):
            found = try_to_load_from_cache(repository, file, revision=revision)
            if isinstance(found, str):
                return Path(found).relative_to(Path(found).parents[1]).parts[0]
    return ""


# Hashes of contents, kept between processes: a published model has tens of gigabytes.


def _file_hash(path: Path) -> str:
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    known = _known()
    if key not in known:
        digest = blake2b(digest_size=16)
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        known[key] = digest.hexdigest()
        if status.st_size >= BLOCK:
            _keep(known)
    return known[key]


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lotts-search" / "hashes.json"


@cache
def _known() -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(_cache_file().read_text())
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _keep(known: Mapping[str, str]) -> None:
    """Write the hashes of large files; a cache that cannot be written is no error."""
    with suppress(OSError), replacing(_cache_file()) as temporary:
        temporary.write_text(json.dumps(known))
