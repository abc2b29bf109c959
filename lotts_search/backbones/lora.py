"""LoRA adapters, merged into a model's weights by diffusers' own loader."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers

from lotts_search.backbones.folder import load_component
from lotts_search.backbones.options import Adapter
from lotts_search.errors import BadInput, Failure


def merge_adapters(model: str, kind: str, parts: dict[str, Any], adapters: Sequence[Adapter]) -> None:
    """Merge adapters one after another into the weights of a pipeline's modules. Safetensors only.

    Args:
        model: its name, for messages.
        kind: name of a diffusers pipeline that loads LoRA adapters.
        parts: what its constructor takes, the modules among it.
        adapters: in the order in which they are merged.

    Raises:
        BadInput: there is no such adapter, or it holds nothing for this kind of model.
        Failure: peft is missing, or an adapter cannot be read or does not fit.
    """
    if not adapters:
        return
    if importlib.util.find_spec("peft") is None:
        raise Failure("LoRA adapters need peft: pip install 'lotts-search[lora]'")
    with _without_remarks():
        pipeline = getattr(diffusers, kind)(**parts)
    for adapter in adapters:
        source, options = _located(adapter.source)

        def load(source: str = source, options: dict[str, str] = options) -> None:
            with _without_remarks():
                pipeline.load_lora_weights(source, adapter_name="adapter", use_safetensors=True, **options)

        what = f"LoRA adapter {adapter.source}"
        load_component(model, what, load)
        if not pipeline.get_list_adapters():
            raise BadInput(f"the {what} holds no weights for model {model}: it is of another family")
        load_component(model, what, lambda scale=adapter.scale: pipeline.fuse_lora(lora_scale=scale))  # type: ignore[misc]
        pipeline.unload_lora_weights()


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """diffusers warns of every text encoder for which an adapter has nothing, as most have; transformers warns of
    missing torchvision as soon as a pipeline's class is imported."""
    logs = [logging.getLogger(name) for name in ("diffusers.loaders.lora_base", "transformers")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _located(source: str) -> tuple[str, dict[str, str]]:
    """What diffusers' loader takes: a folder, or a hub id, and the name of the file in it if it is known."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BadInput(f"a LoRA adapter must be a .safetensors file, got {source}")
        return str(path.parent), {"weight_name": path.name}
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.safetensors"))
        if not files:
            raise BadInput(f"the folder {source} holds no .safetensors file, so no LoRA adapter")
        if len(files) > 1:
            raise BadInput(f"the folder {source} holds several adapters, name one: {', '.join(files)}")
        return str(path), {"weight_name": files[0]}
    words = source.split("/")
    if path.is_absolute() or source.startswith((".", "~")) or len(words) < 2:
        raise BadInput(f"there is no LoRA adapter {source}, neither a file nor a folder")
    return "/".join(words[:2]), {"weight_name": "/".join(words[2:])} if len(words) > 2 else {}
