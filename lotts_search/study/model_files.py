"""What is known of a model before it is loaded: the cost of its trials, and whether its files have changed."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lotts_search import registry
from lotts_search.backbones.defaults import defaults_of
from lotts_search.backbones.image_size import latent_size, token_side
from lotts_search.core.costs import Costs
from lotts_search.core.strategy import Strategy
from lotts_search.errors import LottsError
from lotts_search.study.spec import ModelEntry
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Sampling

UNKNOWN = (0, 0, 0)
"""The latent size of a model whose files do not tell it."""


def costs_of(entry: ModelEntry, image: bool = False) -> Costs | None:
    """Return the cost of trials on a model; None where only loading it can tell, or its files cannot be read. FLOPs are known
    only as those of a published model.

    Args:
        image: whether searches start from a given image.

    Raises:
        BadInput: the sampling settings do not fit the model.
    """
    info = _known(entry)
    return None if info is None else Costs.of(info, Sampling.of(info, "", **entry.sampling), image=image)


def check_settings(strategy: Strategy, name: str, entry: ModelEntry, image: bool) -> None:
    """Refuse settings of a strategy that cannot work on a model, before the model is loaded, as far as its files tell its
    sizes. A strategy of another package may look at more of it, and is asked when it is loaded.

    Args:
        name: of the strategy.
        image: whether the search starts from a given image.

    Raises:
        BadInput: as :meth:`~lotts_search.core.strategy.Strategy.check`.
    """
    info, costs = _known(entry), costs_of(entry, image)
    if info is not None and costs is not None and info.latent != UNKNOWN and name in registry.own_strategies():
        strategy.check(costs, info)


def _known(entry: ModelEntry) -> ModelInfo | None:
    """Return what is known of a model: its settings, and its sizes where its files tell them. Its prices are known where it is
    priced as a published model."""

    def read(file: str) -> dict[str, Any]:
        return read_json(entry.model, file, entry.options.get("revision"))

    try:
        found = defaults_of(entry.model, read)
    except LottsError:  # the error surfaces when the model is loaded
        return None
    if found is None:
        return None
    defaults, embedded = found
    image = registry.model_image_size(entry.model, entry.options) or (0, 0)
    latent = latent_size(image, read) or UNKNOWN
    side = token_side(str(read("model_index.json").get("_class_name")), read)
    if side is not None and entry.options.get("compile"):
        side = 0
    confines = None if latent == UNKNOWN else side
    return ModelInfo(entry.label, "", latent, image, entry.prices(), defaults, embedded, confines=confines)


def folder_of(model: str) -> Path | None:
    """Return the folder of a model's files; None for a hub id."""
    known = registry.models()
    folder = Path(known[model].target if model in known else model)
    return folder if folder.is_dir() else None


@cache
def read_json(model: str, file: str, revision: str | None = None) -> dict[str, Any]:
    """Return a JSON file of a model, downloaded for a hub id; {} where there is none."""
    folder = folder_of(model)
    if folder is None:
        from lotts_search.backbones.model_folder import read_json as read  # slow to import

        with suppress(LottsError):
            return read(model, file, optional=True, revision=revision)
        return {}
    try:
        found = json.loads((folder / file).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
