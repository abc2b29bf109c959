"""The rewriter for vision-language models of transformers, with a tiny random LLaVA in the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lotts_search import BadInput, registry
from lotts_search.errors import Failure
from lotts_search.rewriters.instructions import SYSTEM, question
from lotts_search.rewriters.local import TransformersRewriter
from lotts_search.rewriters.runner import RewriteRunner
from lotts_search.work.requests import Rewrite

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save two models whose first token is a whole reply; the one with a zero head repeats that token."""
    words = ['["one","two"]', "<unk>", "<pad>", "<image>", "<s>", "</s>", "user", "system", "assistant", "fox", "red"]
    words += [f"word{number}" for number in range(200)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=2, bos_token_id=4, eos_token_id=5,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=3))
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    processor = LlavaProcessor(
        images, fast, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("models")
    for name, silent in (("random", False), ("replying", True)):
        if silent:
            torch.nn.init.zeros_(network.lm_head.weight)
        network.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    return place


def work(prompt: str = "red fox", count: int = 2) -> Rewrite:
    return Rewrite("transformers", prompt, IMAGE, count, 3)


def rewriter(model: Path, **settings: Any) -> TransformersRewriter:
    return TransformersRewriter(str(model), device="cpu", max_tokens=8, **settings)


def test_the_reply_is_that_of_the_model(folder: Path) -> None:
    """Compare with a direct call of the network on an input that is assembled here."""
    mine = rewriter(folder / "random", temperature=0.0)
    network = LlavaForConditionalGeneration.from_pretrained(folder / "random").eval()
    processor = LlavaProcessor.from_pretrained(folder / "random")
    text = f"system {SYSTEM} user <image> {question(work())} assistant"
    inputs = processor(text=text, images=Image.fromarray(IMAGE), return_tensors="pt")
    written = network.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    (reply,) = mine._replies([work()])
    assert reply == processor.decode(written, skip_special_tokens=True) and len(reply.split()) > 1


def test_replies_become_prompts_and_nonsense_becomes_the_original_prompt(folder: Path) -> None:
    runner = RewriteRunner(rewriter(folder / "replying", temperature=0.0, batch=2))
    futures = [runner.submit(work(count=count)) for count in (2, 1, 3)]
    prompts = [future.result(120).prompts for future in futures]
    assert prompts == [("one", "two"), ("one",), ("one", "two", "red fox")]
    runner.close()
    runner = RewriteRunner(rewriter(folder / "random"))
    nonsense = runner.submit(work()).result(120)
    assert nonsense.prompts == ("red fox",) * 2 and "no JSON" in nonsense.note and nonsense.usage.fallbacks == 2
    runner.close()


def test_the_seed_decides_the_sampled_reply(folder: Path) -> None:
    mine = rewriter(folder / "random", temperature=1.0)
    state = torch.get_rng_state()
    first, again = mine._replies([work()]), mine._replies([work()])
    assert first == again and torch.equal(state, torch.get_rng_state())


def test_a_model_over_all_gpus_is_refused_where_it_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers divides it. Without a GPU its map is that of the CPU, and the replies are the same."""
    load, given = AutoModelForImageTextToText.from_pretrained, list[Any]()

    def watch(*args: Any, **options: Any) -> Any:
        given.append(options["device_map"])
        network = load(*args, **options)
        if len(given) == 3:
            network.hf_device_map = {"model": 0, "lm_head": "cpu"}
        return network

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", watch)
    want = rewriter(folder / "random", temperature=0.0)._replies([work()])
    settings: dict[str, Any] = {"device": "auto", "temperature": 0.0, "max_tokens": 8}
    assert TransformersRewriter(str(folder / "random"), **settings)._replies([work()]) == want
    with pytest.raises(Failure, match="does not fit into the GPUs: choose more, or a smaller dtype"):
        TransformersRewriter(str(folder / "random"), **settings)._replies([work()])
    assert given == [None, "auto", "auto"]


def test_only_safetensors_are_loaded(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "random").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    network = LlavaForConditionalGeneration.from_pretrained(folder / "random")
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    runner = RewriteRunner(rewriter(tmp_path))
    result = runner.submit(work()).result(120)
    assert result.usage.fallbacks == 2 and "cannot be loaded" in result.note and "safetensors" in result.note
    runner.close()


def test_a_model_must_be_named() -> None:
    with pytest.raises(BadInput, match="needs a model"):
        registry.load_rewriter("transformers")
