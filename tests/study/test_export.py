"""Exports of returned images: the right image under the right name, in the layouts of other scorers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lotts_search.cli import main
from lotts_search.cli.outputs import save_png
from lotts_search.core.trial_table import TrialRecord, to_table, write_parquet
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.study.export import export

ABOUT = {
    "metrics": ["truth"],
    "strategies": [{"label": "best-of-n", "nested": True, "budgets": [{"images": 1, "nfe": None}, {"images": 3, "nfe": None}]}],
}  # fmt: skip


def table(cat: str = "a cat") -> pa.Table:
    """Two prompts, two seeds, three images each; image ``i`` of a search has the colour ``10·search + i``."""
    records = []
    for search, (prompt, seed) in enumerate([(cat, 7), (cat, 5), ("a dog", 7), ("a dog", 5)]):
        for i, score in enumerate([(0.1, 0.9, 0.5), (0.3, 0.2, 0.1), (0.1, 0.1, 0.2), (0.4, 0.4, 0.4)][search]):
            colour = 10 * search + i
            records.append(
                TrialRecord(
                    "run", f"search{search}", f"id-{prompt}", prompt, "m", "best-of-n", "{}", seed, f"{i}", None, "sample",
                    label="best-of-n", budget_images=3, nfe=10, images=1, score=score, image=f"image{colour}",
                    metrics={"truth": score / 2},
                )
            )  # fmt: skip
    return to_table(records)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    write_parquet(table(), folder / "trials.parquet")
    (folder / "study.json").write_text(json.dumps(ABOUT))
    for colour in (10 * search + i for search in range(4) for i in range(3)):
        save_png(folder / "images" / f"image{colour}.png", np.full((4, 4, 3), colour, np.uint8), {})
    return folder


def colour(path: Path) -> int:
    return int(np.asarray(Image.open(path))[0, 0, 0])


def test_each_file_is_the_image_with_the_highest_score_within_the_budget(run: Path, tmp_path: Path) -> None:
    counts = export(run, tmp_path / "out", "flat")
    assert counts == {"m/best-of-n-3-images": 4, "m/best-of-n-1-image": 4}
    whole, first = (tmp_path / "out" / folder for folder in counts)
    # Seed 5 comes before seed 7; of equal scores the first image counts.
    names = ["p00000_s0", "p00000_s1", "p00001_s0", "p00001_s1"]
    assert [colour(whole / f"{name}.png") for name in names] == [10, 1, 30, 22]
    assert [colour(first / f"{name}.png") for name in names] == [10, 0, 30, 20]
    lines = [json.loads(line) for line in (whole / "scores.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [f"{name}.png" for name in names]
    assert [(line["prompt"], line["seed"], line["score"], line["truth"]) for line in lines] == [
        ("a cat", 5, 0.3, 0.15), ("a cat", 7, 0.9, 0.45), ("a dog", 5, 0.4, 0.2), ("a dog", 7, 0.2, 0.1)
    ]  # fmt: skip


def test_genevals_layout_follows_its_metadata(run: Path, tmp_path: Path) -> None:
    rows = [{"tag": "x", "prompt": "a bird"}, {"tag": "y", "prompt": "a dog"}, {"tag": "z", "prompt": "a cat"}]
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export(run, tmp_path / "out", "geneval", metadata)
    folder = tmp_path / "out" / "m" / "best-of-n-3-images"
    assert sorted(path.name for path in folder.iterdir()) == ["00001", "00002"]
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text()) == rows[1]
    assert [colour(folder / "00001" / "samples" / f"{i:04d}.png") for i in range(2)] == [30, 22]
    assert [colour(folder / "00002" / "samples" / f"{i:04d}.png") for i in range(2)] == [10, 1]
    export(run, tmp_path / "plain", "geneval")
    plain = tmp_path / "plain" / "m" / "best-of-n-3-images" / "00001" / "metadata.jsonl"
    assert json.loads(plain.read_text()) == {"prompt": "a dog"}


def test_genevals_layout_has_the_tasks_of_its_prompts(run: Path, tmp_path: Path) -> None:
    write_parquet(table("a photo of two benchs"), run / "trials.parquet")
    export(run, tmp_path / "out", "geneval")
    folder = tmp_path / "out" / "m" / "best-of-n-3-images"
    assert json.loads((folder / "00000" / "metadata.jsonl").read_text()) == {
        "tag": "counting", "include": [{"class": "bench", "count": 2}], "exclude": [{"class": "bench", "count": 3}],
        "prompt": "a photo of two benchs",
    }  # fmt: skip
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text()) == {"prompt": "a dog"}


def test_what_is_missing_is_named_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"prompt": "a cat"}\n')
    with pytest.raises(BadInput, match=r"lacks 1 of the study's prompts, e.g. 'a dog'"):
        export(run, out, "geneval", metadata)
    metadata.write_text('{"text": "a cat"}\n')
    with pytest.raises(BadInput, match="a key 'prompt' on every line"):
        export(run, out, "geneval", metadata)
    with pytest.raises(BadInput, match="unknown layout 'coco'"):
        export(run, out, "coco")
    (run / "images" / "image1.png").unlink()
    with pytest.raises(Failure, match=r"1 returned images are not in .*images: best"):
        export(run, out, "flat")
    assert not out.exists()


def test_searches_without_an_image_are_counted(run: Path, tmp_path: Path) -> None:
    rows = table().to_pylist()
    for row in rows:
        if row["search_id"] == "search3":
            row["image"] = None
    write_parquet(pa.Table.from_pylist(rows, schema=table().schema), run / "trials.parquet")
    with pytest.warns(Notice, match="1 searches by best-of-n on m have no image"):
        counts = export(run, tmp_path / "out", "flat")
    assert counts["m/best-of-n-3-images"] == 3


def test_the_command_prints_the_folders(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)[str(tmp_path / "out" / "m" / "best-of-n-3-images")] == 4
