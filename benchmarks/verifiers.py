"""Cost of the native verifiers beside their networks, measured side by side in one run.

Each verifier is built with random weights and towers of six layers, 512 wide: far smaller than the published ones, so that the
ratio is a lower bound for them on a CPU. One round scores the same images once through the verifier's class (resize, crop,
normalisation, tokens, networks), and once by the bare networks: the calls that the class made of them, repeated with the
tensors that they got. Rounds are interleaved and every other one is reversed, so that other load on the machine affects both
alike. Time is the CPU time of the process, which other load affects less than wall time. The ratio is the bare networks' time
to the class's, the median over rounds (demand: 0.9 or more).

    python benchmarks/verifiers.py [--images 32] [--rounds 5] [--verifiers clip-score image-reward] [--size 512]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from lotts_search.verifiers import image_reward
from lotts_search.verifiers.aesthetic import Aesthetic
from lotts_search.verifiers.clip import Clip
from lotts_search.verifiers.clip_score import ClipScore
from lotts_search.verifiers.hpsv2 import HPSv2
from lotts_search.verifiers.networks import Tokens, linear_stack
from lotts_search.verifiers.pickscore import PickScore
from lotts_search.verifiers.pixels import cropped, normalized, padded

SIDE, PATCH, WIDTH, LAYERS = 224, 16, 512, 6
TOWER = {
    "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": WIDTH // 64, "num_hidden_layers": LAYERS,
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ("a red fox in the snow", "two cats on a blue sofa", "a bowl of fruit", "an old tram at night")
Calls = list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]


def clip(folder: Path, images: int, square: Callable[..., torch.Tensor]) -> Clip:
    """Return a CLIP with random weights; ``square`` makes squares of images."""
    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    ids = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = CLIPConfig(text_config=TOWER | ids, vision_config=TOWER | {"image_size": SIDE, "patch_size": PATCH})
    tokens = Tokens("bench", "CLIPTokenizer", folder, None, "", 77)
    return Clip(CLIPModel(config), tokens, lambda found: normalized(square(found, SIDE)), images)


def make(name: str, folder: Path, images: int) -> Any:
    """Return a verifier with random weights that scores ``images`` images in one call."""
    torch.manual_seed(0)
    if name == "image-reward":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
        tokens = Tokens(name, "BertTokenizer", folder, None, "", image_reward.LENGTH)
        ids = {"vocab_size": len(words), "bos_token_id": 2, "sep_token_id": 3}
        sizes = {"vision_config": TOWER | {"image_size": SIDE, "patch_size": PATCH}, "text_config": TOWER | ids}
        return image_reward.ImageReward(image_reward._network(sizes), tokens, images)
    tower = clip(folder, images, padded if name == "hpsv2" else cropped)
    if name == "aesthetic":
        return Aesthetic(tower, linear_stack(tower.model.config.projection_dim))
    return {"hpsv2": HPSv2, "pickscore": PickScore, "clip-score": ClipScore}[name](tower)


def networks(verifier: Any) -> list[nn.Module]:
    """Return the networks of a verifier, ready to score."""
    held = [*vars(verifier).values(), verifier.clip.model if hasattr(verifier, "clip") else None]
    return [part.eval().requires_grad_(False) for part in held if isinstance(part, nn.Module)]


@contextmanager
def recorded(verifier: Any) -> Iterator[Calls]:
    """Record the calls of a verifier's networks, in their order."""
    calls: Calls = []
    hooks = [
        part.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
        for network in networks(verifier)
        for part in network.children()
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one run."""
    began = time.process_time()
    run()
    return time.process_time() - began


def ratio(name: str, images: Any, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of the class, of the bare networks, and the median of their ratio."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(images))]
    with tempfile.TemporaryDirectory() as folder:
        verifier = make(name, Path(folder), len(images))
        with recorded(verifier) as calls:
            verifier.score(prompts, images)

        def whole() -> None:
            verifier.score(prompts, images)

        def bare() -> None:
            with torch.inference_mode():
                for network, arguments, options in calls:
                    network(*arguments, **options)

        bare()
        times: list[dict[Callable[[], None], float]] = []
        for number in range(rounds):
            order: Sequence[Callable[[], None]] = (whole, bare) if number % 2 == 0 else (bare, whole)
            times.append({run: seconds(run) for run in order})
    return (
        statistics.median(one[whole] for one in times),
        statistics.median(one[bare] for one in times),
        statistics.median(one[bare] / one[whole] for one in times),
    )


def main() -> None:
    names = ["image-reward", "hpsv2", "pickscore", "clip-score", "aesthetic"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="in one call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verifiers", nargs="+", default=names, choices=names)
    parser.add_argument("--size", type=int, default=512, help="height and width of the images")
    options = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    for name in options.verifiers:
        whole, bare, found = ratio(name, images, options.rounds)
        print(f"{name:14} {whole:7.3f} CPU s, bare networks {bare:7.3f} s, ratio {found:.3f} (demand 0.9)", flush=True)


if __name__ == "__main__":
    main()
