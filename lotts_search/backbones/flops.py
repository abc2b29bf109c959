"""Floating-point operations, counted by torch on copies of networks without weights, so that the device does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(make: Callable[[], Any], call: Callable[[Any], object]) -> float:
    """Count the floating-point operations of a call of a network. A multiplication with an addition is two; only matrix
    products, convolutions and attention count.

    Args:
        make: makes the network; tensors that it creates are on the meta device.
        call: calls the network; likewise.
    """
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        network = make()
        with counter:
            call(network)
    return float(counter.get_total_flops())


def count_part(part: Any, call: Callable[[Any], object]) -> float:
    """Count the floating-point operations of a call of a diffusers model, on a copy that its config makes."""
    return count_flops(lambda: type(part).from_config(dict(part.config)), call)
