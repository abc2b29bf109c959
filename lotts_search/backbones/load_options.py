"""Options for loading a model, the same for every family. Plain data; imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from lotts_search.errors import BadInput, unknown

DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("model", "sequential")
_FLAGS = ("vae_slicing", "vae_tiling", "compile", "channels_last")
_TEXTS = ("preview", "revision", "variant", "name")
_DEVICE = re.compile(r"cpu|(cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        source: a ``.safetensors`` file, a folder, a Hub id ``owner/name``, or one file of it, ``owner/name/file``.
        scale: factor of its weights; 1 = as trained.
    """

    source: str
    scale: float = 1.0

    @classmethod
    def read(cls, given: object) -> Self:
        """Return an adapter from an adapter, ``(source, scale)``, or the text ``SOURCE`` or ``SOURCE:SCALE``.

        Raises:
            BadInput: ``given`` is none of these.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            source, colon, scale = given.rpartition(":")
            try:
                given = (source, float(scale)) if colon else (given, 1.0)
            except ValueError:
                given = (given, 1.0)
        if isinstance(given, Sequence) and len(given) == 2 and given[0] and isinstance(given[0], str):
            try:
                found = cls(given[0], float(given[1]))
            except (TypeError, ValueError):
                found = None
            if found is not None and math.isfinite(found.scale):
                return found
        raise BadInput(f"a LoRA adapter is SOURCE or SOURCE:SCALE, got {given!r}")

    @classmethod
    def read_all(cls, given: object) -> list[Self]:
        """Return the adapters of an option ``lora``: one, or a list of them, each as for :meth:`read`.

        Raises:
            BadInput: one of them is none.
        """
        return [cls.read(one) for one in (given if isinstance(given, list | tuple) else [given])]


@dataclass(frozen=True)
class LoadOptions:
    """The keyword arguments of every family's ``from_pretrained``. Build it with :meth:`of`.

    Attributes:
        device: torch device, None = CUDA if available.
        dtype: precision of all weights: ``float32``, ``bfloat16`` or ``float16``. An autoencoder stays in
            float32 instead of float16 if its config sets ``force_upcast``, and for SDXL unless its config denies it.
        size: height and width of the images in pixels, None = the model's own.
        lora: adapters, merged into the weights at loading, so that a step costs the same.
        vae_slicing: decode and encode the images of a batch one by one: less memory, same images.
        vae_tiling: decode and encode large images in overlapping tiles: less memory, slightly different images.
        offload: keep weights in CPU memory. ``model``: one of text encoders, network and autoencoder at a time is on
            the device. ``sequential``: one layer at a time; least memory, much slower.
        spread: number of GPUs, 2 or more, from ``device`` on, that hold the weights together, see
            :mod:`lotts_search.backbones.spread`; None = one device.
        preview: folder or Hub id of an AutoencoderTiny that decodes unfinished candidates.
        compile: compile the network's repeated blocks (``torch.compile`` by diffusers' ``compile_repeated_blocks``). The
            first calls take minutes, all later ones are faster. Not with sequential offloading.
        channels_last: keep the weights of convolutions in channels-last format, so that confined calls of a U-Net need not
            rearrange them. Other kernels compute whole calls: the same images up to rounding.
        revision, variant: as in diffusers.
        name: name of the model in results, None = the argument of ``from_pretrained``.
    """

    device: str | None = None
    dtype: str = "float32"
    size: tuple[int, int] | None = None
    lora: tuple[Adapter, ...] = ()
    vae_slicing: bool = False
    vae_tiling: bool = False
    offload: str | None = None
    spread: int | None = None
    preview: str | None = None
    compile: bool = False
    channels_last: bool = False
    revision: str | None = None
    variant: str | None = None
    name: str | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Return options from keyword arguments; ``lora`` may be texts, ``dtype`` and ``device`` objects of torch.

        Raises:
            BadInput: an unknown option or an invalid value.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name == "device_map":
                raise BadInput(
                    "device_map is not an option: spread=2 spreads a model over two GPUs. On one device, less memory is needed with a "
                    "smaller dtype, vae_tiling, offload='model' or offload='sequential'"
                )
            if name not in known:
                raise unknown("option of a model", name, known)
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if name in _FLAGS and not isinstance(value, bool):
                raise BadInput(f"{name} must be true or false, got {value!r}")
            if name in _TEXTS and not (isinstance(value, str) and value):
                raise BadInput(f"{name} must be a text, got {value!r}")
        if "dtype" in given:
            given["dtype"] = str(given["dtype"]).removeprefix("torch.")
            if given["dtype"] not in DTYPES:
                raise BadInput(f"dtype must be float32, bfloat16 or float16, got {options['dtype']!r}")
        if "device" in given:
            given["device"] = str(given["device"])
            if not _DEVICE.fullmatch(given["device"]):
                raise BadInput(f"device must be cpu, cuda or cuda:N, got {given['device']!r}")
        if given.get("offload", "model") not in OFFLOADS:
            raise BadInput(f"offload must be {' or '.join(OFFLOADS)}, got {given['offload']!r}")
        if given.get("compile") and given.get("offload") == "sequential":
            raise BadInput("compile cannot be combined with offload='sequential', which moves layers in every call")
        if "spread" in given:
            _check_spread(given)
        if "lora" in given:
            given["lora"] = tuple(Adapter.read_all(given["lora"]))
        if "size" in given:
            size = given["size"]
            if not (isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int for side in size)):
                raise BadInput(f"size must be (height, width) in pixels, got {size!r}")
            given["size"] = (size[0], size[1])
        return cls(**given)


def _check_spread(given: Mapping[str, Any]) -> None:
    count = given["spread"]
    if type(count) is not int or count < 2:
        raise BadInput(f"spread must be the number of GPUs that hold the model together, 2 or more, got {count!r}")
    if not given.get("device", "cuda").startswith("cuda"):
        raise BadInput(f"spread={count} is for GPUs: device must be cuda or cuda:N, got {given['device']!r}")
    for other in ("offload", "compile"):
        if given.get(other):
            raise BadInput(f"spread cannot be combined with {other}: leave one of them out")


def with_absolute_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a model for a process with another working directory: files and folders that exist here, of
    adapters and of the preview decoder, by their absolute paths.

    Raises:
        BadInput: a text for an adapter is none, see :meth:`Adapter.read`.
    """
    given = dict(options)
    if given.get("preview"):
        given["preview"] = _absolute(given["preview"])
    if given.get("lora"):
        given["lora"] = [(_absolute(adapter.source), adapter.scale) for adapter in Adapter.read_all(given["lora"])]
    return given


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source
