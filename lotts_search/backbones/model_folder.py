"""Read a model in diffusers format, from a folder or the Hub; each problem raises one clear message."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers.utils import logging as transformers_logging

from lotts_search.errors import BadInput, Failure, LottsError

T = TypeVar("T")


def read_json(model: str, file: str, *, optional: bool = False, revision: str | None = None) -> dict[str, Any]:
    """Return a JSON object of a model folder or Hub repository; {} if it is optional and missing.

    Raises:
        BadInput: the model or the file does not exist.
        Failure: the file is not a JSON object, or the Hub cannot be reached.
    """
    if Path(model).is_dir():
        path = Path(model) / file
        if not path.is_file():
            if optional:
                return {}
            raise BadInput(f"{model} is not a model folder: it has no {file}")
    elif Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise BadInput(f"there is no model folder {model}")
    else:
        try:
            path = Path(hf_hub_download(model, file, revision=revision))
        except LocalEntryNotFoundError as error:
            raise Failure(f"model {model}: no folder of that name, and the Hub cannot be reached") from error
        except EntryNotFoundError as error:
            if optional:
                return {}
            raise BadInput(f"model {model} on the Hub has no {file}") from error
        except (HfHubHTTPError, HFValidationError) as error:
            raise BadInput(f"there is no model {model}, neither as a folder nor on the Hub") from error
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise Failure(f"model {model}: {file} is broken ({error})") from error
    if not isinstance(value, dict):
        raise Failure(f"model {model}: {file} is not a JSON object")
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bars of the libraries, which would disturb our own display."""
    libraries = [transformers_logging, diffusers_logging]
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was in zip(libraries, shown, strict=True):
            if was:
                library.enable_progress_bar()


def load_component(model: str, component: str, load: Callable[[], T]) -> T:
    """Return the result of ``load``; turn its exceptions into a :class:`Failure` that names model and component."""
    try:
        with _quiet():
            return load()
    except LottsError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Failure(f"model {model}: cannot load its {component}: {lines[0]}") from error


def load_weights(model: str, component: str, cls: Any, **options: Any) -> Any:
    """Load a diffusers or transformers model from the folder's ``component`` ("" = the folder itself): safetensors only,
    in evaluation mode.

    Raises:
        Failure: a file is missing or broken, or weights are missing from it.
    """

    def load() -> Any:
        module, report = cls.from_pretrained(
            model, subfolder=component or None, use_safetensors=True, output_loading_info=True, **options
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, first {missing[0]}")
        return module.eval().requires_grad_(False)

    return load_component(model, component or "weights", load)
