"""The example of a real model, on a small SDXL and a small ImageReward with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import real_model
from lotts_search.errors import BadInput
from lotts_search.verifiers.image_reward import ImageReward
from tests.tiny import save
from tests.tiny_xl import tiny_xl_pipeline
from tests.verifiers.published import image_reward_folder


def run(line: str) -> None:
    """Run the program with the words of a command line."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["real_model.py", *line.split()])
        real_model.main()


def test_a_folder_is_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tiny_xl_pipeline(), Path("sdxl"))
    image_reward_folder(Path("judge"))
    words = (
        "--model sdxl --verifier image-reward:weights=judge --size 40 --steps 4 --images 3 --prompt circle --out out"
    )
    run(words)
    pixels = np.asarray(Image.open("out/best.png"))
    assert pixels.shape == (40, 40, 3)
    score = ImageReward.load(weights="judge").score(["circle"], pixels[None])[0]
    assert f"score {score:.4f} for 12 NFE" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"best.png", "search.html", "trials.parquet"}
    with pytest.raises(BadInput, match="unknown verifier 'image-rewrd'; did you mean 'image-reward'"):
        run("--model sdxl --verifier image-rewrd")


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "stabilityai/stable-diffusion-xl-base-1.0",
        "image-reward",
        "Hub id",
        "The first run downloads",
        "out/real",
    ):
        assert words in shown
