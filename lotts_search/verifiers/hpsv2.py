"""HPSv2: CLIP ViT-H/14 trained on human preferences. torch is imported when it is loaded."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotts_search.backbones.model_folder import read_json
from lotts_search.verifiers.clip import OPENAI, Clip, CosineVerifier
from lotts_search.verifiers.networks import Dtype, Tokens, place
from lotts_search.verifiers.pixels import normalized, padded
from lotts_search.verifiers.weights import fill, find_file, read_weights
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    import torch

PUBLISHED: Mapping[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""Sizes of ViT-H-14, in the format of open_clip."""
_NAMES = {
    r"^vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"^vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"^vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"^vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"^vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    r"^vision_model\.post_layernorm\.": "visual.ln_post.",
    r"^visual_projection\.weight": "visual.proj",
    r"^text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.final_layer_norm\.": "ln_final.",
    r"^text_projection\.weight": "text_projection",
    r"\.layer_norm(\d)\.": r".ln_\1.",
    r"\.self_attn\.[qkv]_proj\.": ".attn.in_proj_",
    r"\.self_attn\.out_proj\.": ".attn.out_proj.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
}
"""What to replace in transformers' names of weights to get those of open_clip, in this order."""
_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


class HPSv2(CosineVerifier):
    """``hpsv2`` of Wu et al. 2023, version 2.1: cosine of the embeddings of prompt and image, -1..1; usual values are
    0.2..0.35. Images keep their aspect ratio and are padded with black to a square.
    """

    name = "hpsv2"

    @classmethod
    def load(
        cls,
        *,
        weights: str = "xswu/HPSv2",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 16,
    ) -> HPSv2:
        """Load the verifier. A config.json of open_clip beside the weights gives other sizes than ViT-H-14.

        Args:
            weights: a .pt or .safetensors file, or a folder or Hub id with HPS_v2.1_compressed.pt.
            tokenizer: folder or Hub id of CLIP's tokenizer; none = that beside the weights, or OpenAI's.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the network; the published weights are in float16.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        file = find_file(cls.name, weights, "HPS_v2.1_compressed.pt")
        where, precision = place(cls.name, device, dtype)
        sizes = _sizes(file.parent)
        found = read_weights(file)  # first: a broken file is named, whether there is a tokenizer or not
        limit = sizes["text_cfg"]["context_length"]
        tokens = Tokens(cls.name, "CLIPTokenizer", file.parent, tokenizer, OPENAI, limit)
        from accelerate import init_empty_weights
        from transformers import CLIPModel

        with init_empty_weights(include_buffers=False):
            model = CLIPModel(_config(sizes, tokens.tokenizer))
        fill(model, file, published, found)
        model = model.to(where, precision)
        side = sizes["vision_cfg"]["image_size"]
        return cls(Clip(model, tokens, lambda images: normalized(padded(images, side)), batch))

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores float32 [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        return super().score([cleaned(prompt) for prompt in prompts], images)


def cleaned(prompt: str) -> str:
    """Return a prompt as CLIP's own tokenizer reads it: HTML entities decoded and quotes straightened. Garbled encodings are
    left as they are.
    """
    return html.unescape(html.unescape(prompt.translate(_QUOTES)))


def published(name: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return open_clip's name of a weight of transformers' CLIPModel, and what makes the latter from the former."""
    key = name
    for pattern, replacement in _NAMES.items():
        key = re.sub(pattern, replacement, key)
    if key in ("visual.proj", "text_projection"):
        return key, lambda value: value.T.contiguous()
    if part := re.search(r"\.([qkv])_proj\.", name):
        return key, lambda value: value.chunk(3)["qkv".index(part[1])]
    return key, lambda value: value


def _sizes(folder: Path) -> Mapping[str, Any]:
    """Return the sizes in a config.json of open_clip, or the published ones where the folder has none."""
    found = read_json(str(folder), "config.json", optional=True)
    found = found.get("model_cfg", found)
    return found if "vision_cfg" in found else PUBLISHED


def _config(sizes: Mapping[str, Any], tokenizer: Any) -> Any:
    """Return transformers' CLIPConfig of sizes in the format of open_clip."""
    from transformers import CLIPConfig

    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    shared = {"projection_dim": sizes["embed_dim"], "hidden_act": "quick_gelu" if sizes.get("quick_gelu") else "gelu"}
    return CLIPConfig(
        projection_dim=sizes["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **shared,
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **shared,
        },
    )
