"""CLIP, on which four verifiers build: embeddings of prompts and images, their cosine, and scores made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lotts_search.backbones.model_folder import load_weights, read_json
from lotts_search.errors import BadInput, Failure
from lotts_search.verifiers.networks import Tokens, distinct, in_batches, place
from lotts_search.verifiers.pixels import MEAN, STD, cropped, normalized
from lotts_search.verifiers.weights import find_folder
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    import torch

OPENAI = "openai/clip-vit-large-patch14"
"""CLIP ViT-L/14 of Radford et al. 2021, with its tokenizer."""


@dataclass
class Clip:
    """A CLIP model with its preprocessing.

    Attributes:
        model: transformers' CLIPModel.
        tokens: its tokenizer; None where only images are embedded.
        pixels: makes the model's input [B, 3, side, side] of uint8 images [B, h, w, 3].
        batch: most images or prompts in one call of the model.
    """

    model: Any
    tokens: Tokens | None
    pixels: Callable[[Bytes], torch.Tensor]
    batch: int

    @classmethod
    def load(
        cls,
        verifier: str,
        weights: str,
        device: str,
        dtype: str,
        batch: int,
        *,
        tokenizer: str | None = None,
        texts: bool = True,
        setting: str = "weights",
        half: Callable[[float], int] = int,
    ) -> Clip:
        """Load a folder or Hub repository in transformers' format.

        Args:
            verifier: name of the verifier in messages.
            weights: the folder or Hub id, the value of the setting ``setting``.
            tokenizer: folder or Hub id of the tokenizer; None = that of ``weights``, or OpenAI's if it has none.
            texts: whether prompts are embedded.
            half: rounding of the crop, see :func:`~lotts_search.verifiers.pixels.cropped`.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        folder = find_folder(verifier, weights, setting=setting)
        where, precision = place(verifier, device, dtype)
        kind = read_json(str(folder), "config.json").get("model_type")
        if kind != "clip":
            raise BadInput(
                f"verifier {verifier}: {setting} must be a CLIP model (clip), and {weights} is one of type {kind}"
            )
        from transformers import CLIPModel

        try:
            model = load_weights(str(folder), "", CLIPModel, dtype=precision).to(where)
        except Failure as error:
            raise Failure(f"verifier {verifier}: {error}") from error
        limit = model.config.text_config.max_position_embeddings
        tokens = Tokens(verifier, "CLIPTokenizer", folder, tokenizer, OPENAI, limit) if texts else None
        processor = read_json(str(folder), "preprocessor_config.json", optional=True)
        mean, std = processor.get("image_mean", MEAN), processor.get("image_std", STD)
        side = model.config.vision_config.image_size
        return cls(model, tokens, lambda images: normalized(cropped(images, side, half), mean, std), batch)

    def image_features(self, images: Bytes) -> torch.Tensor:
        """Return the features float32 [B, d] of uint8 images [B, h, w, 3], as CLIP projects them."""

        def call(rows: slice) -> torch.Tensor:
            pixels = self.pixels(images[rows]).to(self.model.device, self.model.dtype)
            embedded: torch.Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
            return embedded

        return in_batches(call, len(images), self.batch)

    def embed_images(self, images: Bytes) -> torch.Tensor:
        """Return the embeddings float32 [B, d] of uint8 images [B, h, w, 3], of length 1."""
        from torch.nn import functional

        return functional.normalize(self.image_features(images), dim=-1)

    def embed_prompts(self, prompts: list[str]) -> torch.Tensor:
        """Return the embeddings float32 [B, d] of prompts, of length 1; equal prompts are embedded once."""
        from torch.nn import functional

        assert self.tokens is not None
        once, places = distinct(prompts)
        # Attention is causal, so that padding after the end token changes nothing and needs no mask.
        ids = self.tokens(once)["input_ids"].to(self.model.device)

        def call(rows: slice) -> torch.Tensor:
            embedded: torch.Tensor = self.model.get_text_features(input_ids=ids[rows]).pooler_output
            return embedded

        return functional.normalize(in_batches(call, len(once), self.batch), dim=-1)[places]

    def cosines(self, prompts: list[str], images: Bytes) -> torch.Tensor:
        """Return the cosines float32 [B] of prompts and images."""
        return (self.embed_prompts(prompts) * self.embed_images(images)).sum(dim=-1)

    def flops(self, texts: bool = True) -> float:
        """Count the floating-point operations of embedding an image, with ``texts`` also those of a prompt of full length."""
        import torch
        from transformers import CLIPModel

        from lotts_search.backbones.flops import count_flops

        config, side = self.model.config, self.model.config.vision_config.image_size
        length = config.text_config.max_position_embeddings

        def call(model: Any) -> None:
            model.get_image_features(pixel_values=torch.empty(1, 3, side, side))
            if texts:
                model.get_text_features(input_ids=torch.empty(1, length, dtype=torch.int64))

        return count_flops(lambda: CLIPModel(config), call)


class CosineVerifier:
    """The part that ``clip-score``, ``hpsv2`` and ``pickscore`` share: a score is a function of CLIP's cosine of prompt and
    image. A subclass has a ``name`` and loads its model.
    """

    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, clip: Clip):
        self.clip = clip
        self.batch = clip.batch

    @cached_property
    def flops(self) -> float:
        """Those of an image with a prompt of full length; a call with several images of one prompt embeds it once."""
        return self.clip.flops()

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores float32 [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        scores: Floats = self.scaled(self.clip.cosines(prompts, images)).cpu().numpy()
        return scores

    def scaled(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return the scores [B] of cosines [B]."""
        return cosines
