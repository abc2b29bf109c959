"""Find a verifier's weights in a file, a folder or the Hub's cache, and read them; imports torch only to read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from lotts_search.backbones.model_folder import is_path, reachable
from lotts_search.errors import BadInput, Failure

if TYPE_CHECKING:
    import torch

_TEXTS = ["*.json", "*.txt"]
"""Configurations and vocabularies of a repository."""


def find_file(verifier: str, weights: str, name: str) -> Path:
    """Return a file of weights: ``weights`` itself, the file ``name`` of the folder ``weights``, or that of a Hub id.

    Args:
        verifier: name of the verifier in messages.

    Raises:
        BadInput: there is no such file, folder or repository.
        Failure: the file is not in the Hub's cache, and the Hub cannot be reached.
    """
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        # The same weights may have been stored anew as safetensors.
        found = [file for file in (path / name, *sorted(path.glob("*.safetensors"))) if file.is_file()]
        if not found:
            raise BadInput(f"verifier {verifier}: the folder {weights} has no {name} and no .safetensors file")
        return found[0]
    return Path(_from_hub(verifier, "weights", weights, name, lambda **o: hf_hub_download(weights, name, **o)))


def find_folder(verifier: str, source: str, *, setting: str = "weights") -> Path:
    """Return a folder in transformers' format: ``source`` itself, or the repository of a Hub id in the Hub's cache.

    Args:
        verifier: name of the verifier in messages.
        setting: the setting that gave ``source``; of a ``tokenizer`` no weights are downloaded.

    Raises:
        BadInput, Failure: as for :func:`find_file`.
    """
    path, needed = Path(source).expanduser(), "config.json" if setting != "tokenizer" else "tokenizer_config.json"
    if path.is_file():
        raise BadInput(
            f"verifier {verifier}: {setting} must be a folder in transformers' format, not the file {source}"
        )
    if not path.is_dir():
        patterns = _TEXTS if setting == "tokenizer" else [*_TEXTS, "model*.safetensors"]
        path = Path(
            _from_hub(
                verifier, setting, source, needed, lambda **o: snapshot_download(source, allow_patterns=patterns, **o)
            )
        )
    if not (path / needed).is_file():
        raise BadInput(f"verifier {verifier}: {source} is no folder in transformers' format: it has no {needed}")
    return path


def _from_hub(verifier: str, setting: str, source: str, file: str, load: Callable[..., str]) -> str:
    """Return what ``load`` finds in the Hub's cache, or downloads if the Hub answers."""
    advice = f"{verifier}:{setting}=PATH uses local files"
    if is_path(source) or source.count("/") != 1:
        raise BadInput(f"verifier {verifier}: there is no file or folder {source} ({setting})")
    try:
        return load(local_files_only=not reachable(source))
    except LocalEntryNotFoundError as error:
        raise Failure(
            f"verifier {verifier}: {file} of {source} was never downloaded, and the Hub cannot be reached; {advice}"
        ) from error
    except EntryNotFoundError as error:
        raise BadInput(f"verifier {verifier}: {source} on the Hub has no {file}; {advice}") from error
    except GatedRepoError as error:
        raise BadInput(
            f"verifier {verifier}: {source} is gated: accept its terms on the Hub, and log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise BadInput(
            f"verifier {verifier}: there is no {source}, neither as a folder nor on the Hub; {advice}"
        ) from error


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file or a checkpoint of torch, by name; they are mapped from the file.

    Raises:
        Failure: the file is broken, or holds more than tensors and plain values.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Only files in the zip format, torch's since 1.6, can be mapped.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(f"{file} cannot be read as a file of weights: {reason}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise Failure(f"{file} holds no weights by name, but a {type(found).__name__}")
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def fill(
    network: torch.nn.Module,
    file: Path,
    published: Callable[[str], tuple[str, Callable[[torch.Tensor], torch.Tensor]]],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Give a network that was built without memory the weights of a file, in evaluation mode. Other weights of the file are
    ignored.

    Args:
        network: built under ``accelerate.init_empty_weights(include_buffers=False)``.
        published: returns the name in the file of one of the network's weights, and what makes the weight from it.
        weights: what :func:`read_weights` returned for the file; None = it is read here.

    Raises:
        BadInput: weights are missing from the file, or have other shapes.
        Failure: the file is broken.
    """
    weights = read_weights(file) if weights is None else weights
    wanted: Mapping[str, Any] = {name: (value, *published(name)) for name, value in network.state_dict().items()}
    if missing := sorted({key for _, key, _ in wanted.values()} - weights.keys()):
        raise BadInput(f"{file} has other weights: {len(missing)} are missing, {_some(missing)}")
    made = {name: make(weights[key]) for name, (_, key, make) in wanted.items()}
    shapes = [
        f"{key} {list(made[name].shape)} instead of {list(value.shape)}"
        for name, (value, key, _) in wanted.items()
        if made[name].shape != value.shape
    ]
    if shapes:
        raise BadInput(
            f"{file} has weights of other shapes: {_some(shapes)}; a config.json beside it may give other sizes"
        )
    network.load_state_dict(made, assign=True)
    network.eval().requires_grad_(False)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
