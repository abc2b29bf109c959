"""Merge LoRA adapters into a model's weights with the loader of diffusers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from lotts_search.backbones.load_options import Adapter
from lotts_search.backbones.model_folder import is_path, load_component, reachable
from lotts_search.errors import BadInput, Failure, notice


def merge_adapters(model: str, kind: str, parts: dict[str, Any], adapters: Sequence[Adapter]) -> None:
    """Merge adapters one after another into the weights of a pipeline's modules. Safetensors only.

    Args:
        model: name of the model in messages.
        kind: name of a diffusers pipeline that loads LoRA adapters.
        parts: arguments of its constructor, including the modules.
        adapters: adapters in the order of merging.

    Raises:
        BadInput: an adapter does not exist, has no weights for this kind of model, or is broken. A notice reports what of
            an adapter is not used.
        Failure: peft is missing, or an adapter cannot be read or does not fit.
    """
    with _without_warnings():
        pipeline = getattr(diffusers, kind)(**parts)
    for adapter in adapters:
        if not adapter.scale:
            notice(f"the LoRA adapter {adapter.source} has the scale 0, so it changes nothing")
        load_component(model, f"LoRA adapter {adapter.source}", partial(_merge, model, pipeline, adapter))


def check_adapters(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that cannot be read, before anything is loaded.

    Raises:
        BadInput: an adapter does not exist.
        Failure: peft is missing, or the Hub cannot be reached.
    """
    if adapters and importlib.util.find_spec("peft") is None:
        raise Failure("LoRA adapters need peft: pip install 'lotts-search[lora]'")
    for adapter in adapters:
        _locate(adapter.source)


def _merge(model: str, pipeline: Any, adapter: Adapter) -> None:
    source, options = _locate(adapter.source)
    options |= {"use_safetensors": True}
    another = BadInput(f"the LoRA adapter {adapter.source} has no weights for model {model}: it is of another family")
    with _without_warnings():
        network = getattr(pipeline, "unet", None)
        given = pipeline.lora_state_dict(source, **options, **({"unet_config": network.config} if network else {}))
        weights = given[0] if isinstance(given, tuple) else given
        _check(adapter, weights)
        try:
            pipeline.load_lora_weights(source, adapter_name="adapter", **options)
        except (ValueError, IndexError) as error:  # IndexError: a text encoder has none of the layers
            if isinstance(error, ValueError) and "not found in the base model" not in str(error):
                raise
            raise another from error
    if not pipeline.get_list_adapters():
        raise another
    _report_ignored(model, pipeline, adapter, weights, Path(source) / options.get("weight_name", ""))
    pipeline.fuse_lora(lora_scale=adapter.scale)
    pipeline.unload_lora_weights()


def _check(adapter: Adapter, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that diffusers would merge nevertheless: where one of a layer's two matrices is missing, it takes what
    lies in memory."""
    broken = f"the LoRA adapter {adapter.source} is broken:"
    if halves := sorted(_layers(weights) ^ _layers(weights, _UP)):
        raise BadInput(f"{broken} {halves[0]} has only one of its two matrices")
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{broken} {name} has values that are not finite")


def _report_ignored(
    model: str, pipeline: Any, adapter: Adapter, weights: Mapping[str, torch.Tensor], file: Path
) -> None:
    """Report what of an adapter was not merged; diffusers drops layers that do not exist in the model."""
    read = _layers(weights)
    used = {
        _layer(f"{part}.{name}")
        for part, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for name, layer in module.named_modules()
        if any("adapter" in getattr(layer, kind) for kind in getattr(layer, "adapter_layer_names", ()))
    }
    ignored = sorted(read - used)
    if file.is_file():
        with safe_open(file, "numpy") as tensors:
            total = len(_layers(tensors.keys()))
            scales = sum("dora_scale" in name for name in tensors.keys())  # noqa: SIM118, it is no mapping
        if scales:
            notice(
                f"the LoRA adapter {adapter.source}: its {scales} scales of DoRA are not used, which diffusers cannot read in this "
                "form, so images differ from those of its author"
            )
        if total > len(read):  # diffusers found no place for their names
            ignored += [f"{total - len(read)} with unknown names"]
    if ignored:
        shown = ", ".join(ignored[:3]) + (f" and {len(ignored) - 3} more" if len(ignored) > 3 else "")
        notice(f"the LoRA adapter {adapter.source}: model {model} has no place for some of its layers: {shown}")


def _ending(matrix: str, way: str, factor: str) -> re.Pattern[str]:
    ends = rf"lora_{matrix}|lora_{way}|lora\.{way}|lora_linear_layer\.{way}|lokr_{factor}(?:_a)?"
    return re.compile(rf"(?:\.(?:{ends})|_lora\.{way})(?:\.weight)?$")


_DOWN, _UP = _ending("A", "down", "w1"), _ending("B", "up", "w2")
"""End the names of a layer's two matrices in a file of weights, each once per layer."""


def _layers(names: Iterable[str], ending: re.Pattern[str] = _DOWN) -> set[str]:
    return {_layer(ending.sub("", name)) for name in names if ending.search(name)}


def _layer(name: str) -> str:
    """Return the present name of a layer that may be named as older versions of the libraries did."""
    name = name.replace(".processor", "").replace(".text_model", "")
    if name.startswith("text_encoder"):
        return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", name)
    return re.sub(r"\.to_out$", ".to_out.0", name)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the libraries: diffusers warns if an adapter has no weights for a text encoder, as most do, and logs errors
    that it raises; transformers warns of missing torchvision when a pipeline's class is imported."""
    loaders = (f"diffusers.loaders.{name}" for name in ("lora_base", "lora_pipeline", "peft"))
    logs = [logging.getLogger(name) for name in (*loaders, "diffusers.utils.peft_utils", "transformers")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _locate(source: str) -> tuple[str, dict[str, Any]]:
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
    repository, file = "/".join(words[:2]), "/".join(words[2:])
    missing = f"there is no LoRA adapter {source}, neither a file nor a folder"
    try:
        if len(words) < 2 or is_path(repository):
            raise BadInput(missing)
        if reachable(repository):
            return repository, {"weight_name": file} if file else {}
        path = Path(hf_hub_download(repository, file or "pytorch_lora_weights.safetensors", local_files_only=True))
    except HFValidationError as error:
        raise BadInput(missing) from error
    except LocalEntryNotFoundError as error:
        raise Failure(f"{missing}, and the Hub cannot be reached") from error
    return str(path.parent), {"weight_name": path.name}
