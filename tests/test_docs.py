"""Every command and every Python block of README.md and docs/*.md runs as printed.

The blocks of a page run in order, in one folder, which has the folder ``examples`` of the repository. A block is fenced, or
indented by four spaces. It is a file if the text above it says so: "Save this as `my_verifier.py`", "Add it to …"; other
Python blocks are programs, and other blocks that begin with a command are commands. A comment above a block changes this:

- ``<!-- not run: REASON -->``: it needs something that a test does not have,
- ``<!-- fragment: REASON -->``: it is no program of its own.

Blocks run twice: in this process, where searches on the embedded models run on the analytic one, and as they are, among the
slow tests. Where a page talks to the endpoint at 127.0.0.1:8000, the first blocks talk to one in this process, and the
others to the one that the page's first `lotts-search serve` starts, without Ray (tests/serve tests it on Ray).
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lotts_search.api
from lotts_search import registry
from lotts_search.backbones.base import Backbone
from lotts_search.cli import main
from lotts_search.cli.pools import Compute
from lotts_search.core.trial_table import write_parquet
from lotts_search.engine import local_pool
from lotts_search.testing.analytic import analytic_info
from lotts_search.testing.studies import Simulated, simulate
from lotts_search.work.pool import Pool
from tests.cli.test_cli import Masking
from tests.serve.running import running

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md"))]
PROMPT = "top left red circle, center blue star on gray"
COMMANDS = (
    "lotts-search",
    "python",
    "make",
    "pip",
    "pytest",
    "cat",
    "source",
    "duckdb",
    "ray",
    "git",
    "curl",
    "PROMPT=",
)
ADDRESS = "127.0.0.1:8000"
SHELLS, DATA = ("sh", "bash", "shell", "console"), ("yaml", "toml", "json")
MARK = re.compile(r"<!-- (not run|fragment): (.+?) -->\s*$")
FILE = re.compile(r"(?:[Ss]ave (?:this|it) as|[Aa]dd (?:this|it) to|This\s|complete source,)\s*`([\w./-]+\.\w+)`")


@dataclass
class Block:
    """A block of a page.

    Attributes:
        kind: file, python, shell, data or text.
        file: the name of a file.
        mark: why it is not run.
    """

    page: str
    line: int
    kind: str
    code: str
    file: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        start, language = number, None
        if lines[number].startswith("```"):
            language = lines[number].removeprefix("```").strip()
            number += 1 + lines[number + 1 :].index("```")
            code = lines[start + 1 : number]
        elif lines[number].startswith("    ") and not (number and lines[number - 1].strip()):
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            code = [line.removeprefix("    ") for line in lines[start : number + 1]]
        number += 1
        if number > start + 1 or lines[start].startswith("    "):
            found.append(block(page, start, language, "\n".join(code) + "\n", "\n".join(lines[:start]).rstrip()))
    return found


def block(page: str, start: int, language: str | None, code: str, above: str) -> Block:
    """Return a block; ``above`` is the text above it."""
    mark = MARK.search(above)
    above = above[: mark.start()].rstrip() if mark else above
    name = FILE.search(above[above.rfind("\n\n") + 1 :].replace("\n", " "))
    kind = kind_of(language, code)
    is_file = name is not None and kind in ("python", "data")
    return Block(
        page, start + 1, "file" if is_file else kind, code, name[1] if name and is_file else "", mark[2] if mark else ""
    )


def kind_of(language: str | None, code: str) -> str:
    if language:
        return "shell" if language in SHELLS else "data" if language in DATA else language
    if code.startswith(COMMANDS):
        return "shell"
    try:
        compile(code, "block", "exec")
    except SyntaxError:
        return "text"
    return "python"


def commands_of(code: str) -> Iterator[str]:
    """Return the lines of a shell block, with continued lines joined."""
    yield from filter(None, (line.strip() for line in code.replace("\\\n", " ").splitlines()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which a reader works: with the examples, and with a finished study in runs/NAME."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    strategies = {"best-of-n": Simulated(images=16), "lotts": Simulated("lotts", images=9, speed=3)}
    table = simulate(strategies, prompts=8, rng=np.random.default_rng(0))
    names = [name.replace("metric_truth", "metric_oracle") for name in table.column_names]
    for run in ("runs/NAME", "out/paper/shapes-sd/table-01"):
        write_parquet(table.rename_columns(names), tmp_path / run / "trials.parquet")
    shutil.copy(ROOT / "examples" / "study.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT", PROMPT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, command in {"python": sys.executable, "lotts-search": f"{sys.executable} -m lotts_search"}.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    (tmp_path / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    (tmp_path / "keys.txt").write_text("me a-key-of-16-characters\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches on embedded models run on the analytic one, once commands have found all that they name."""

    @contextmanager
    def opened(self: Compute, model: str, *verifiers: str, rewriters: Any = None, **options: Any) -> Iterator[Pool]:
        registry.family_of(model)
        for name in verifiers:
            registry.metric_class(name) or registry.load_verifier(name)
        for name, settings in (rewriters or {}).items():
            registry.load_rewriter(name, settings)
        with Masking() as pool:
            yield pool

    def local(backbone: Backbone, *arguments: Any, **options: Any) -> Pool:
        return Masking() if "shapes" in backbone.info.name else real(backbone, *arguments, **options)

    @contextmanager
    def found(pool: Pool | None, *names: str) -> Iterator[Pool]:
        if pool is not None:
            yield pool
        else:
            with Masking() as made:
                yield made

    real = local_pool.LocalPool
    monkeypatch.setattr(Compute, "pool", opened)
    monkeypatch.setattr(local_pool, "LocalPool", local)
    monkeypatch.setattr(lotts_search.api, "_pool", found)


