"""What a score costs: the counts of native verifiers equal those of their real networks by hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.combinations.noisy import Noisy
from lotts_search.combinations.rank_ensemble import RankEnsemble
from lotts_search.combinations.weighted import Weighted
from lotts_search.registry import load_verifier
from lotts_search.verifiers.aesthetic import Aesthetic
from lotts_search.verifiers.clip_score import ClipScore
from lotts_search.verifiers.hpsv2 import HPSv2
from lotts_search.verifiers.image_reward import ImageReward
from tests.flops import by_hooks
from tests.verifiers.published import LENGTH, SIDE, aesthetic_head, clip_folder, hpsv2_folder, image_reward_folder

IMAGE = np.zeros((1, SIDE, SIDE, 3), np.uint8)
LONG = "a red " * LENGTH


def clip_score(folder: Path) -> tuple[Any, torch.nn.Module]:
    found = ClipScore.load(weights=str(clip_folder(folder)))
    return found, found.clip.model


def hpsv2(folder: Path) -> tuple[Any, torch.nn.Module]:
    found = HPSv2.load(weights=str(hpsv2_folder(folder)))
    return found, found.clip.model


def image_reward(folder: Path) -> tuple[Any, torch.nn.Module]:
    found = ImageReward.load(weights=str(image_reward_folder(folder)))
    return found, found.network


def aesthetic(folder: Path) -> tuple[Any, torch.nn.Module]:
    found = Aesthetic.load(weights=str(aesthetic_head(folder)), clip=str(clip_folder(folder / "clip")))
    return found, found.clip.model


@pytest.mark.parametrize("make", [clip_score, hpsv2, image_reward, aesthetic])
@pytest.mark.filterwarnings("ignore:verifier .* reads")
def test_native_verifiers(make: Callable[[Path], tuple[Any, torch.nn.Module]], tmp_path: Path) -> None:
    verifier, network = make(tmp_path)
    total = by_hooks(network, lambda: verifier.score([LONG], IMAGE))
    assert verifier.flops == total > 0


def test_the_embedded_verifier() -> None:
    verifier: Any = load_verifier("shapes-reward")
    net = verifier.net.train()  # in evaluation mode torch fuses the layers, and hooks do not see them
    total = by_hooks(net, lambda: verifier.score(["center red star"], np.zeros((1, 64, 64, 3), np.uint8)))
    assert verifier.flops == total > 1e6


def test_combinations_cost_what_their_parts_cost() -> None:
    class Part:
        name, requirements = "part", ()

        def __init__(self, flops: float):
            self.flops = flops

        def score(self, prompts: list[str], images: Any) -> Any:
            return np.zeros(len(images), np.float32)

    class Unknown(Part):
        def __init__(self) -> None:
            pass

    parts = [Part(3.0), Part(4.0), Unknown()]
    assert Noisy(Part(3.0), 1.0, 0).flops == 3
    assert Weighted(parts, [1.0, 1.0, 1.0]).flops == 7
    assert RankEnsemble(parts, [np.zeros(1)] * 3).flops == 7
