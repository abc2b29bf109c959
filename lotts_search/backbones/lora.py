"""Merge LoRA adapters into a model's weights with the loader of diffusers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers

from lotts_search.backbones.load_options import Adapter
from lotts_search.backbones.model_folder import load_component
from lotts_search.errors import BadInput, Failure


def merge_adapters(model: str, kind: str, parts: dict[str, Any], adapters: Sequence[Adapter]) -> None:
    """Merge adapters one after another into the weights of a pipeline's modules. Safetensors only.

    Args:
        model: name of the model in messages.
        kind: name of a diffusers pipeline that loads LoRA adapters.
        parts: arguments of its constructor, including the modules.
        adapters: adapters in the order of merging.

    Raises:
        BadInput: an adapter does not exist, or has no weights for this kind of model.
        Failure: peft is missing, or an adapter cannot be read or does not fit.
    """
    if not adapters:
        return
    if importlib.util.find_spec("peft") is None:
        raise Failure("LoRA adapters need peft: pip install 'lotts-search[lora]'")
    with _without_warnings():
        pipeline = getattr(diffusers, kind)(**parts)
    for adapter in adapters:
        load_component(model, f"LoRA adapter {adapter.source}", partial(_merge, model, pipeline, adapter))


def _merge(model: str, pipeline: Any, adapter: Adapter) -> None:
    source, options = _locate(adapter.source)
    with _without_warnings():
        pipeline.load_lora_weights(source, adapter_name="adapter", use_safetensors=True, **options)
    if not pipeline.get_list_adapters():
        raise BadInput(f"the LoRA adapter {adapter.source} has no weights for model {model}: it is of another family")
    pipeline.fuse_lora(lora_scale=adapter.scale)
    pipeline.unload_lora_weights()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings: diffusers warns if an adapter has no weights for a text encoder, as most do; transformers warns
    of missing torchvision when a pipeline's class is imported."""
    logs = [logging.getLogger(name) for name in ("diffusers.loaders.lora_base", "transformers")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _locate(source: str) -> tuple[str, dict[str, str]]:
    """Return the arguments of diffusers' loader: a folder or Hub id, and the name of the file if it is known."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BadInput(f"a LoRA adapter must be a .safetensors file, got {source}")
        return str(path.parent), {"weight_name": path.name}
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.safetensors"))
        if not files:
            raise BadInput(f"the folder {source} has no .safetensors file, so no LoRA adapter")
        if len(files) > 1:
            raise BadInput(f"the folder {source} has several adapters, name one: {', '.join(files)}")
        return str(path), {"weight_name": files[0]}
    words = source.split("/")
    if path.is_absolute() or source.startswith((".", "~")) or len(words) < 2:
        raise BadInput(f"there is no LoRA adapter {source}, neither a file nor a folder")
    return "/".join(words[:2]), {"weight_name": "/".join(words[2:])} if len(words) > 2 else {}