@contextmanager
def served(page: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Block], Block]]:
    """Yield a function that lets a block talk to a server over the analytic model, if the page talks to one."""
    if ADDRESS not in (ROOT / page).read_text(encoding="utf-8"):
        yield lambda block: block
        return
    with running(Masking(replace(analytic_info(), name="shapes-sd"), shuffle=1)) as server:
        address = server.url.removeprefix("http://")
        monkeypatch.setenv("LOTTS_URL", server.url)
        yield lambda block: replace(block, code=block.code.replace(ADDRESS, address))


@contextmanager
def serving(line: str, folder: Path) -> Iterator[None]:
    """Run a command that serves at ADDRESS until the end of the block."""
    with (folder / "served.txt").open("w") as log:
        process = subprocess.Popen(
            [*shlex.split(line), *([] if "--local" in line else ["--local"])], cwd=folder, stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "served.txt").read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://{ADDRESS}/readyz"):
                break
            time.sleep(1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def carry_out(block: Block, folder: Path, shell: bool) -> None:
    """Run one block.

    Args:
        shell: run commands as they are, instead of in this process.
    """
    if block.mark or block.kind in ("text", "data"):
        return
    if block.kind == "file":
        path = folder / block.file
        sys.modules.pop(path.stem, None)
        importlib.invalidate_caches()
        path.write_text(path.read_text() + "\n" + block.code if path.exists() and path.suffix == ".py" else block.code)
        if "__main__" in block.code:
            runpy.run_path(str(path), run_name="__main__")
    elif block.kind == "python":
        program = folder / "program.py"
        program.write_text(block.code)
        runpy.run_path(str(program), run_name="__main__")
    elif shell or block.code.startswith("curl"):
        subprocess.run(["bash", "-ec", block.code], check=True, cwd=folder)
    else:
        for line in commands_of(block.code):
            run_command(line, folder)


def run_command(line: str, folder: Path) -> None:
    words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
    if words[0].startswith("PROMPT="):
        os.environ["PROMPT"] = words[0].removeprefix("PROMPT=")
    elif words[0] == "lotts-search":
        if words[1] == "study" and "--dry-run" not in words:
            words.append("--dry-run")  # it is run among the slow tests
        if words[1] == "serve":
            return pretend_to_serve(words)
        if words[1] == "report":
            words = [*(word if "/" not in word else "runs/NAME" for word in words), "--trees", "0", "--no-figures"]
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert not ended.value.code, line
    elif words[:2] == ["pip", "install"] and (extra := re.fullmatch(r"lotts-search\[(\w+)\]", words[2])):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert extra[1] in project["optional-dependencies"], line
    elif words[0] == "source":
        assert "VENV ?= .venv\n" in (ROOT / "Makefile").read_text(), line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] == "cat":
        assert all((folder / word).is_file() for word in words[1:]), line
    else:
        words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
        subprocess.run(words, check=True, cwd=folder)


def pretend_to_serve(words: list[str]) -> None:
    """Run ``lotts-search serve`` up to the start of its server."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit) as ended:
        where = "local" if "--local" in words else "deployment"
        monkeypatch.setattr(f"lotts_search.serve.{where}.run", lambda *_: None)
        main(words[1:])
    assert not ended.value.code, words


def test_blocks_are_found() -> None:
    """The mechanism sees what it should: otherwise it would pass on an empty page."""
    kinds = {page: [block.kind for block in blocks_of(page)] for page in PAGES}
    assert kinds["README.md"].count("python") == 1 and kinds["README.md"].count("shell") >= 7
    assert sum(block.file == "my_strategies.py" for block in blocks_of("docs/write-a-strategy.md")) == 3
    files = {block.file for page in PAGES for block in blocks_of(page)}
    assert {"my_verifier.py", "my_metric.py", "my_rewriter.py", "my_masks.py", "my_family.py", "study.yaml"} <= files
    for page in PAGES:
        for block in blocks_of(page):
            assert block.kind in ("file", "python", "shell", "data", "text"), block
            unmarked = block.kind == "text" and re.match(r"\$|>>>", block.code)
            assert not unmarked, f"{block}: write commands without a prompt"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, folder: Path, analytic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(page, monkeypatch) as moved:
        for block in blocks_of(page):
            try:
                carry_out(moved(block), folder, shell=False)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{block}:\n{block.code}\n{type(error).__name__}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.kind == "shell" and not b.mark for b in blocks_of(page))]
)
def test_blocks_run_as_they_are(page: str, folder: Path) -> None:
    with ExitStack() as server:
        for block in blocks_of(page):
            if not block.code.startswith(("make", "source")):
                if lines := re.findall("^lotts-search serve.*", block.code, re.MULTILINE) if not block.mark else []:
                    server.close()
                    server.enter_context(serving(lines[-1], folder))
                else:
                    carry_out(block, folder, shell=True)
