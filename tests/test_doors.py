"""The ways in: the version, ``python -m``, and pages whose links and names lead somewhere."""

from __future__ import annotations

import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import lotts_search
from lotts_search.cli import main
from lotts_search.work.requests import Rewrite

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "lotts_search", "examples", "tests", "benchmarks", "cluster", "strategies", "actors", "integrations")
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")))
)
GROUPS = {f"lotts_search.{kind}" for kind in ("strategies", "verifiers", "rewriters", "masks", "families", "metrics")}
"""Entry-point groups: they look like modules and need not be any."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FILE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w*])")
NAME = re.compile(r"(?<![\w./-])lotts_search(?:\.\w+)+(?::\w+)?(?![\w*/])")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def code_of(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def python(*arguments: str) -> str:
    """What a Python process in the repository prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def test_version_equals_the_metadata_of_the_package() -> None:
    assert lotts_search.__version__ == importlib.metadata.version("lotts-search")
    assert f"version: {lotts_search.__version__}\n" in text_of("CITATION.cff")
    assert f"## [{lotts_search.__version__}] - " in text_of("CHANGELOG.md")


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lotts-search {lotts_search.__version__}\n"


def test_python_m_is_the_command() -> None:
    assert python("-m", "lotts_search", "--version") == f"lotts-search {lotts_search.__version__}\n"


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, lotts_search.cli; print(sorted({'torch', 'ray', 'diffusers'} & set(sys.modules)))"
    assert python("-c", program) == "[]\n"


def test_every_public_name_can_be_imported() -> None:
    for name in lotts_search.__all__:
        assert getattr(lotts_search, name) is not None


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("generate", "refine", "study", "report", "demo", "models", "strategies", "verifiers", "masks"):
        assert re.search(rf"^│ {command} ", shown, re.MULTILINE), command


def test_ci_is_made_of_make_targets() -> None:
    makefile = text_of("Makefile")
    for target in ("ci", "lint", "test", "docs"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make ci" in text_of(".ci/run")
    steps = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]["ci"]["steps"]
    assert all(step["run"].startswith("make ") for step in steps if "run" in step)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = ROOT / page if not path else (ROOT / page).parent / path
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # it names what is gone
def test_files_and_names_that_a_page_mentions_exist(page: str) -> None:
    text = text_of(page)
    for file in FILE.findall(text):
        assert (ROOT / file).exists(), f"{page} mentions {file}"
    for name in NAME.findall(text):
        if name not in GROUPS:
            pkgutil.resolve_name(name)  # raises where there is no such name


def test_first_program_of_the_readme_saves_an_image(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = code_of("README.md")[0]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment, timeout=300)
    assert Image.open(tmp_path / "best.png").size == (64, 64)


def test_plug_ins_of_the_guides_work() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    verifier, metric = (
        next(block for block in code_of("docs/verifiers.md") if f"class {name}" in block)
        for name in ("Brightness", "Colours")
    )
    for block in (verifier, metric, *code_of("docs/rewriters.md")):
        exec(compile(block, "guide", "exec", dont_inherit=True), names)  # noqa: S102
    images = np.full((2, 4, 4, 3), 255, np.uint8)
    assert names["Brightness"].load().score(["a", "b"], images).tolist() == [1, 1]
    judged = names["Colours"]().judge(images, "a")
    assert set(judged) == set(names["Colours"].columns) and list(judged["colourful"]) == [0, 0]
    assert names["Louder"]().rewrite([Rewrite("louder", "a", images[0], 2, 0)]) == [["a, detailed", "a, very detailed"]]
