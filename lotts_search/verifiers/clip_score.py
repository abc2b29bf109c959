"""CLIP score: how well an image matches its prompt by CLIP. torch is imported when it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lotts_search.verifiers.clip import OPENAI, Clip, CosineVerifier
from lotts_search.verifiers.networks import Dtype

if TYPE_CHECKING:
    import torch


class ClipScore(CosineVerifier):
    """``clip-score``: max(100·cos, 0) of the embeddings of prompt and image, 0..100; usual values are 20..35.

    CLIPScore of Hessel et al. 2021 is w·max(cos, 0) with w = 2.5 and ViT-B/32; torchmetrics' CLIPScore, whose scale and
    default model this is, has w = 100 and ViT-L/14.
    """

    name = "clip-score"

    @classmethod
    def load(
        cls,
        *,
        weights: str = OPENAI,
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 16,
    ) -> ClipScore:
        """Load the verifier.

        Args:
            weights: CLIP in transformers' format, with safetensors: a folder or Hub id.
            tokenizer: folder or Hub id of its tokenizer; none = that of the weights.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the network.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        return cls(Clip.load(cls.name, weights, device, dtype, batch, tokenizer=tokenizer))

    def scaled(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return max(100·cos, 0)."""
        return (100 * cosines).clamp(min=0)
