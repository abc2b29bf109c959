"""HPSv2 as its own package computes it, in an environment of its own. torch is imported when it is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.verifiers.environments.support import (
    find_weights,
    import_torchvision,
    random_weights,
    sizes_beside,
)

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2},
}
"""Sizes of a checkpoint for tests, in the format of open_clip."""


class HPSv2Package:
    """``hpsv2-package``: HPSv2 by the package hpsv2 1.2.0 itself, the reference of ``hpsv2``.

    Slower than that one: it scores image by image.
    """

    name = "hpsv2-package"
    requirements: tuple[str, ...] = ()
    environment = "hpsv2-package"
    pad = False

    def __init__(self, package: Any, batch: int):
        self.package = package
        self.batch = batch

    @classmethod
    def load(
        cls, *, weights: str = "xswu/HPSv2", device: str = "cpu", batch: int = 16, timeout: float = 300.0
    ) -> HPSv2Package:
        """Load the verifier. A config.json of open_clip beside the weights gives other sizes than ViT-H-14.

        Args:
            weights: a .pt file, or a folder or Hub id with HPS_v2.1_compressed.pt.
            device: torch device, e.g. cpu or cuda.
            batch: most images in one call.
            timeout: seconds that one call may take.

        Raises:
            BadInput: the weights are missing.
        """
        import torch

        file = find_weights(cls.name, weights, "HPS_v2.1_compressed.pt")
        package = _package()
        warnings.filterwarnings("ignore", category=FutureWarning, module="hpsv2")
        with torch.device("meta"):
            model, transform = _network(sizes_beside(file, "vision_cfg"))
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        model.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)
        # The causal mask, no weight of the checkpoint, is still on the meta device.
        model.attn_mask = torch.full(model.attn_mask.shape, float("-inf")).triu(1)
        # For each call the package would load the checkpoint again, over weights that it downloads.
        model.load_state_dict = lambda _: None
        package.torch = _TorchWithoutLoad(torch)
        package.device = device
        package.model_dict.update(model=model.to(device), preprocess_val=transform)
        return cls(package, batch)

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        from PIL import Image

        scores = [
            self.package.score(Image.fromarray(image), prompt, cp="loaded")[0]
            for prompt, image in zip(prompts, images, strict=True)
        ]
        return np.array(scores, np.float32)

    @classmethod
    def rehearse(cls, folder: str, small: bool = True) -> dict[str, object]:
        """Write a random checkpoint in the published format and return the settings that load it.

        Args:
            folder: an empty folder.
            small: of two narrow layers; otherwise of the published sizes (2 GB).
        """
        import torch

        _package()
        if small:
            (Path(folder) / "config.json").write_text(json.dumps(SMALL))
        with torch.device("meta"):
            model, _ = _network(SMALL if small else {})
        weights = {name: value.half() for name, value in random_weights(model, seed=0).items()}
        torch.save({"state_dict": weights}, Path(folder) / "HPS_v2.1_compressed.pt")
        # The package's vocabulary in transformers' format, for other verifiers.
        from hpsv2.src.open_clip.tokenizer import SimpleTokenizer  # type: ignore[import-not-found]

        tokenizer = SimpleTokenizer()
        merges = "\n".join(" ".join(pair) for pair in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get))
        special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {special.get(token, token): number for token, number in tokenizer.encoder.items()}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        (Path(folder) / "tokenizer_config.json").write_text("{}")
        return {"weights": folder}


class _TorchWithoutLoad:
    """The module torch as the package sees it; ``load`` returns nothing new."""

    def __init__(self, torch: Any):
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def load(self, *_: object, **__: object) -> dict[str, None]:
        return {"state_dict": None}


def _package() -> Any:
    import_torchvision()
    from hpsv2 import img_score  # type: ignore[import-not-found]

    return img_score


def _network(sizes: dict[str, Any]) -> tuple[Any, Any]:
    """Return the package's network and its preparation of images, as ``initialize_model`` makes them, without weights."""
    from hpsv2.src.open_clip import factory  # type: ignore[import-not-found]

    if sizes:
        factory._MODEL_CONFIGS["ViT-H-14"] = {key: sizes[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    model, _, transform = factory.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="meta", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    return model, transform
