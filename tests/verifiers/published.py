"""Small random checkpoints of preference models in their published formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from tests.tiny import WORDS, tiny_tokenizer

SIDE, WIDTH, LENGTH = 32, 32, 16
"""Pixels of the vision towers, width of the towers, tokens of a prompt."""
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": LENGTH, "vocab_size": 0, "width": WIDTH, "heads": 4, "layers": 2},
}
BLIP: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8, "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": 64, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 40, "bos_token_id": 2, "sep_token_id": 3,
    },
}  # fmt: skip
HEAD = {"0": (1024, None), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
"""Linear layers of the heads of ImageReward and of the LAION aesthetic predictor: number, (outputs, inputs)."""


class Random:
    """Weights that let inputs matter, by name."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: dict[str, torch.Tensor] = {}

    def normal(self, name: str, *shape: int, std: float | None = None) -> None:
        scale = shape[-1] ** -0.5 if std is None else std
        self.weights[name] = scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.normal(f"{name}.weight", outputs, inputs)
        self.normal(f"{name}.bias", outputs, std=0.3)

    def norm(self, name: str, width: int) -> None:
        self.normal(f"{name}.weight", width, std=0.2)
        self.weights[f"{name}.weight"] += 1
        self.normal(f"{name}.bias", width, std=0.2)

    def head(self, name: str, width: int) -> None:
        for number, (outputs, inputs) in HEAD.items():
            self.linear(f"{name}.{number}", outputs, inputs or width)


def clip_folder(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP in transformers' format: model, tokenizer and image processor."""
    tokenizer = tiny_tokenizer(LENGTH)
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # larger than in training, so that prompts and images matter
                weight.normal_(std=weight.shape[-1] ** -0.5)
        # The two towers share a direction, so that cosines are positive, as in trained models.
        model.text_projection.weight.copy_(model.visual_projection.weight)
        model.text_model.final_layer_norm.bias.normal_(std=1.5)
        model.vision_model.post_layernorm.bias.copy_(model.text_model.final_layer_norm.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def hpsv2_folder(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of HPSv2: open_clip's names under ``state_dict``, in float16; with sizes and tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(LENGTH)
    tokenizer.save_pretrained(folder)
    sizes = json.loads(json.dumps(OPEN_CLIP))
    sizes["text_cfg"]["vocab_size"] = len(tokenizer)
    (folder / "config.json").write_text(json.dumps(sizes))
    made = Random(seed)
    made.normal("positional_embedding", LENGTH, WIDTH)
    made.normal("text_projection", WIDTH, 24)
    made.normal("token_embedding.weight", len(tokenizer), WIDTH, std=1)
    made.norm("ln_final", WIDTH)
    made.normal("visual.class_embedding", WIDTH, std=1)
    made.normal("visual.positional_embedding", (SIDE // 8) ** 2 + 1, WIDTH)
    made.normal("visual.proj", WIDTH, 24)
    made.normal("visual.conv1.weight", WIDTH, 3, 8, 8, std=0.07)
    made.norm("visual.ln_pre", WIDTH)
    made.norm("visual.ln_post", WIDTH)
    for tower in ("visual.transformer", "transformer"):
        for layer in range(2):
            block = f"{tower}.resblocks.{layer}"
            made.norm(f"{block}.ln_1", WIDTH)
            made.norm(f"{block}.ln_2", WIDTH)
            made.normal(f"{block}.attn.in_proj_weight", 3 * WIDTH, WIDTH)
            made.normal(f"{block}.attn.in_proj_bias", 3 * WIDTH, std=0.3)
            made.linear(f"{block}.attn.out_proj", WIDTH, WIDTH)
            made.linear(f"{block}.mlp.c_fc", 4 * WIDTH, WIDTH)
            made.linear(f"{block}.mlp.c_proj", WIDTH, 4 * WIDTH)
    made.weights["logit_scale"] = torch.tensor(4.6)
    torch.save(
        {"state_dict": {name: value.half() for name, value in made.weights.items()}},
        folder / "HPS_v2.1_compressed.pt",
    )
    return folder


def bert_tokenizer() -> BertTokenizer:
    """Return a tokenizer that knows the test's words and spells out others by letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{letter}" for letter in "abcdefgh")]
    return BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))})


def image_reward_folder(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of ImageReward, with the weights that scoring does not use; with sizes and tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    bert_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(BLIP))
    vision, text = BLIP["vision_config"], BLIP["text_config"]
    width, wide = vision["hidden_size"], text["hidden_size"]
    made = Random(seed)
    eye = "blip.visual_encoder"
    made.normal(f"{eye}.cls_token", 1, 1, width, std=1)
    made.normal(f"{eye}.pos_embed", 1, (SIDE // 8) ** 2 + 1, width)
    made.normal(f"{eye}.patch_embed.proj.weight", width, 3, 8, 8, std=0.07)
    made.normal(f"{eye}.patch_embed.proj.bias", width, std=0.3)
    made.norm(f"{eye}.norm", width)
    for layer in range(2):
        block = f"{eye}.blocks.{layer}"
        made.norm(f"{block}.norm1", width)
        made.norm(f"{block}.norm2", width)
        made.linear(f"{block}.attn.qkv", 3 * width, width)
        made.linear(f"{block}.attn.proj", width, width)
        made.linear(f"{block}.mlp.fc1", 4 * width, width)
        made.linear(f"{block}.mlp.fc2", width, 4 * width)
    reader = "blip.text_encoder"
    made.normal(f"{reader}.embeddings.word_embeddings.weight", text["vocab_size"], wide, std=1)
    made.normal(f"{reader}.embeddings.position_embeddings.weight", text["max_position_embeddings"], wide)
    made.norm(f"{reader}.embeddings.LayerNorm", wide)
    for layer in range(2):
        block = f"{reader}.encoder.layer.{layer}"
        for part, inputs in (("attention", wide), ("crossattention", width)):
            made.linear(f"{block}.{part}.self.query", wide, wide)
            made.linear(f"{block}.{part}.self.key", wide, inputs)
            made.linear(f"{block}.{part}.self.value", wide, inputs)
            made.linear(f"{block}.{part}.output.dense", wide, wide)
            made.norm(f"{block}.{part}.output.LayerNorm", wide)
        made.linear(f"{block}.intermediate.dense", 2 * wide, wide)
        made.linear(f"{block}.output.dense", wide, 2 * wide)
        made.norm(f"{block}.output.LayerNorm", wide)
    made.head("mlp.layers", wide)
    made.linear("blip.vision_proj", 8, width)
    made.linear("blip.text_proj", 8, wide)
    made.weights[f"{reader}.embeddings.position_ids"] = torch.arange(text["max_position_embeddings"])[None]
    torch.save(made.weights, folder / "ImageReward.pt")
    return folder


def aesthetic_head(folder: Path, width: int = 24, seed: int = 0) -> Path:
    """Write the head of the LAION aesthetic predictor for embeddings of ``width`` numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Random(seed)
    made.head("layers", width)
    torch.save(made.weights, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder
