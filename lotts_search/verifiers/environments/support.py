"""What verifiers of packages share. It runs in their environments, where torch and huggingface-hub are installed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from lotts_search.errors import BadInput


def find_weights(verifier: str, weights: str, name: str) -> Path:
    """Return a file of weights: ``weights`` itself, the file ``name`` of the folder ``weights``, or that of a Hub id.

    Raises:
        BadInput: there is none, or the Hub cannot be reached and the file was never downloaded.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / name
    if path.is_file():
        return path
    if Path(weights).exists() or weights.count("/") != 1:
        raise BadInput(f"verifier {verifier}: there is no file {path} (weights)")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(weights, name))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"verifier {verifier}: {weights} is no file or folder, and has no {name} on the Hub: {reason}; "
            f"{verifier}:weights=PATH uses a local file"
        ) from error


def sizes_beside(weights: Path, key: str) -> dict[str, Any]:
    """Return the config.json beside a file of weights, if it has ``key``; empty for the published sizes."""
    file = weights.parent / "config.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found if key in found else {}


def import_torchvision() -> None:
    """Import torchvision, also a build for another torch, whose own operators do not load.

    Its import describes two of these operators to torch and fails where they do not exist. Scoring uses its transforms
    only.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        import torch

        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        make: Any = torch.library.Library
        library = make("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        importlib.import_module("torchvision")


_kept: list[Any] = []
"""Declarations of operators, which end with their library."""


def random_weights(network: Any, seed: int) -> dict[str, Any]:
    """Return small random weights for a network, by name: a checkpoint for tests.

    Those of norms are near 1, all others normal with the standard deviation 1/√fan-in, so that images differ in their
    scores.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Any] = {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            state[name] = value  # positions
            continue
        scale = 0.05 if value.ndim < 2 else value[0].numel() ** -0.5
        norm = value.ndim == 1 and name.endswith("weight")
        state[name] = torch.empty(value.shape).normal_(float(norm), scale, generator=generator)
    return state
