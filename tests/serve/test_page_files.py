"""The files of the page: their headers, and that they are all installed."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lotts_search.serve.page import COLOURS, FOLDER
from tests.serve.running import running

FILES = [*sorted(FOLDER.iterdir()), COLOURS]


def test_files_are_served_with_a_strict_policy() -> None:
    with running() as server:
        for path, file in [("/", FOLDER / "index.html"), *((f"/web/{file.name}", file) for file in FILES)]:
            answer = server.http.get(path)
            assert answer.content == file.read_bytes()
            policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert server.http.head("/").status_code == 200
        for path in ("/web/", "/web/none.js", "/web/%2e%2e/page.py", "/web/..%2fpage.py"):
            assert server.http.get(path).status_code == 404, path


def test_the_page_has_nothing_that_its_policy_forbids() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(.*?)>", html) == [' type="module" src="web/main.js"']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere(file: Path) -> None:
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//\w+\.", text)
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text


def test_all_files_are_in_the_wheel() -> None:
    root = FOLDER.parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "lotts_search"
    ]
    for file in FILES:
        name = str(file.relative_to(root / "lotts_search"))
        assert any(fnmatch(name, pattern) for pattern in patterns), name
