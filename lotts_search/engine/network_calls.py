"""Calls of the network, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone
from lotts_search.engine.cuda_graphs import RecordedNetwork
from lotts_search.work.fitting import Fitting

SpecialCall: TypeAlias = Callable[[Tensor, Tensor, Any, slice], Tensor]
"""Calls the network with latents, timesteps and stacked conditionings of some rows of a call, and with what rows they are."""


class NetworkCalls:
    """Calls a backbone's network.

    Args:
        recorded: record calls as CUDA graphs.
    """

    def __init__(self, backbone: Backbone, recorded: bool):
        self._backbone = backbone
        self._network: Backbone | RecordedNetwork = RecordedNetwork(backbone) if recorded else backbone
        self._stacked: tuple[list[Any], Any] = ([], None)
        self._fitting = Fitting(f"the network of {backbone.info.name}")

    def predict(
        self, inputs: Tensor, times: Tensor, conditionings: list[Any], special: SpecialCall | None = None
    ) -> Tensor:
        """Return the output for rows of latents [B, C, H, W], timesteps [B] and conditionings; valid until the next call.

        Args:
            special: calls the network in another way, never as a graph.
        """

        def part(rows: slice) -> Tensor:
            if special is not None:
                return special(inputs[rows], times[rows], self._backbone.stack(conditionings[rows]), rows)
            if rows == slice(0, len(inputs)):
                return self._network.predict(inputs, times, self._stack(conditionings))
            # A recorded output would be overwritten by the next part.
            return self._backbone.predict(inputs[rows], times[rows], self._backbone.stack(conditionings[rows]))

        parts = self._fitting.run(len(inputs), part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stack(self, conditionings: list[Any]) -> Any:
        """Return the stacked conditionings, cached from the last call while they are the same."""
        last, stacked = self._stacked
        if len(last) != len(conditionings) or any(a is not b for a, b in zip(last, conditionings, strict=True)):
            stacked = self._backbone.stack(conditionings)
            self._stacked = conditionings, stacked
        return stacked
