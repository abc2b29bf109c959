"""The verifier ``musiq`` around a stand-in for pyiqa's network; ``lotts-search verifier-env musiq`` tries the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.errors import BadInput
from lotts_search.verifiers import musiq
from lotts_search.verifiers.musiq import Musiq
from lotts_search.work.requests import Bytes


class Network(torch.nn.Module):
    """The weighted mean of the top right pixel's channels; with several classes their distribution, as pyiqa's."""

    def __init__(self, pretrained: bool, num_class: int, hidden_size: int = 3, **sizes: Any):
        super().__init__()
        assert not pretrained, "weights are loaded by the verifier"
        linear = torch.nn.Linear(hidden_size, num_class)
        self.head = torch.nn.Sequential(linear, torch.nn.Softmax(-1)) if num_class > 1 else linear

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1] == 3 and not self.training
        found: torch.Tensor = self.head(pixels[:, :, 0, -1])
        ranks = torch.arange(1, found.shape[1] + 1) if found.shape[1] > 1 else torch.ones(1)
        return (found * ranks).sum(-1, keepdim=True)


@pytest.fixture(autouse=True)
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pyiqa.archs.musiq_arch")
    module.MUSIQ = Network  # type: ignore[attr-defined]
    for name in ("pyiqa", "pyiqa.archs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "pyiqa.archs.musiq_arch", module)
    monkeypatch.setattr(musiq, "import_torchvision", lambda: None)


def images() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), np.uint8)


def test_images_are_scored_by_the_network_of_the_checkpoint(tmp_path: Path) -> None:
    weight, bias = torch.tensor([[30.0, 20.0, 10.0]]), torch.tensor([5.0])
    torch.save({"head.weight": weight, "head.bias": bias}, tmp_path / "musiq_koniq_ckpt-e95806b9.pth")
    scores = Musiq.load(weights=str(tmp_path)).score(["a"] * 3, images())
    assert scores.dtype == np.float32
    assert scores == pytest.approx(images()[:, 0, -1] / 255 @ [30, 20, 10] + 5, rel=1e-5)


def test_a_checkpoint_of_ratings_has_their_mean(tmp_path: Path) -> None:
    """AVA's has ten classes."""
    weight = torch.zeros(10, 3)
    torch.save({"module.head.0.weight": weight, "module.head.0.bias": torch.zeros(10)}, tmp_path / "ava.pth")
    assert Musiq.load(weights=str(tmp_path / "ava.pth")).score(["a"] * 3, images()) == pytest.approx([5.5] * 3)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no file .*gone\.pth"):
        Musiq.load(weights=str(tmp_path / "gone.pth"))
    torch.save({"head.weight": torch.zeros(1, 5), "head.bias": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"other\.pth has other weights than MUSIQ: size mismatch for head\.weight"):
        Musiq.load(weights=str(tmp_path / "other.pth"))
