"""PickScore: CLIP ViT-H/14 trained on choices of users between two images. torch is imported when it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lotts_search.verifiers.clip import Clip, CosineVerifier
from lotts_search.verifiers.networks import Dtype

if TYPE_CHECKING:
    import torch


class PickScore(CosineVerifier):
    """``pickscore`` of Kirstain et al. 2023: e^s·cos of the embeddings of prompt and image, with the model's scale s; -100..100,
    usual values are 18..24. The difference of two images' scores is the log-odds that a user prefers the first.
    """

    name = "pickscore"

    @classmethod
    def load(
        cls,
        *,
        weights: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 16,
    ) -> PickScore:
        """Load the verifier.

        Args:
            weights: the model in transformers' format, with safetensors: a folder or Hub id.
            tokenizer: folder or Hub id of its tokenizer; none = that of the weights, or OpenAI's if they have none.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the network.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        return cls(Clip.load(cls.name, weights, device, dtype, batch, tokenizer=tokenizer))

    def scaled(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return e^s·cos."""
        scale: torch.Tensor = self.clip.model.logit_scale.float().exp()
        return scale * cosines
