"""The oracle against a person: 16 generated images with 120 objects, labelled by eye before the verdicts were seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lotts_search.shapes.world.oracle import judge_many
from lotts_search.shapes.world.scene import parse_caption

DATA = Path(__file__).parent / "data"


def test_the_oracle_agrees_with_a_person_on_generated_objects() -> None:
    sheet = np.asarray(Image.open(DATA / "labelled.png").convert("RGB"))
    images = sheet.reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, 64, 64, 3)
    labels = json.loads((DATA / "labelled.json").read_text())
    scenes = [parse_caption(label["caption"]) for label in labels]
    agreed = objects = 0
    for scene, label, verdict in zip(scenes, labels, judge_many(images, scenes), strict=True):
        for o in scene.objects:
            objects += 1
            agreed += bool(verdict.flawed[o.cell]) == (o.cell in label["damaged"])
    assert objects == 120
    assert agreed / objects >= 0.94
