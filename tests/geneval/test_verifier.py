"""The verifier on small random networks, and with a made-up detector whose boxes are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from lotts_search.errors import BadInput, Failure
from lotts_search.geneval.rules import Found
from lotts_search.geneval.tasks import CLASSES, COLOURS
from lotts_search.geneval.verifier import OTHER_NAMES, GenEval
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers.pixels import cropped, normalized
from lotts_search.work.requests import Bytes
from tests.verifiers.published import SIDE, clip_folder

SHORT = {name: short for short, name in OTHER_NAMES.items() if short in ("mouse", "remote", "keyboard")}
LABELS = ["N/A", *(SHORT.get(name, name) for name in CLASSES), "hat"]
"""As published: COCO's own names, and numbers without a class."""


def yolos_folder(folder: Path, labels: Sequence[str] = LABELS) -> Path:
    """Write a small random YOLOS in transformers' format."""
    torch.manual_seed(1)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=6, id2label=dict(enumerate(labels)), initializer_range=0.5,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("geneval")
    return yolos_folder(root / "yolos"), clip_folder(root / "clip")


@pytest.fixture(scope="module")
def loaded(folders: tuple[Path, Path]) -> GenEval:
    return GenEval.load(weights=str(folders[0]), clip=str(folders[1]), threshold=0.0, batch=2)


def images(count: int, height: int = 60, width: int = 90) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


class TestConformance(VerifierConformance):
    prompts: ClassVar = ("a photo of a cat", "a photo of two dogs", "a photo of a red car and a blue cup")
    wrong: ClassVar = ({"threshold": 1.5}, {"counting": -0.1}, {"overlap": 2}, {"batch": 0}, {"device": "nowhere"})

    @pytest.fixture(autouse=True)
    def _text(self, folders: tuple[Path, Path]) -> None:
        type(self).text = f"geneval:weights={folders[0]},clip={folders[1]},threshold=0.0,counting=0.02"


def test_the_detector_s_boxes_are_those_of_the_whole_image(loaded: GenEval, folders: tuple[Path, Path]) -> None:
    """Equal to the network's own outputs, scaled: class probabilities without "no object", boxes from centre and size."""
    batch = images(3)
    found = list(loaded._detect(batch))
    assert [len(some) for some in found] == [6, 6, 6], "the random network finds something at every token"
    model = YolosForObjectDetection.from_pretrained(folders[0]).eval()
    pixels = YolosImageProcessorPil.from_pretrained(folders[0])(images=list(batch), return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=pixels["pixel_values"])
    for image, some in enumerate(found):
        for token, one in enumerate(some):
            scores = outputs.logits[image, token].softmax(-1)[:-1]
            assert one.score == pytest.approx(float(scores.max()), abs=1e-5)
            label = LABELS[int(scores.argmax())]
            assert one.name == OTHER_NAMES.get(label, label)
            x, y, width, height = outputs.pred_boxes[image, token].tolist()
            expected = [90 * (x - width / 2), 60 * (y - height / 2), 90 * (x + width / 2), 60 * (y + height / 2)]
            assert one.box == pytest.approx(expected, abs=1e-3)


def test_a_colour_is_the_nearest_of_the_mean_phrases(loaded: GenEval, folders: tuple[Path, Path]) -> None:
    model, tokenizer = CLIPModel.from_pretrained(folders[1]).eval(), CLIPTokenizer.from_pretrained(folders[1])
    boxes = {(10.4, 5.2, 50.0, 44.0): (10, 5, 50, 44), (-9.0, -3.0, 500.0, 300.0): (0, 0, 90, 60),
             (30.0, 30.0, 30.2, 30.1): (30, 30, 31, 31), (95.0, 70.0, 99.0, 80.0): (89, 59, 90, 60)}  # fmt: skip
    for name in ("cup", "car"):
        means = []
        for colour in COLOURS:
            phrases = [f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}", f"a photo of a {colour} object"]  # fmt: skip
            rows = [tokenizer(phrase, truncation=True, max_length=16, return_tensors="pt") for phrase in phrases]
            with torch.no_grad():
                texts = torch.cat([model.get_text_features(**row).pooler_output for row in rows])
            mean = (texts / texts.norm(dim=1, keepdim=True)).mean(dim=0)
            means.append(mean / mean.norm())
        assert torch.allclose(loaded._texts(name), torch.stack(means), atol=1e-5)
        for image, (box, (left, top, right, bottom)) in itertools.product(images(2), boxes.items()):
            crop = image[None, top:bottom, left:right]
            with torch.no_grad():
                seen = model.get_image_features(pixel_values=normalized(cropped(crop, SIDE))).pooler_output[0]
            expected = COLOURS[int(torch.stack([mean @ seen for mean in means]).argmax())]
            assert loaded._colour(image, Found(name, 1.0, box)) == expected


