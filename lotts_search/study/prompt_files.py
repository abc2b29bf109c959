"""Local files of prompts: plain text, CSV, JSON Lines and Parquet.

A file is either read as it was meant or refused with the file, the line and the reason: a prompt that is cut, split or
replaced by something else would decide a whole study without a word.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotts_search.errors import BadInput, check_text

COLUMNS = ("prompt", "caption", "text", "Prompt", "Prompts")
"""Columns that hold the prompt where none is named; the first one that a file has."""
LARGEST_CELL = 1 << 24
"""Characters of the longest cell of a CSV file. Python's own limit, 131,072, is too small for some exports."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: the line that it begins on, or its number in a Parquet file, from 1.
        values: its columns.
    """

    line: int
    values: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a ``.txt``, ``.csv``, ``.jsonl`` or ``.parquet`` file.

    A line of a text file, and a JSON text, is a row with the column ``prompt``. A file is UTF-8, or UTF-16 or UTF-32
    with a byte order mark. Lines end with LF, CR LF or CR, and with no other character: U+2028 and U+0085 belong to a
    prompt.

    Raises:
        BadInput: there is no such file, or it cannot be read as what its name says; with the line.
    """
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".txt": _text_rows,
        ".csv": _csv_rows,
        ".jsonl": _json_rows,
        ".parquet": _parquet_rows,
    }
    try:
        return readers[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def prompt_column(path: Path | str, rows: Sequence[Row], column: str | None) -> str:
    """Return the column that holds the prompt: ``column``, or the first of :data:`COLUMNS` that the first row has.

    Raises:
        BadInput: there is no such column.
    """
    names = list(rows[0].values) if rows else []
    if column is None:
        column = next((name for name in COLUMNS if name in names), None)
    if column is None or column not in names:
        listed = ", ".join(map(str, names)) or "none"
        separators = [mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]]
        hint = f"; its columns are separated by {separators[0]!r}, not by commas" if separators else ""
        raise BadInput(f"{path} has no column {column or 'prompt'!r}; its columns: {listed}{hint}")
    return column


def prompt_text(path: Path | str, row: Row, column: str) -> str:
    """Return the prompt of a row without surrounding white space; "" where the cell is empty or null.

    Raises:
        BadInput: the row has no such column, or its value is not a text that can be stored.
    """
    where = f"{path}, line {row.line}"
    if column not in row.values:
        raise BadInput(f"{where}: no column {column!r}; its columns: {', '.join(map(str, row.values))}")
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{where}: {column!r} must be a text, not {type(value).__name__}: {str(value)[:40]}")
    return check_text(value.strip(), where)


def row_id(path: Path | str, row: Row) -> str | None:
    """Return the column ``id`` of a row as a text; None where it is missing or empty.

    Raises:
        BadInput: it is neither a text nor an integer.
    """
    value = row.values.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadInput(f"{path}, line {row.line}: 'id' must be a text or an integer, not {value!r}")
    return check_text(str(value), f"{path}, line {row.line}")


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {line}: not {encoding.removesuffix('-sig').upper()} (byte {data[error.start]:#04x}); "
            "save the file as UTF-8"
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number the lines from 1. ``str.splitlines`` also breaks at U+2028 and its like, which may stand in a prompt."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        yield number, line.rstrip("\n")


def _text_rows(path: Path) -> list[Row]:
    return [Row(number, {"prompt": line}) for number, line in _lines(_read_text(path)) if line.strip()]


def _csv_rows(path: Path) -> list[Row]:
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        return list(_parse_csv(path, _read_text(path)))
    finally:
        csv.field_size_limit(before)


def _parse_csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"{path}, line {line}: not CSV ({error})") from error
        if cells is None:
            return
        if header is None and cells:
            header = [cell.strip() for cell in cells]
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise BadInput(f"{path}, line {line}: column {repeated[0]!r} is repeated")
        elif header is not None and cells:
            if len(cells) != len(header):
                raise BadInput(
                    f"{path}, line {line}: {len(cells)} cells for {len(header)} columns ({', '.join(header)}); "
                    "put a text that has commas in double quotes"
                )
            yield Row(line, dict(zip(header, cells, strict=True)))
        line = reader.line_num + 1


def _json_rows(path: Path) -> list[Row]:
    rows = []
    for number, line in _lines(_read_text(path)):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except RecursionError as error:
            raise BadInput(f"{path}, line {number}: not JSON (nested too deeply)") from error
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(value, str | dict):
            raise BadInput(f"{path}, line {number}: neither a JSON object nor a text: {line.strip()[:40]}")
        rows.append(Row(number, {"prompt": value} if isinstance(value, str) else value))
    return rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return found


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if len(set(names)) < len(names):
            raise BadInput(f"{path} has two columns of one name: {', '.join(names)}")
        rows = pq.read_table(path).to_pylist()
    except BadInput:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    return [Row(number, values) for number, values in enumerate(rows, 1)]
