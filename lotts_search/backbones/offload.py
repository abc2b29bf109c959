"""Keep weights in CPU memory and copy them to the device when needed, with hooks of accelerate."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module


class _TakeTurns(ModelHook):  # type: ignore[misc]
    """Move a module to the device before it runs, and the previous module back to the CPU.

    accelerate's own chain of hooks expects a fixed order (text, network, autoencoder), which an engine does not have.
    """

    def __init__(self, device: torch.device, present: list[Any]):
        self.device, self.present = device, present

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not self.present or self.present[0] is not module:
            for other in self.present:
                other.to("cpu")
            self.present[:] = [module]
            module.to(self.device)
        return args, kwargs


def offload(modules: list[Any], how: str, device: torch.device) -> None:
    """Keep the weights of ``modules`` on the CPU, but let them compute on ``device``.

    Args:
        modules: modules on the CPU.
        how: ``model`` (one module at a time on the device) or ``sequential`` (one layer at a time).
        device: device of inputs and outputs.
    """
    present: list[Any] = []
    for module in modules:
        if how == "model":
            add_hook_to_module(module, _TakeTurns(device, present))
        else:
            cpu_offload(module, device, offload_buffers=True)
