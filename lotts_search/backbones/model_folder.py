"""Read a model in diffusers format, from a folder or the Hub; each problem raises one clear message."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, list_repo_files, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from lotts_search.backbones.single_file import refuse_file
from lotts_search.errors import BadInput, Failure, LottsError, notice

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds that the Hub may take to answer."""
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(.+))?\.safetensors")
"""A file of weights without its shard's number, and its variant."""


def is_path(source: str) -> bool:
    """Whether a name can only be a path, not a Hub id."""
    return Path(source).is_absolute() or source.startswith((".", "~")) or source.endswith((".safetensors", ".ckpt"))


def reachable(model: str) -> bool:
    """Whether the Hub answers, asked once: the libraries retry for half a minute."""
    try:
        get_hf_file_metadata(hf_hub_url(model, "model_index.json"), timeout=PATIENCE)
    except HfHubHTTPError:  # an answer
        return True
    except Exception:
        return False
    return True


def weight_variants(model: str, revision: str | None = None) -> dict[str, set[str | None]]:
    """Return the variants of each component's safetensors, None for plain files; {} where there are none."""
    folder = Path(model)
    if folder.is_dir() or not reachable(model):
        if not folder.is_dir():
            cached = try_to_load_from_cache(model, "model_index.json", revision=revision)
            folder = Path(cached).parent if isinstance(cached, str) else folder
        files = [file.relative_to(folder).as_posix() for file in folder.glob("*/*")]
    else:
        try:
            files = list_repo_files(model, revision=revision)
        except HfHubHTTPError as error:
            raise Failure(f"model {model}: the Hub does not list its files ({str(error).splitlines()[0]})") from error
    found: dict[str, set[str | None]] = {}
    for file in files:
        component, _, name = file.partition("/")
        if match := _WEIGHTS.fullmatch(re.sub(r"-\d+-of-\d+", "", name)):
            found.setdefault(component, set()).add(match[1])
    return found


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
    elif Path(model).is_file():
        raise refuse_file(Path(model))
    elif is_path(model) or model.count("/") != 1:
        raise BadInput(f"there is no model folder {model}")
    else:
        try:
            path = Path(hf_hub_download(model, file, revision=revision, local_files_only=not reachable(model)))
        except LocalEntryNotFoundError as error:
            if optional and isinstance(try_to_load_from_cache(model, "model_index.json", revision=revision), str):
                if try_to_load_from_cache(model, file, revision=revision) is None:
                    notice(f"model {model}: the Hub cannot be reached, so a {file} that it may have is not read")
                return {}
            raise Failure(f"model {model}: no folder of that name, and the Hub cannot be reached") from error
        except EntryNotFoundError as error:
            if optional:
                return {}
            raise BadInput(f"model {model} on the Hub has no {file}") from error
        except GatedRepoError as error:
            raise BadInput(
                f"model {model} is gated: accept its terms on the Hub, and log in with `hf auth login`"
            ) from error
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
    """Disable the progress bars of the libraries, which would disturb our own display, and the tables in which transformers
    lists missing weights: what is wrong is raised."""
    from diffusers.utils import logging as diffusers_logging  # slow to import; a wrong name is refused before
    from transformers.utils import logging as transformers_logging

    libraries = [transformers_logging, diffusers_logging]
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
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
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # what follows a colon may stand below it
        raise Failure(f"model {model}: cannot load its {component}: {what[:300]}") from error


def load_weights(model: str, component: str, cls: Any, **options: Any) -> Any:
    """Load a diffusers or transformers model from the folder's ``component`` ("" = the folder itself): safetensors only,
    in evaluation mode.

    Raises:
        Failure: a file is missing or broken, or weights are missing from it.
    """

    def load() -> Any:
        inside = {"subfolder": component} if component else {}
        module, report = cls.from_pretrained(model, use_safetensors=True, output_loading_info=True, **inside, **options)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, first {missing[0]}")
        return module.eval().requires_grad_(False)

    return load_component(model, component or "weights", load)
