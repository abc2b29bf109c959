"""ImageReward as its own package computes it, in an environment of its own. torch is imported when it is loaded."""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput
from lotts_search.verifiers.environments.support import (
    find_weights,
    import_torchvision,
    random_weights,
    sizes_beside,
)

TEXT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30524,
}
"""Sizes of the text encoder: the package's med_config.json, which it downloads."""
SMALL = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "vocab_size": 64,
        "encoder_hidden_size": 32,
    },
}
"""Sizes of a checkpoint for tests, in transformers' format."""
UNUSED = ("vision_proj", "text_proj")
"""Layers that scoring does not use; some checkpoints lack them."""
WORDS = ("a red blue green star ring cross on in the snow of with fox two photo " + " ".join("abcdefghij")).split()


class ImageRewardPackage:
    """``image-reward-package``: ImageReward by the package image-reward 1.5 itself, the reference of ``image-reward``.

    Slower than that one: it scores image by image.
    """

    name = "image-reward-package"
    requirements: tuple[str, ...] = ()
    environment = "image-reward-package"
    pad = False

    def __init__(self, model: Any, batch: int):
        self.model = model
        self.batch = batch

    @classmethod
    def load(
        cls,
        *,
        weights: str = "THUDM/ImageReward",
        tokenizer: str | None = None,
        device: str = "cpu",
        batch: int = 16,
        timeout: float = 300.0,
    ) -> ImageRewardPackage:
        """Load the verifier. A config.json of transformers' BLIP beside the weights gives other sizes than BLIP-large.

        Args:
            weights: a .pt file, or a folder or Hub id with ImageReward.pt.
            tokenizer: folder or Hub id of BERT's tokenizer; none = that beside the weights, or bert-base-uncased.
            device: torch device, e.g. cpu or cuda.
            batch: most images in one call.
            timeout: seconds that one call may take.

        Raises:
            BadInput: the weights are missing.
        """
        import torch

        file = find_weights(cls.name, weights, "ImageReward.pt")
        if tokenizer is None:
            tokenizer = str(file.parent) if (file.parent / "vocab.txt").is_file() else "google-bert/bert-base-uncased"
        model = _network(sizes_beside(file, "vision_config"), tokenizer)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        missing = set(model.load_state_dict(found, strict=False, assign=True).missing_keys)
        if missing := {name for name in missing if name.split(".")[1] not in UNUSED and "position_ids" not in name}:
            raise BadInput(f"{file} has other weights: {len(missing)} are missing, e.g. {min(missing)}")
        model.device = device
        return cls(model.to(device).eval(), batch)

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        import torch
        from PIL import Image

        with torch.inference_mode():
            return np.array(
                [
                    self.model.score(prompt, Image.fromarray(image))
                    for prompt, image in zip(prompts, images, strict=True)
                ],
                np.float32,
            )

    @classmethod
    def rehearse(cls, folder: str, small: bool = True) -> dict[str, object]:
        """Write a random checkpoint in the published format, with a small tokenizer, and return the settings that load it.

        Args:
            folder: an empty folder.
            small: of two narrow layers; otherwise of the published sizes (1.8 GB).
        """
        import torch

        place = Path(folder)
        (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
        (place / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
        sizes = SMALL if small else {}
        if small:
            (place / "config.json").write_text(json.dumps(sizes))
        model = _network(sizes, folder)
        torch.save(random_weights(model, seed=0), place / "ImageReward.pt")
        return {"weights": folder}


def _network(sizes: dict[str, Any], tokenizer: str) -> Any:
    """Return the package's network without its downloads: of its configuration and its tokenizer."""
    import_torchvision()
    from ImageReward.models.BLIP import blip, blip_pretrain, vit  # type: ignore[import-not-found]
    from transformers import BertTokenizer

    package: Any = import_module("ImageReward.ImageReward")  # the package has a class of this name, too
    vit.trunc_normal_ = lambda weights, **_: weights  # 40 s for weights that the checkpoint replaces
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda _: BertTokenizer.from_pretrained(tokenizer))
    text = TEXT | dict(sizes.get("text_config", {}))
    config = text | {"type_vocab_size": 2, "add_cross_attention": True, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    if vision := sizes.get("vision_config"):
        made = vit.VisionTransformer(
            img_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
        )
        blip_pretrain.create_vit = lambda *_: (made, vision["hidden_size"])
        mlp = package.MLP
        package.MLP = lambda _: mlp(text["hidden_size"])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        return package.ImageReward(med_config=file.name)
