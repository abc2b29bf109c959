"""MUSIQ as the package pyiqa computes it, in an environment of its own. torch is imported when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput
from lotts_search.verifiers.environments.support import find_weights, import_torchvision, random_weights, sizes_beside

SMALL = {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "num_layers": 2}
"""Sizes of a checkpoint for tests, as pyiqa names them."""


class Musiq:
    """``musiq``: the quality of an image as people would rate it (Ke et al. 2021, "MUSIQ: Multi-scale image quality
    transformer"), 0..100 with the checkpoint of KonIQ-10k. It ignores the prompt.

    By the package pyiqa 0.1.16, whose licence allows noncommercial use only (PolyForm Noncommercial).
    """

    name = "musiq"
    requirements: tuple[str, ...] = ()
    environment = "musiq"
    pad = False

    def __init__(self, model: Any, device: str, batch: int):
        self.model, self.device, self.batch = model, device, batch

    @classmethod
    def load(
        cls,
        *,
        weights: str = "chaofengc/IQA-PyTorch-Weights",
        device: str = "cpu",
        batch: int = 16,
        timeout: float = 300.0,
    ) -> Musiq:
        """Load the verifier. A config.json beside the weights gives other sizes than the published ones.

        Args:
            weights: a .pth file, or a folder or Hub id with musiq_koniq_ckpt-e95806b9.pth.
            device: torch device, e.g. cpu or cuda.
            batch: most images in one call.
            timeout: seconds that one call may take.

        Raises:
            BadInput: the weights are missing, or those of another network.
        """
        import torch

        file = find_weights(cls.name, weights, "musiq_koniq_ckpt-e95806b9.pth")
        stored = torch.load(file, map_location="cpu", weights_only=True)
        found = {name.removeprefix("module."): value for name, value in stored.items()}  # trained on several GPUs
        classes = len(found["head.0.weight"]) if "head.0.weight" in found else 1  # AVA's has a rating's distribution
        model = _network(classes, sizes_beside(file, "num_layers"))
        try:
            model.load_state_dict(found)
        except RuntimeError as error:
            raise BadInput(f"{file} has other weights than MUSIQ: {str(error).splitlines()[-1].strip()}") from error
        return cls(model.to(device).eval(), device, batch)

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores [B] of uint8 images [B, h, w, 3]; ``prompts`` [B] do not count."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self.device) / 255
        with torch.inference_mode():
            scores: npt.NDArray[np.float32] = self.model(pixels)[:, 0].float().cpu().numpy()
        return scores

    @classmethod
    def rehearse(cls, folder: str, small: bool = True) -> dict[str, object]:
        """Write a random checkpoint in the published format and return the settings that load it.

        Args:
            folder: an empty folder.
            small: of two narrow layers; otherwise of the published sizes (0.1 GB).
        """
        import torch

        sizes: dict[str, Any] = SMALL if small else {}
        if small:
            (Path(folder) / "config.json").write_text(json.dumps(sizes))
        weights = random_weights(_network(1, sizes), seed=0)
        torch.save(weights, Path(folder) / "musiq_koniq_ckpt-e95806b9.pth")
        return {"weights": folder}


def _network(classes: int, sizes: dict[str, Any]) -> Any:
    import_torchvision()
    from pyiqa.archs.musiq_arch import MUSIQ  # type: ignore[import-not-found]

    return MUSIQ(pretrained=False, num_class=classes, **sizes)
