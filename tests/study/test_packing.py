"""What a study needs elsewhere is copied, and is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lotts_search.errors import BadInput, Notice
from lotts_search.study.packing import pack
from lotts_search.study.read import read_study
from tests.study.worlds import world

ROOT = Path(__file__).parents[2]
STRATEGY = """\
from dataclasses import dataclass
from packed_helper import MORE
from lotts_search.strategies.best_of_n import BestOfN

@dataclass
class Mine(BestOfN):
    \"\"\"Best-of-N.\"\"\"
    more: int = MORE
"""
YAML = """\
strategies: ["packed_strategies.mine:Mine"]
prompts: {from: prompts/some.txt, count: 1}
budgets: {nfe: [20]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader stands, with a study in a folder below it."""
    folder = tmp_path / "here"
    for name, text in {
        "packed_strategies/__init__.py": "",
        "packed_strategies/mine.py": STRATEGY,
        "packed_helper.py": "MORE = 3\n",
        "studies/first.yaml": YAML,
        "studies/prompts/some.txt": "red star\n",
        "unused.py": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_a_packed_study_can_be_read_elsewhere(here: Path, tmp_path: Path) -> None:
    to = tmp_path / "there"
    file = pack(to, [], read_study(Path("studies/first.yaml")))
    assert not (to / "unused.py").exists()
    (here / "packed_helper.py").unlink()  # nothing is found here by mistake
    program = "import sys; from pathlib import Path; from lotts_search.study.read import read_study\n"
    program += "study = read_study(Path(sys.argv[1])); print(study.strategies[0].strategy.more, study.prompts[0].text)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(to), str(ROOT)])}
    ran = subprocess.run(
        [sys.executable, "-c", program, str(file)], cwd=to, env=environ, check=True, capture_output=True, text=True
    )
    assert ran.stdout == "3 red star\n"


def test_a_study_of_another_folder_lies_at_the_root(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    to = tmp_path / "there"
    assert str(pack(to, [], read_study(here / "studies" / "first.yaml"))) == "first.yaml"
    assert (to / "prompts" / "some.txt").read_text() == "red star\n"
    assert (to / "packed_strategies" / "mine.py").read_text() == STRATEGY


@pytest.mark.parametrize(
    ("source", "place"), [("../up.txt", "up.txt"), ("../studies/prompts/some.txt", "studies/prompts/some.txt")]
)
def test_prompts_of_a_folder_above_the_study(here: Path, tmp_path: Path, source: str, place: str) -> None:
    (here / "up.txt").write_text("red star\n")
    Path("studies/first.yaml").write_text(YAML.replace("prompts/some.txt", source))
    pack(tmp_path / "there", [], read_study(Path("studies/first.yaml")))
    assert (tmp_path / "there" / place).read_text() == "red star\n"


def test_prompts_that_cannot_be_sent_are_refused(here: Path, tmp_path: Path) -> None:
    (tmp_path / "up.txt").write_text("red star\n")
    Path("studies/first.yaml").write_text(YAML.replace("prompts/some.txt", "../../up.txt"))
    with pytest.raises(BadInput, match="put it beside the study file"):
        pack(tmp_path / "there", [], read_study(Path("studies/first.yaml")))
    Path("studies/first.yaml").write_text(YAML.replace("prompts/some.txt", str(tmp_path / "up.txt")))
    with pytest.warns(Notice, match="must lie at this path"):
        pack(tmp_path / "there", [], read_study(Path("studies/first.yaml")))
    assert not list((tmp_path / "there").rglob("up.txt"))


def test_a_model_of_this_machine_is_named_or_sent(here: Path, tmp_path: Path) -> None:
    world(here)
    path = Path("local.yaml")
    path.write_text("model: ./analytic\nstrategies: [best-of-n]\nprompts: [red star]\nbudgets: {nfe: 20}\n")
    study = read_study(path)
    with pytest.raises(BadInput, match=r"--include \./analytic"):
        pack(tmp_path / "there", [], study)
    assert not (tmp_path / "there").exists()
    pack(tmp_path / "there", [Path("analytic")], study)
    assert (tmp_path / "there" / "analytic" / "lotts.json").is_file()


def test_installed_modules_stay_at_home(here: Path, tmp_path: Path) -> None:
    pack(tmp_path / "there", [], read_study(Path("studies/first.yaml")))
    assert not {"numpy", "lotts_search", "yaml", "json"} & {path.name for path in (tmp_path / "there").iterdir()}


def test_a_file_under_a_name_that_nothing_can_import_stays_at_home(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some programs load plug-ins under their path."""
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    (loaded / "__init__.py").write_text("")
    module = ModuleType(str(loaded))
    module.__file__ = str(loaded / "__init__.py")
    monkeypatch.setitem(sys.modules, str(loaded), module)
    pack(tmp_path / "there", [], read_study(Path("studies/first.yaml")))
    assert (tmp_path / "there" / "studies" / "first.yaml").is_file()
