"""Files of prompts: whatever they hold is read rightly or refused with file and line, and what is skipped is counted."""

from __future__ import annotations

import csv
import io
import json
import warnings
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts_search.errors import BadInput, Notice
from lotts_search.study.prompts import load_prompts

ODD = [
    "a red fox, two hens, and a barn",
    'a sign that says "open, now"',
    "a line\u2028broken by U+2028",
    "another\x85by U+0085, by \x1c and \x0b too",
    "ein Fuchs, 狐, 🦊",
    "=1+1; not a formula\twith a tab",
    "x" * 200_000,
]


def read(path: Path, **options) -> list[str]:
    return [prompt.text for prompt in load_prompts(str(path), seed=None, **options)]


def csv_of(prompts: list[str], newline: str = "\n") -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=newline)
    writer.writerows([["id", "prompt"], *enumerate(prompts)])
    return text.getvalue()


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl", ".parquet"])
def test_odd_texts_are_read_as_they_are(tmp_path: Path, ending: str, newline: str) -> None:
    path = tmp_path / f"odd{ending}"
    match ending:
        case ".txt":
            path.write_bytes(newline.join(ODD).encode())
        case ".csv":
            path.write_bytes(csv_of(ODD, newline).encode())
        case ".jsonl":
            path.write_bytes(newline.join(json.dumps({"prompt": p}, ensure_ascii=False) for p in ODD).encode())
        case _:
            pq.write_table(pa.table({"prompt": ODD}), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path) == ODD


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "p.csv").write_bytes(csv_of(ODD).encode(encoding))
    assert read(tmp_path / "p.csv") == ODD


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("prompt,kind\na fox, red,x\n", "a.csv", r"a\.csv, line 2: 3 cells for 2 columns \(prompt, kind\); put a text"),
        ("prompt,kind\na fox,x\na hen\n", "a.csv", r"a\.csv, line 3: 1 cells for 2 columns"),
        ('prompt\n"two\nlines"\na, b\n', "a.csv", r"a\.csv, line 4: 2 cells for 1 columns"),
        ('prompt\n"a fox\n', "a.csv", r"a\.csv, line 2: not CSV \(unexpected end of data\)"),
        ("prompt,prompt\na,b\n", "a.csv", r"a\.csv, line 1: column 'prompt' is repeated"),
        ("prompt;kind\na;b\n", "a.csv", r"has no column 'prompt'; .*separated by ';', not by commas"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "a.jsonl", r"a\.jsonl, line 2: no column 'prompt'; its columns: text"),
        ('{"prompt": 3}\n', "a.jsonl", r"a\.jsonl, line 1: 'prompt' must be a text, not int: 3"),
        ('"a"\n\n{"prompt": ["b"]}\n', "a.jsonl", r"a\.jsonl, line 3: 'prompt' must be a text, not list: \['b'\]"),
        ('{"prompt": "a", "prompt": "b"}\n', "a.jsonl", r"a\.jsonl, line 1: not JSON \(key 'prompt' is repeated\)"),
        ('{"prompt": "\\ud83e"}\n', "a.jsonl", r"a\.jsonl, line 1: a text holds half of a surrogate pair, U\+D83E"),
        ('{"prompt": "a\\u0000b"}\n', "a.jsonl", r"a\.jsonl, line 1: a text holds a NUL character"),
        ("[" * 100_000 + "\n", "a.jsonl", r"a\.jsonl, line 1: not JSON"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', "a.jsonl", r"line 2: id '1' is that of another .* line 1"),
        ('{"id": [1], "prompt": "a"}\n', "a.jsonl", r"line 1: 'id' must be a text or an integer, not \[1\]"),
        ('{"id": "a\\u0000b", "prompt": "a"}\n', "a.jsonl", r"a\.jsonl, line 1: a text holds a NUL character"),
        ("a\0b\n", "a.txt", r"a\.txt, line 1: a text holds a NUL character"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        load_prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prompt": [1, 2]}, "line 1: 'prompt' must be a text, not int: 1"),
        ({"prompt": [b"a fox"]}, "line 1: 'prompt' must be a text, not bytes"),
        ({"prompt": [None, {"text": "a"}]}, "line 2: 'prompt' must be a text, not dict"),
    ],
)
def test_parquet_columns_that_hold_no_texts(tmp_path: Path, table: dict, message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=message):
        load_prompts(str(tmp_path / "a.parquet"))


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a fox\nein Bär\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"a\.txt, line 2: not UTF-8 \(byte 0xe4\); save the file as UTF-8"):
        load_prompts(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("a\nb\n\na\n", "p.txt", "skipped 1 repeated of 3 prompts"),
        ("prompt,kind\na,1\n,2\n  ,3\na,4\n", "p.csv", "skipped 2 empty and 1 repeated of 4 prompts"),
        ('{"prompt": null}\n"a"\n', "p.jsonl", "skipped 1 empty of 2 prompts"),
    ],
)
def test_what_is_skipped_is_counted(tmp_path: Path, text: str, name: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.warns(Notice, match=said):
        load_prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("count", "where", "said"),
    [(4, None, "p.csv has 3 prompts instead of 4"), (3, {"kind": 1}, "2 prompts with kind = 1 instead")],
)
def test_fewer_prompts_than_wanted_are_reported(
    tmp_path: Path, count: int, where: dict[str, int] | None, said: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt,kind\na,1\nb,2\nc,1\n")
    with pytest.warns(Notice, match=said):
        load_prompts(str(tmp_path / "p.csv"), count=count, where=where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_prompts(str(tmp_path / "p.csv"), count=3)) == 3


@pytest.mark.parametrize(
    ("cell", "wanted", "fits"),
    [
        ("true", True, True), ("TRUE", True, True), ("false", True, False), ("false", False, True), ("1", True, False),
        ("3", 3, True), ("3.0", 3, True), ("0.50", 0.5, True), ("three", 3, False), ("3", "3", True), ("", None, True),
        ("90071992547409931", 90071992547409931, True), ("90071992547409931", 90071992547409930, False),
        ("2026-01-31", date(2026, 1, 31), True), ("yes", True, False),
    ],
)  # fmt: skip
def test_fields_of_a_csv_file_meet_the_values_of_a_study(tmp_path: Path, cell: str, wanted: object, fits: bool) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,hard\na fox,{cell}\na hen,other\n")
    if fits:
        assert read(tmp_path / "p.csv", where={"hard": wanted}) == ["a fox"]
    else:
        with pytest.raises(BadInput, match="has no prompts with hard"):
            read(tmp_path / "p.csv", where={"hard": wanted})


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        ([7.0, 8.0, None], 7, ["0"]),  # a column of whole numbers with a gap is one of floats
        ([7, 8, 7], 7.0, ["0", "2"]),
        ([Decimal("0.5"), Decimal("0.50"), Decimal(5)], 0.5, ["0", "1"]),
        ([True, False, None], True, ["0"]),
        ([True, False, None], "true", ["0"]),
        ([True, False, None], None, ["2"]),
        ([date(2026, 1, 31), None, None], date(2026, 1, 31), ["0"]),
    ],
    ids=str,
)
def test_fields_of_a_typed_file_meet_the_values_of_a_study(
    tmp_path: Path, values: list[object], wanted: object, found: list[str]
) -> None:
    pq.write_table(pa.table({"prompt": ["0", "1", "2"], "kind": values}), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", where={"kind": wanted}) == found
    assert read(tmp_path / "p.parquet", where={"kind": wanted}, column="prompt") == found


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([2**62], pa.timestamp("us")), "p.parquet cannot be read: "),
        (pa.array([2**62], pa.date64()), "p.parquet cannot be read: "),
        (
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
            "p.parquet cannot be read: ",
        ),
    ],
    ids=["a time", "a date", "a text"],
)
def test_parquet_values_that_python_cannot_hold_are_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"prompt": ["a fox"], "other": column}), tmp_path / "p.parquet")
    with pytest.raises(BadInput, match=message):
        load_prompts(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("p.txt", {"split": "test"}, "p.txt has no splits: leave out split 'test'"),
        ("shapes-test", {"split": "train"}, "shapes-test has no splits"),
        ("shapes-tune", {"column": "text"}, "shapes-tune has no columns: leave out column 'text'"),
        ("geneval", {"column": "prompt"}, "geneval has no columns"),
    ],
)
def test_options_that_a_set_does_not_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / "p.txt").write_text("a fox\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        load_prompts(source, **options)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30), max_size=5)


@given(TEXTS, st.sampled_from([".csv", ".jsonl", ".parquet"]))
@settings(max_examples=150, deadline=None)
def test_any_texts_written_by_a_library_come_back(tmp_path_factory, prompts: list[str], ending: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"p{ending}"
    match ending:
        case ".csv":
            path.write_bytes(csv_of(prompts, "\r\n").encode())
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), newline="")
        case _:
            pq.write_table(pa.table({"prompt": pa.array(prompts, pa.string())}), path)
    expected = list(dict.fromkeys(text.strip() for text in prompts if text.strip()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        if expected:
            assert read(path) == expected
        else:
            with pytest.raises(BadInput, match="has no prompts"):
                read(path)


@given(st.binary(max_size=60), st.sampled_from([".txt", ".csv", ".jsonl", ".parquet"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_message(tmp_path_factory, data: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"p{ending}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        try:
            assert all(text.strip() for text in read(path))
        except BadInput as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("p.csv", "id,text_en\n1,red star\n", None, "has no column 'prompt'; its columns: id, text_en$"),
        ("p.csv", "caption;x\nred star;1\n", None, "its columns: caption;x; its columns are separated by ';', not by commas"),
        ("p.csv", "prompt,other\nred star,x\n", "third", "has no column 'third'; its columns: prompt, other$"),
        ("p.jsonl", '{"id": true, "prompt": "red star"}\n', None, "line 1: 'id' must be a text or an integer, not True"),
        ("p.jsonl", '{"id": 1.5, "prompt": "red star"}\n', None, "line 1: 'id' must be a text or an integer, not 1.5"),
    ],
)  # fmt: skip
def test_columns_and_ids_that_are_wrong_are_named(
    tmp_path: Path, name: str, content: str, column: str | None, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        load_prompts(str(tmp_path / name), column=column)


def test_the_column_of_the_prompts_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,other\nred star,blue ring\n")
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "p.csv"), column="other")] == ["blue ring"]
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "p.csv"))] == ["red star"]


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["red star"]), pa.array(["blue ring"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(BadInput, match="two columns of one name: prompt, prompt"):
        load_prompts(str(tmp_path / "p.parquet"))


def test_fields_that_no_prompt_has_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("red star\n")
    with pytest.raises(BadInput, match="no field 'hard'; they have none"):
        load_prompts(str(tmp_path / "p.txt"), where={"hard": True})
