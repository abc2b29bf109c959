"""A real model is searched from the command line alone: an SDXL and a CLIP with random weights, in their real classes."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotts_search.backbones.sdxl import StableDiffusionXL
from lotts_search.cli import main
from lotts_search.verifiers.clip_score import ClipScore
from tests.tiny import save
from tests.tiny_xl import tiny_xl_pipeline
from tests.verifiers.published import aesthetic_head, clip_folder, image_reward_folder

PROMPT = "a red circle on the left"
SEARCH = ["--strategy", "lotts", "--local", "--steps", "4", "--images", "3", "--seed", "2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, verifiers and things that are neither."""
    root = tmp_path_factory.mktemp("real")
    save(tiny_xl_pipeline(), root / "sdxl")
    clip_folder(root / "clip")
    image_reward_folder(root / "image-reward")
    aesthetic_head(root / "aesthetic")
    for name in ("truncated", "text", "mixed"):
        shutil.copytree(root / "clip", root / name)
    whole = (root / "clip" / "model.safetensors").read_bytes()
    (root / "truncated" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    for file in ("text/model.safetensors", "text.safetensors"):
        (root / file).write_text("no weights at all\n")
    shutil.copy(root / "sdxl" / "text_encoder" / "model.safetensors", root / "mixed")
    shutil.copytree(root / "sdxl", root / "torn")
    (root / "torn" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(whole[:100])
    return root


def call(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the Hub not answer, and its cache be empty."""
    for module in ("backbones.model_folder", "backbones.loading", "verifiers.weights"):
        monkeypatch.setattr(f"lotts_search.{module}.reachable", lambda model: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def best(out: Path) -> tuple[Any, dict[str, str]]:
    """Return the pixels and the texts of the winner."""
    with Image.open(out / "best.png") as image:
        return np.asarray(image), dict(image.text)


def test_a_search_from_the_command_line_alone_and_its_recipe(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # relative paths, as one types them
    words = ["--model", "sdxl", "--verifier", "clip-score:weights=clip", "--size", "48x32"]
    assert call("generate", PROMPT, *words, *SEARCH, "--out", tmp_path / "a") == 0
    pixels, texts = best(tmp_path / "a")
    assert pixels.shape == (32, 48, 3) and np.ptp(pixels) > 50
    score = float(ClipScore.load(weights="clip").score([PROMPT], pixels[None])[0])
    assert json.loads(texts["recipe"])["score"] == pytest.approx(score, rel=1e-5)
    rows = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    assert [row["kind"] for row in rows].count("refine") == 2
    assert max(row["score"] for row in rows if row["score"] is not None) == pytest.approx(score, rel=1e-5)
    command = shlex.split(texts["command"])
    assert call(*command[1:], "--local", "--out", tmp_path / "b") == 0
    again, _ = best(tmp_path / "b")
    np.testing.assert_array_equal(again, pixels)


def test_the_folder_of_the_model_may_name_the_verifier(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "sdxl", "model")
    shutil.copytree(root / "clip", "model/judge")
    Path("model/lotts.json").write_text(json.dumps({"steps": 3, "verifier": "clip-score:weights=judge"}))
    assert (
        call(
            "generate",
            PROMPT,
            "--model",
            "model",
            "--local",
            "--images",
            "1",
            "--strategy",
            "best-of-n",
            "--out",
            "out",
        )
        == 0
    )
    pixels, texts = best(Path("out"))
    assert "--verifier clip-score:weights=model/judge" in texts["command"]
    score = float(ClipScore.load(weights="model/judge").score([PROMPT], pixels[None])[0])
    assert json.loads(texts["recipe"])["score"] == pytest.approx(score, rel=1e-5)
    assert sum(row["nfe"] for row in pq.read_table("out/trials.parquet").to_pylist()) == 3


@pytest.mark.parametrize(
    ("model", "verifier", "message"),
    [
        ("sdxl", "clip-scor", "unknown verifier 'clip-scor'; did you mean 'clip-score'"),
        ("sdxl", "clip-score:wieghts=clip", "unknown setting of verifier 'clip-score': 'wieghts'; did you mean 'weights'"),
        ("sdxl", "clip-score:weights=clip,batch=many", "batch of verifier 'clip-score' must be an integer, not 'many'"),
        ("sdxl", "clip-score:weights=nowhere", r"verifier clip-score: there is no file or folder nowhere \(weights\)"),
        ("sdxl", "clip-score:weights=aesthetic", "verifier clip-score: aesthetic is no folder in transformers' format"),
        ("sdxl", "clip-score:weights=text.safetensors", "verifier clip-score: weights must be a folder .* not the file text"),
        ("sdxl", "clip-score:weights=sdxl/text_encoder", "must be a CLIP model .* sdxl/text_encoder is one of type clip_text_model"),
        ("sdxl", "clip-score:weights=truncated", "verifier clip-score: model truncated: cannot load its weights: .*header"),
        ("sdxl", "clip-score:weights=mixed", "verifier clip-score: model mixed: cannot load its weights: .* are missing"),
        ("sdxl", "clip-score:weights=text", "verifier clip-score: model text: cannot load its weights: .*header"),
        ("sdxl", "clip-score:weights=clip,tokenizer=image-reward", "tokenizer must be a CLIPTokenizer, and image-reward holds a Bert"),
        ("sdxl", "image-reward:weights=text.safetensors", "text.safetensors cannot be read as a file of weights"),
        ("sdxl", "hpsv2:weights=text.safetensors", "text.safetensors cannot be read as a file of weights"),
        ("sdxl", "image-reward:weights=clip/model.safetensors", "other weights: 96 are missing, blip.text_encoder"),
        ("sdxl", "aesthetic:clip=clip,weights=image-reward/ImageReward.pt", "other weights: 10 are missing, layers.0.bias"),
        ("sdxl", "pickscore", "config.json of yuvalkirstain/PickScore_v1 was never downloaded, and the Hub cannot be reached"),
        ("sdxl", "clip-score:weights=clip,device=gpu", "device of verifier clip-score cannot be 'gpu'"),
        ("sdx/none", "clip-score:weights=clip", "model sdx/none: no folder of that name, and the Hub cannot be reached"),
        ("./sdx", "clip-score:weights=clip", "there is no model folder ./sdx"),
        ("sdx", "clip-score:weights=clip", "unknown model 'sdx'"),
        ("clip", "clip-score:weights=clip", "clip is not a model folder: it has no model_index.json"),
        ("sdxl/unet/diffusion_pytorch_model.safetensors", "clip-score:weights=clip", "single"),
        ("torn", "clip-score:weights=clip", "model torn: cannot load its unet: .*weights"),
        ("sdxl --size 50", "clip-score:weights=clip", "multiples of 4 pixels for sdxl, such as 48x48, got 50x50"),
        ("sdxl --size 6x40", "clip-score:weights=clip", "multiples of 4 pixels for sdxl, such as 40x8, got 40x6"),
        ("sdxl --size big", "clip-score:weights=clip", "--size takes WIDTHxHEIGHT or one number of pixels, not 'big'"),
        ("sdxl --variant fp16", "clip-score:weights=clip", "no weights of the variant 'fp16'"),
        # Images of another size, and prompts, are refused before the verifier and the model are loaded.
        ("torn", "shapes-reward", "shapes-reward scores .* 64x64 pixels alone, not 32x32"),
        ("torn", 'weighted:of={"shapes-reward": 1, "brisque": 1}', "shapes-reward scores .* 64x64 pixels alone, not 32x32"),
        ("torn --size 8x32", "brisque", "brisque scores images with sides of 16 pixels or more, not 32x8"),
        ("torn", "ocr", "ocr looks for the text in quotation marks, and the prompt .* has none"),
        ("torn", 'weighted:of={"geneval:weights=nowhere": 1}', "GenEval"),
        ("torn --strategy ttgen", "clip-score:weights=clip", "names no rewriter of its own: .* For any images: chat, transformers"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_before_any_step(
    model: str,
    verifier: str,
    message: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(StableDiffusionXL, "predict", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(
        logging.getLogger("transformers"), "handlers", [logging.StreamHandler()]
    )  # to the captured stderr
    out = tmp_path / "out"
    words = [*SEARCH, "--model", *model.split(), "--verifier", verifier, "--out", out]
    assert call("generate", PROMPT, *words) in (1, 2)
    printed = capsys.readouterr().err
    # What is used is said first, once the model is loaded.
    lines = [line for line in printed.splitlines() if not line.startswith(("starting ", "using ", "lotts on "))]
    assert len(lines) == 1 and re.match(rf"error: .*{message}", lines[0]), printed
    assert not any(out.glob("*"))
