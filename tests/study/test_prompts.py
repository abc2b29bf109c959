"""Prompt sets: stable ids and samples, local files of each kind, sets of the hub by a stand-in for the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotts_search import BadInput, Failure
from lotts_search.errors import Notice
from lotts_search.shapes.world.oracle import judge
from lotts_search.shapes.world.scene import parse_caption, scenes
from lotts_search.study.prompts import load_prompts, prompt_sets, texts

LINES = [f"an image of {n} birds" for n in range(40)]


def write(path: Path, rows: list[dict]) -> Path:
    match path.suffix:
        case ".txt":
            path.write_text("\n".join(row["prompt"] for row in rows) + "\n\n")
        case ".csv":
            path.write_text("prompt,kind\n" + "".join(f'"{row["prompt"]}",{row["kind"]}\n' for row in rows))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl", ".parquet"])
def test_files_of_each_kind_hold_the_same_prompts(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": line, "kind": str(n % 2)} for n, line in enumerate(LINES)]
    expected = load_prompts(str(write(tmp_path / "birds.txt", rows)), seed=None)
    assert [prompt.text for prompt in expected] == LINES
    found = load_prompts(str(write(tmp_path / f"birds{ending}", rows)), seed=None)
    assert [(p.id, p.text) for p in found] == [(p.id, p.text) for p in expected]
    if ending != ".txt":
        odd = load_prompts(str(tmp_path / f"birds{ending}"), seed=None, where={"kind": 1})
        assert [p.text for p in odd] == LINES[1::2]
        with pytest.raises(BadInput, match=r"have no field 'sort'; they have kind"):
            load_prompts(str(tmp_path / f"birds{ending}"), where={"sort": 1})
        with pytest.raises(BadInput, match=r"has no column 'caption'; its columns: prompt, kind"):
            load_prompts(str(tmp_path / f"birds{ending}"), column="caption")


def test_samples_are_nested_and_do_not_hang_on_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "birds.txt"
    path.write_text("\n".join(LINES))
    ten, twenty = load_prompts(str(path), count=10, seed=3), load_prompts(str(path), count=20, seed=3)
    assert twenty[:10] == ten
    path.write_text("\n".join(["something new", *reversed(LINES), LINES[0]]))
    again = [p for p in load_prompts(str(path), count=20, seed=3) if p.text != "something new"]
    assert again == twenty[: len(again)]
    assert [p.text for p in load_prompts(str(path), count=10, seed=4)] != [p.text for p in ten]


def test_ids_from_the_file_and_equal_texts_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 3, "caption": "a hen"}\n"a fox"\n{"id": 4, "caption": "a hen"}\n'.replace('"a fox"\n', ""))
    (only,) = load_prompts(str(path))
    assert (only.id, only.text) == ("p-3", "a hen")
    assert [p.text for p in texts(["a", "b", "a"])] == ["a", "b"]


def test_shapes_sets_are_their_splits(tmp_path: Path) -> None:
    assert [p.text for p in load_prompts("shapes-test", count=5)] == [s.caption for s in scenes("test", 5)]
    assert [p.text for p in load_prompts("shapes-tune", count=5, seed=2)] == [s.caption for s in scenes("tune", 5, 2)]
    full = load_prompts("shapes-test", count=3, where={"objects": 9})
    assert {len(parse_caption(p.text).objects) for p in full} == {9}
    assert {parse_caption(p.text).split for p in full} == {"test"}
    assert len({p.id for p in full}) == 3 and full[:2] == load_prompts("shapes-test", count=2, where={"objects": 9})
    with pytest.raises(BadInput, match="has no scene with objects = 12"):
        load_prompts("shapes-test", count=1, where={"objects": 12})


def test_slices_come_with_images_that_are_damaged_so_much() -> None:
    damaged = {}
    for name in ("sparse", "dense"):
        prompts = load_prompts(f"shapes-test/{name}", count=6)
        verdicts = [judge(p.image, parse_caption(p.text)) for p in prompts if p.image is not None]
        assert len(verdicts) == 6
        damaged[name] = np.mean([v.damaged.sum() / v.expected.sum() for v in verdicts])
        assert all(np.array_equal(a.image, b.image) for a, b in zip(prompts, load_prompts(f"shapes-test/{name}", count=6), strict=True))  # fmt: skip
    assert damaged["sparse"] < 0.4 and damaged["dense"] > 0.7


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{", "a.jsonl", r"a\.jsonl, line 1: not JSON"),
        ("3\n", "a.jsonl", r"a\.jsonl, line 1: neither a JSON object nor a text: 3"),
        ("\n\n", "a.txt", r"a\.txt has no prompts"),
        ("x", "a.parquet", r"a\.parquet cannot be read"),
        ("x", "a.doc", r"unknown prompt set '.*a\.doc'.*drawbench"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        load_prompts(str(tmp_path / name))


def test_the_table_of_dpg_bench_is_a_file_of_prompts(tmp_path: Path) -> None:
    """One row per question, with the prompt in the column ``text``."""
    path = tmp_path / "dpg_bench.csv"
    rows = [f'{n // 3},"{LINES[n // 3]}",{n % 3},Is it there?' for n in range(12)]
    path.write_text("\n".join(["item_id,text,proposition_id,question_natural_language", *rows]))
    with pytest.warns(Notice, match="skipped 8 repeated of 12 prompts"):
        found = load_prompts(str(path), seed=None)
    assert [p.text for p in found] == LINES[:4]


class Stream(list):
    """A data set of the hub, as far as it is used here."""

    @property
    def features(self) -> dict:
        return {
            "image": SimpleNamespace(),
            **{key: SimpleNamespace(dtype="string") for key in self[0] if key != "image"},
        }

    def select_columns(self, names: list[str]) -> Stream:
        return Stream({name: row[name] for name in names} for row in self)


@pytest.mark.parametrize(
    ("name", "repository", "split", "column"),
    [
        ("drawbench", "sayakpaul/drawbench", "train", "Prompts"),
        ("pick-a-pic", "yuvalkirstain/pickapic_v1_no_images", "test_unique", "caption"),
        ("coco", "sayakpaul/coco-30-val-2014", "train", "caption"),
        ("parti-prompts", "nateraw/parti-prompts", "train", "Prompt"),
    ],
)
def test_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, repository: str, split: str, column: str) -> None:
    asked = []

    def load_dataset(path: str, **options: object) -> Stream:
        asked.append((path, options))
        return Stream({column: line, "Category": "Birds", "image": b""} for line in LINES)

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = load_prompts(name, count=7, seed=1, where={"Category": "Birds"})
    assert asked == [(repository, {"split": split, "streaming": True})]
    assert len(found) == 7 and {p.text for p in found} < set(LINES)
    assert all(p.id.startswith(f"{name}-") and p.fields == {"Category": "Birds"} for p in found)


def test_without_the_library_or_the_network_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Failure, match=r"drawbench need the library datasets: pip install 'lotts-search\[prompts\]'"):
        load_prompts("drawbench")
    library = ModuleType("datasets")

    def load_dataset(path: str, **options: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(
        Failure, match=r"coco cannot be fetched from sayakpaul/coco-30-val-2014 on the hub: Couldn't reach the Hub$"
    ):
        load_prompts("coco")
    assert {"drawbench", "pick-a-pic", "coco", "shapes-test", "shapes-test/dense"} < set(prompt_sets())