def with_boxes(loaded: GenEval, monkeypatch: pytest.MonkeyPatch, *found: Found) -> GenEval:
    monkeypatch.setattr(loaded, "_detect", lambda images: [list(found)] * len(images))
    return loaded


def test_thresholds_are_those_of_the_task(loaded: GenEval, monkeypatch: pytest.MonkeyPatch) -> None:
    cats = [Found("cat", score, (30.0 * i, 0.0, 30.0 * i + 20, 20.0)) for i, score in enumerate((0.95, 0.92, 0.5))]
    verifier = with_boxes(loaded, monkeypatch, *cats)
    monkeypatch.setattr(verifier, "_threshold", 0.3)
    prompts = ["a photo of two cats", "a photo of three cats", "a photo of a cat", "a photo of a dog"]
    assert verifier.score(prompts, images(4)).tolist() == [1, 0, 1, 0]
    assert [verdict.reason for verdict in verifier.verdicts(prompts, images(4))] == [
        "", "cat: 2 found, not 3", "", "dog: 0 found, not 1"
    ]  # fmt: skip
    monkeypatch.setattr(verifier, "_counting", 0.3)
    assert verifier.score(prompts, images(4)).tolist() == [0, 1, 1, 0]


def test_colours_and_overlaps_decide(loaded: GenEval, monkeypatch: pytest.MonkeyPatch) -> None:
    car = Found("car", 0.9, (0.0, 0.0, 40.0, 40.0))
    verifier = with_boxes(loaded, monkeypatch, car, Found("car", 0.91, (1.0, 0.0, 40.0, 40.0)))
    colour = verifier._colour(images(1)[0], car)
    other = next(one for one in COLOURS if one != colour)
    prompts = [f"a photo of a {one} car" for one in (colour, other)]
    assert verifier.score(prompts, np.repeat(images(1), 2, axis=0)).tolist() == [1, 0]
    monkeypatch.setattr(verifier, "_counting", 0.3)
    assert verifier.score(["a photo of two cars"], images(1)).tolist() == [1]
    monkeypatch.setattr(verifier, "_overlap", 0.5)
    assert verifier.score(["a photo of two cars"], images(1)).tolist() == [0]


def test_what_is_wrong_is_named(loaded: GenEval, folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no prompt of GenEval's tasks"):
        loaded.score(["a red circle"], images(1))
    with pytest.raises(BadInput, match=r"lacks 2 of COCO's 80 classes, first 'hair drier'"):
        GenEval.load(weights=str(yolos_folder(tmp_path / "short", LABELS[:79])), clip=str(folders[1]))
    folder = yolos_folder(tmp_path / "broken")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(Failure, match="image processor"):
        GenEval.load(weights=str(folder), clip=str(folders[1]))


def test_detectors_with_other_processors_work(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """RT-DETR: sigmoid scores, no "no object", a convolutional backbone of transformers' own."""
    from transformers import RTDetrImageProcessorPil, RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    labels = [*("aeroplane" if name == "airplane" else name for name in LABELS[1:-1])]
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )  # fmt: skip
    config: Any = RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16, d_model=16,
        encoder_attention_heads=2, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_layers=2, num_queries=7,
        decoder_attention_heads=2, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    RTDetrV2ForObjectDetection(config).save_pretrained(tmp_path / "rtdetr")
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "rtdetr")
    verifier = GenEval.load(weights=str(tmp_path / "rtdetr"), clip=str(folders[1]), threshold=0.0)
    found = list(verifier._detect(images(2)))
    assert [len(some) for some in found] == [7, 7]
    assert {one.name for some in found for one in some} <= set(CLASSES)


def test_a_study_refuses_other_prompts_before_it_starts(tmp_path: Path) -> None:
    from lotts_search.study.read import read_study

    def study(prompt: str, key: str) -> SimpleNamespace:
        file = tmp_path / "study.yaml"
        file.write_text(f"strategies: [best-of-n]\nbudgets: {{nfe: 20}}\nprompts: [{prompt}]\n{key}: geneval\n")
        return SimpleNamespace(read=read_study(file))

    assert study("a photo of two cats", "metrics").read.metrics == ("geneval",)
    for key in ("metrics", "verifier"):
        with pytest.raises(BadInput, match=r"study.yaml.*line 4.*'two cats' is no prompt of GenEval's tasks"):
            study("two cats", key)
