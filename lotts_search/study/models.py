"""What can be known of a model before it is loaded: its own settings, and whether its files are the same."""

from __future__ import annotations

import pkgutil
from functools import cache
from hashlib import blake2b
from pathlib import Path

from lotts_search import registry
from lotts_search.backbones.base import Defaults
from lotts_search.budget import Costs, scaled
from lotts_search.errors import LottsError, unknown
from lotts_search.study.spec import ModelEntry

EDGE = 1 << 16
"""Bytes at both ends of a large file that tell it from others."""


def check(model: str) -> None:
    """Raises BadInput where there can be no such model."""
    if model not in registry.models() and not Path(model).is_dir() and "/" not in model:
        raise unknown("model", model, registry.models())


def costs_of(entry: ModelEntry) -> Costs | None:
    """What trials cost on a model; None where only loading it can tell."""
    defaults = _defaults(entry.model)
    if defaults is None:
        return None
    steps = entry.sampling.get("steps", defaults.steps)
    guidance = entry.sampling.get("guidance", defaults.guidance)
    return Costs(steps, guidance > 1, scaled(defaults, steps))


@cache
def _defaults(model: str) -> Defaults | None:
    known = registry.models()
    folder = known[model].target if model in known else model
    from lotts_search.backbones.folder import defaults_of, read_json

    try:
        family = registry.family_target(str(read_json(folder, "model_index.json").get("_class_name")))
        usual = getattr(pkgutil.resolve_name(family.partition(":")[0]), "DEFAULTS", None)
        return defaults_of(folder, usual) if isinstance(usual, Defaults) else None
    except (LottsError, ImportError):
        return None


@cache
def fingerprint(model: str) -> str:
    """A hash of a model folder's files: of the names, sizes, and contents (of large files: of both ends). Empty for a
    model that is no folder here."""
    known = registry.models()
    folder = Path(known[model].target if model in known else model)
    if not folder.is_dir():
        return ""
    digest = blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(EDGE))
            if size > EDGE:
                file.seek(max(EDGE, size - EDGE))
                digest.update(file.read(EDGE))
    return digest.hexdigest()
