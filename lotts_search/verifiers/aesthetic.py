"""The LAION aesthetic predictor: a linear head on CLIP's image embedding. torch is imported when it is loaded."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lotts_search.verifiers.clip import OPENAI, Clip
from lotts_search.verifiers.networks import Dtype, in_batches, linear_stack
from lotts_search.verifiers.weights import fill, find_file
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    import torch


class Aesthetic:
    """``aesthetic``: the mean rating, about 1..10, that people would give an image (Schuhmann et al. 2022, LAION-5B; the predictor
    ``sac+logos+ava1-l14-linearMSE``). It ignores the prompt.
    """

    name = "aesthetic"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, clip: Clip, head: torch.nn.Module):
        self.clip = clip
        self.head = head
        self.batch = clip.batch

    @classmethod
    def load(
        cls,
        *,
        weights: str = "camenduru/improved-aesthetic-predictor",
        clip: str = OPENAI,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 16,
    ) -> Aesthetic:
        """Load the verifier.

        Args:
            weights: the head: a .pth or .safetensors file, or a folder or Hub id with sac+logos+ava1-l14-linearMSE.pth. The
                default is a copy of that file from the repository christophschuhmann/improved-aesthetic-predictor on GitHub.
            clip: CLIP ViT-L/14 in transformers' format, with safetensors: a folder or Hub id.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of CLIP; the head computes in float32.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        file = find_file(cls.name, weights, "sac+logos+ava1-l14-linearMSE.pth")
        # The head was trained on the embeddings of OpenAI's package, which crops as torchvision does.
        tower = Clip.load(cls.name, clip, device, dtype, batch, texts=False, setting="clip", half=round)
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            head = linear_stack(tower.model.config.projection_dim)
        fill(head, file, lambda name: (f"layers.{name}", lambda value: value))
        return cls(tower, head.to(tower.model.device).float())

    @cached_property
    def flops(self) -> float:
        """Those of CLIP's image tower; the head's few do not count."""
        return self.clip.flops(texts=False)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3]; ``prompts`` [B] do not count."""
        embedded = self.clip.embed_images(images)
        scores: Floats = in_batches(lambda rows: self.head(embedded[rows])[:, 0], len(images), self.batch).cpu().numpy()
        return scores.astype(np.float32, copy=False)
