"""Devices that this machine does not have: tensors compute on the CPU and say that they are elsewhere.

An operation whose tensors are on different devices fails, as it does on GPUs; so results show that each tensor was moved to where
it is used, and they have the bits of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "lazy"
"""Type of the devices, one for which nothing here has code of its own."""
DEVICES = [torch.device(KIND, 0), torch.device(KIND, 1), torch.device(KIND, 2)]
MOVES = ("aten::_to_copy", "aten::to", "aten::copy_", "aten::_has_compatible_shallow_copy_type")
"""Operations that may read from another device."""
INDEXES = ("aten::index", "aten::index_put_")
"""Operations of which some tensors may be on the CPU."""


class Elsewhere(Tensor):
    """A tensor on such a device.

    Attributes:
        here: the same on the CPU.
        at: its device.
    """

    here: Tensor
    at: torch.device

    @staticmethod
    def __new__(cls, here: Tensor, where: torch.device) -> Self:
        form = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made: Any = Tensor._make_wrapper_subclass(cls, here.size(), **form, device=here.device, dispatch_device=True)  # type: ignore[attr-defined]
        made.here, made.at = here, where
        return made  # type: ignore[no-any-return]

    def __init__(self, here: Tensor, where: torch.device): ...

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets tensors begin on such a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Moves what torch makes of numbers, which no other mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func is torch.tensor else None
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
            args = args[0], places, *args[2:]
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return args[0].at
    schema, leaves = func._schema, tree_leaves((args, kwargs))
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    away = {leaf.at for leaf in leaves if isinstance(leaf, Elsewhere)}
    plain = any(isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and leaf.ndim for leaf in leaves)
    if schema.name not in MOVES and (len(away) > 1 or (away and plain and schema.name not in INDEXES)):
        raise RuntimeError(
            f"{func} mixes tensors on {', '.join(map(str, sorted(away, key=str)))}{' and cpu' if plain else ''}"
        )
    target = named.get("device")
    if isinstance(other := named.get("other"), Tensor) and schema.name == "aten::to":
        target = other.device
    if target is not None:
        target = torch.device(target)
        where = target if target.type == KIND else None
    else:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        where = getattr(first, "at", None) if schema.name in MOVES else next(iter(away), None)

    def here(leaf: Any) -> Any:
        if isinstance(leaf, Elsewhere):
            return leaf.here
        return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == KIND else leaf

    made = func(*tree_map(here, args), **tree_map(here, dict(kwargs)))
    known = {id(leaf.here): leaf for leaf in leaves if isinstance(leaf, Elsewhere) and leaf.at == where}

    def there(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or where is None:
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf, where)

    return tree_map(there, made)


@contextmanager
def pretended_devices() -> Iterator[None]:
    """Let torch have the devices :data:`DEVICES` inside the block."""
    swapping: Callable[[bool], None] = torch.__future__.set_swap_module_params_on_conversion
    swapping(True)  # modules cannot put such tensors into parameters
    try:
        with torch.inference_mode(), _Mode(), _Literals():
            yield
    finally:
        swapping(False)
