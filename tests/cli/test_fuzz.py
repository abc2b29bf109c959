"""Fuzzing: whatever a study file or the options say, the command runs or ends with one clear message.

Inputs are mutations of valid ones by a seeded generator. Searches run on the analytic model.
``LOTTS_FUZZ=2000`` tries as many instead of the usual number.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import signal
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lotts_search import registry
from lotts_search.cli import main
from lotts_search.cli.pools import Compute
from lotts_search.shapes.world import scene
from lotts_search.testing import AnalyticPool
from lotts_search.work.pool import Pool
from tests.study.worlds import world

COUNT = int(os.environ.get("LOTTS_FUZZ", "150"))
SECONDS = 20
"""Most that one input may take."""

STUDY: dict[str, Any] = {
    "name": "fuzz",
    "model": "./analytic",
    "strategies": [
        "best-of-n",
        {"strategy": "lotts", "label": "L {refinements}", "grid": {"refinements": [1, 2]}, "settings": {"ratio": 0.4}},
        {"strategy": "ttgen", "budgets": {"images": 3}, "nested": False},
    ],
    "prompts": {"from": "shapes-test", "count": 2, "seed": 0, "where": {"objects": 7}},
    "budgets": {"nfe": [24, 40], "images": 2, "samples": 2},
    "seeds": [0, 1],
    "seconds": 60,
    "verifier": "shapes-reward",
    "metrics": ["shapes-oracle"],
    "judge": "best",
    "baselines": ["best-of-n"],
    "workers": 4,
    "images": "none",
    "at-once": 4,
    "rewriter": {"name": "shapes-rewriter", "settings": {"timeout": 5}},
    "steps": 8,
    "guidance": 2.5,
    "negative": "dull",
    "eta": 0.5,
    "solver": "ddim",
}
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-12, 1e300, -1e300, 10**8, 10**30, float("inf"), float("nan"), "", " ",
    "0", "-1", "1e3", "none", "null", "~", "true", "auto", "../x", "/", "a/b", ".", "\x07", "é", "日本", "💥", "{", "{}", "{x}",
    "%s", "a:b", "os:path", "os:system", "lotts_search:nope", "tests.cli.test_fuzz:COUNT", "a" * 5000, [], {}, [[]],
    [None], [1, "a"], {"": 1}, {"a": {"b": [1]}}, {1: 2}, "best-of-n", "lotts", "shapes-sd", "shapes-test", "cpu", "x.csv",
    "\ud800", "\u2028", "=", "a=", "=b", "n=1", "n=0", "n=1e99", "[1,2", '{"kind": "fusion"}', "64x64", "-5x3", "1x2x3",
]  # fmt: skip
"""Values that are wrong in most places."""


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Return the places of a tree: its containers with a key or an index each."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from nodes(value)


def mutated(chance: random.Random, model: str) -> str:
    """Return the text of a study file: the valid one with one to three changes."""
    study = yaml.safe_load(yaml.safe_dump(STUDY))
    study["model"] = model
    for key in chance.sample(list(study), chance.randrange(0, 12)):
        if key not in ("strategies", "prompts", "budgets", "model"):
            del study[key]
    for _ in range(chance.choice((1, 1, 2, 3))):
        container, key = chance.choice(list(nodes(study)))
        how = chance.randrange(6)
        if how == 0:
            del container[key]
        elif how == 1 and isinstance(container, dict):
            container[str(chance.choice(ODD))] = container.pop(key)
        elif how == 2:
            container[key] = [container[key], container[key]]
        elif how == 3:
            container[key] = {str(chance.choice(ODD)): container[key]}
        else:
            container[key] = chance.choice(ODD)
        if not study:
            break
    text = yaml.safe_dump(
        study, allow_unicode=chance.random() < 0.5, default_flow_style=chance.choice((None, True, False))
    )
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at = chance.randrange(len(text) + 1)
        cut = chance.choice((0, 0, 1, 5))
        text = (
            text[:at]
            + chance.choice([*":-[]{}&*!|>'\"%@`#,?\n\t\0", "é", "<<", "---\n", "!!python/name:os.system"])
            + text[at + cut :]
        )
    return text


def words(chance: random.Random) -> list[str]:
    """Return the words of a command: a valid one with random options and values."""
    options = {
        "--model": ["shapes-sd"], "--strategy": sorted(registry.strategies()), "--verifier": ["shapes-reward"],
        "--seed": ["0", "7", str(2**63)], "--steps": ["4", "8"], "--guidance": ["1", "2.5"], "--solver": ["dpm", "ddim"],
        "--eta": ["0", "1"], "--negative": ["dull"], "--set": ["n=4", "refinements=2", "ratio=0.3"],
        "--rewriter": ["shapes-rewriter"], "--set-rewriter": ["timeout=5"], "--dtype": ["float32"], "--size": ["64"],
        "--lora": ["a.safetensors:0.5"], "--offload": ["model"], "--preview": ["x"], "--revision": ["main"],
        "--variant": ["fp16"], "--nfe": ["24", "60"], "--images": ["1", "4"], "--seconds": ["1"], "--target": ["0.9"],
        "--address": ["auto"], "--generators": ["1"], "--device": ["cpu"], "--batch": ["2", "8", "2,4,8"],
    }  # fmt: skip
    flags = ["--local", "--json", "--vae-slicing", "--vae-tiling", "--compile", "--debugg", "-x", "--"]
    found = ["generate", chance.choice(["red star", "red star", "red star", *map(str, ODD)])]
    for name in chance.sample(list(options), chance.randrange(0, 6)):
        valid = chance.random() < 0.6
        found += [name, chance.choice(options[name]) if valid else str(chance.choice(ODD))]
    if chance.random() < 0.2:
        found.insert(chance.randrange(len(found) + 1), chance.choice([*flags, *map(str, ODD)]))
    if chance.random() < 0.1:
        del found[chance.randrange(len(found))]
    return found


@pytest.fixture(autouse=True)
def analytic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def opened(self: Compute, model: str, *verifiers: str, **options: object) -> Iterator[Pool]:
        with AnalyticPool() as pool:
            yield pool

    monkeypatch.setattr(Compute, "pool", opened)
    monkeypatch.setattr(scene, "scenes", functools.cache(scene.scenes))  # drawing them takes most of the time
    monkeypatch.chdir(tmp_path)


def outcome(arguments: list[str]) -> str | None:
    """Run a command; return what is wrong with how it ended."""

    late = []

    def stop(*_: object) -> None:
        late.append(f"it took more than {SECONDS} s")
        signal.raise_signal(signal.SIGINT)  # an exception of another kind could be taken for a trial's

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    code: object = "it returned"
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        return f"raised {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if late:
        return late[0]
    said = err.getvalue()
    errors = [line for line in said.splitlines() if line.startswith("error: ") or "Error ─" in line]
    if "(unexpected;" in said or "Traceback" in said + out.getvalue():
        return said
    if (
        code not in (0, 1, 2)
        or (code and len(errors) != 1 and "Usage" not in said + out.getvalue())
        or (not code and errors)
    ):
        return f"code {code}: {said}"
    return None


def report(wrong: list[str]) -> None:
    assert not wrong, f"{len(wrong)} of {COUNT}:\n\n" + "\n\n".join(wrong[:40])


def test_study_files(tmp_path: Path) -> None:
    model = world(tmp_path).parent / "analytic"
    wrong = []
    for number in range(COUNT):
        text = mutated(random.Random(f"study {number}"), str(model))
        file = tmp_path / "fuzz.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        said = outcome(["study", str(file), "--dry-run", "--local"])
        if said:
            wrong.append(f"--- {number}\n{text}\n{said}")
    report(wrong)


def test_options(tmp_path: Path) -> None:
    wrong = []
    for number in range(COUNT):
        arguments = words(random.Random(f"options {number}"))
        said = outcome(arguments)
        if said:
            wrong.append(f"--- {number} {arguments}\n{said}")
    report(wrong)


def test_the_mutations_are_of_both_kinds() -> None:
    """Some inputs are still valid, most are not: otherwise the other tests would say little."""
    texts = {mutated(random.Random(f"study {number}"), "./analytic") for number in range(100)}
    assert len(texts) > 90 and all(set(text) & set(string.ascii_letters) for text in texts)
