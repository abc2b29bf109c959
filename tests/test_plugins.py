"""What a person who writes a plug-in gets to see: its description in the lists, and one message for each slip, before any
step."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest

from lotts_search import LocalPool, plugins, registry, search
from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.localization.locate import locate
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.lotts import LoTTS
from lotts_search.study.read import read_study
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.masks import mask_from_dict, mask_kinds
from lotts_search.work.requests import Segment
from tests.cli.test_cli import PROMPT, call, unused
from tests.cli.test_cli import use as use_in_generate
from tests.engine.test_before_the_search import Recorder
from tests.localization.test_mask_sources import SAMPLING, LargestErrorMask, work
from tests.study.test_command import use
from tests.study.worlds import world
from tests.tiny import run, sample, tiny_backbone

CODE = '''\
from dataclasses import dataclass
from typing import ClassVar, Literal

from lotts_search.core.strategy import MaskSource, Plan, Strategy
from lotts_search.localization.select import from_heat
from lotts_search.verifiers.metric import Metric


@dataclass
class Careful(Strategy):
    """Take care.

    Attributes:
        pace: how fast it goes.
    """

    pace: Literal["fast", "slow"] | None = "fast"
    mask: MaskSource | None = None

    async def run(self, search):
        image = await search.sample(0)
        await search.localize(image, self.mask)

    def plan(self, budget, costs):
        return Plan.of(("sample", 1, costs.sample))


@dataclass
class Planless(Strategy):
    async def run(self, search):
        pass

    def plans(self, budget, costs):
        pass


class Undecorated(Strategy):
    keep: int = 2
    many: ClassVar[int] = 3

    async def run(self, search):
        pass

    def plan(self, budget, costs):
        return Plan.of(("sample", 0, costs.sample))


class Judge:
    """Judge images.

    Longer explanation.
    """

    @classmethod
    def load(cls, *, threshold: float = 0.5):
        return cls()

    def scores(self, prompts, images):
        return images.mean(axis=(1, 2, 3))


class Loader:
    @classmethod
    def loads(cls):
        return cls()


class Gauge(Metric):
    """Measure images."""

    columns = ("gauge",)

    def judges(self, images, prompt):
        return {}


@dataclass
class Writer:
    """Write prompts."""

    def rewrites(self, requests):
        return []


@dataclass(frozen=True)
class BrightMask(MaskSource):
    """Where it is bright.

    Attributes:
        level: how bright.
    """

    ratio: float = 0.5
    level: int = 200
    method: ClassVar[str] = "mine:locate"

    def rows(self):
        return 2


@dataclass(frozen=True)
class RowMask(BrightMask):
    rows = MaskSource.rows

    def row(self):
        return 2


@dataclass(frozen=True)
class BareMask(BrightMask):
    method: ClassVar[str] = ""


@dataclass(frozen=True)
class LostMask(BrightMask):
    method: ClassVar[str] = "mine:lokate"


@dataclass(frozen=True)
class ModeMask(BrightMask):
    mode: Literal["pale", "dark"] = "pale"


@dataclass(frozen=True)
class OpenMask(MaskSource):
    ratio: float
    method: ClassVar[str] = "mine:locate"

    def rows(self):
        return 0


@dataclass(frozen=True)
class RatiolessMask(MaskSource):
    method: ClassVar[str] = "mine:locate"

    def rows(self):
        return 0


@dataclass
class Crooked(Careful):
    async def run(self, search):
        await search.smaple(0)


@dataclass(frozen=True)
class BlindMask(BrightMask):
    method: ClassVar[str] = "mine:look"


def look(backbone, work, source):
    return locate(backbone, work, source) if work.image.any() else None


def locate(backbone, work, source):
    return from_heat(work.state.latent[0], source.ratio, work.state.latent.shape[1:], {})
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let ``mine.py`` lie in the working directory."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the plug-ins of ``mine.py`` names, as an installed package does."""
    kinds = {
        "strategies": "Careful",
        "verifiers": "Judge",
        "metrics": "Gauge",
        "rewriters": "Writer",
        "masks": "BrightMask",
    }
    points = [EntryPoint("my-own", f"mine:{name}", f"lotts_search.{kind}") for kind, name in kinds.items()]
    points.append(EntryPoint("gone", "nowhere:Gone", "lotts_search.strategies"))
    points.append(EntryPoint("bare", "mine:Planless", "lotts_search.strategies"))
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point for point in points if point.group == group])
    plugins._plugins.cache_clear()
    yield
    plugins._plugins.cache_clear()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("strategies", "Take care."),
        ("verifiers", "Judge images."),
        ("metrics", "Measure images."),
        ("rewriters", "Write prompts."),
        ("masks", "Where it is bright."),
    ],
)
def test_lists_show_the_first_line_of_a_plug_in(
    command: str, line: str, named: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["my-own"] == f"{line} (from another package)"
    if command == "strategies":
        assert "No module named 'nowhere'" in listed["gone"]
        assert listed["bare"] == "It has no docstring. (from another package)"
        assert listed["lotts"] == registry.strategies()["lotts"].summary
    assert call(command) == 0
    assert f"my-own {line}" in " ".join(capsys.readouterr().out.split())


def test_masks_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("masks", "mine:BrightMask") == 0
    shown = capsys.readouterr().out
    for said in ("Where it is bright.", "method mine:locate", "2 network rows", "how bright.", "mine:BrightMask"):
        assert said in shown
    assert call("masks", "fusion", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert [setting["name"] for setting in about["settings"]] == ["ratio", "sources", "weights", "scale"]
    assert about["source"].endswith("localization.fusion:FusionLocalization")
    for kind in mask_kinds():
        assert call("masks", kind) == 0
    assert call("masks", "fusionn") == 2
    assert "did you mean 'fusion'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "mine:Carefull"], "did you mean 'Careful'?"),
        (["--strategy", "mein:Careful"], "No module named 'mein'; did you mean 'mine'?"),
        (["--strategy", "mine.Careful"], "a class of a module is named mine:Careful"),
        (["--strategy", "mine:Planless"], "lacks the method plan(budget, costs) (did you mean 'plan' by 'plans'?)"),
        (["--strategy", "mine:Careful", "--set", "pase=slow"], "did you mean 'pace'?"),
        (["--strategy", "mine:Careful", "--set", "pace=quick"], "must be fast or slow or none, not 'quick'"),
        (["--verifier", "mine:Juge"], "did you mean 'Judge'?"),
        (["--verifier", "mine:Judge"], "lacks the method score(prompts, images) (did you mean 'score' by 'scores'?)"),
        (["--verifier", "mine:Loader"], "a class method load() that returns one (did you mean 'load' by 'loads'?)"),
        (["--strategy", "ttgen", "--rewriter", "mine:Writer"], "(did you mean 'rewrite' by 'rewrites'?)"),
        (["--set", "mask=mine:BrigthMask"], "did you mean 'BrightMask'?"),
        (["--set", "mask=mine:RowMask"], "lacks the method rows() (did you mean 'rows' by 'row'?)"),
        (["--strategy", ":Careful"], "strategy ':Careful' cannot be imported"),
        (["--set", "mask=mine:BareMask"], "the method of BareMask must be package.module:function, not ''"),
        (["--set", "mask=mine:LostMask"], "module 'mine' has no attribute 'lokate'; did you mean 'locate'?"),
        (["--set", 'mask={"kind": "mine:BrightMask", "levle": 3}'], "did you mean 'level'?"),
        (["--set", 'mask={"kind": "mine:BrightMask", "level": "high"}'], "must be an integer, not 'high'"),
        (["--set", 'mask={"kind": "mine:ModeMask", "mode": "plae"}'], "must be pale or dark, not 'plae'"),
        (
            ["--set", 'mask={"kind": "fusion", "sources": [{"kind": "random", "block": "big"}]}'],
            "an integer, not 'big'",
        ),
        (["--set", "mask=mine:OpenMask"], "its setting ratio needs a default"),
        (["--set", "mask=mine:RatiolessMask"], "it lacks the setting ratio"),
    ],
)
def test_a_slip_is_one_message_before_anything_starts(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unused(monkeypatch)
    assert call("generate", PROMPT, "--images", "2", *words) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_an_error_of_a_strategy_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_in_generate(monkeypatch, AnalyticPool())
    assert call("generate", PROMPT, "--images", "2", "--strategy", "mine:Crooked", "--out", str(tmp_path / "out")) == 1
    line = next(n for n, text in enumerate((tmp_path / "mine.py").read_text().splitlines(), 1) if "smaple" in text)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"error: AttributeError: 'Search' object has no attribute 'smaple' (mine.py, line {line})"


def test_a_mask_that_forgets_needs_decoded_is_refused_before_the_first_image() -> None:
    recorder = Recorder()
    with LocalPool(tiny_backbone(), {"recorder": recorder}) as pool, pytest.raises(Failure, match=r"'any' .mine.py"):
        search("a star", strategy=LoTTS(mask=mask_from_dict("mine:BlindMask")), pool=pool, images=3, steps=4)


def test_a_verifier_that_is_an_object_is_refused() -> None:
    with pytest.raises(BadInput, match=r"verifier must be a text, .* an object goes to a pool"):
        search(PROMPT, verifier=object())  # type: ignore[arg-type]


def test_settings_without_the_decorator_are_refused() -> None:
    with pytest.raises(BadInput, match="mine:Undecorated has no settings keep: put @dataclass above its class"):
        registry.make_strategy("mine:Undecorated", {})


def test_a_metric_without_its_method_is_refused_with_the_line_of_the_study(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("strategies: [best-of-n]\nprompts: [a]\nbudgets: {images: 2}\nmetrics:\n  - mine:Gauge\n")
    with pytest.raises(BadInput, match=r"line 5: .*judge\(images, prompt\) \(did you mean 'judge' by 'judges'\?\)"):
        read_study(file)


def test_a_plan_without_finish_is_refused() -> None:
    class Endless(LargestErrorMask):
        method = f"{__name__}:endless"

    (result,) = run(Engine(tiny_backbone(), 2), sample(0, SAMPLING))
    assert result.state is not None
    with pytest.raises(BadInput, match=r"plan of Endless lacks the method finish\(outputs\).*by 'finished'"):
        locate(tiny_backbone(), work(result.state, Endless()))


class endless:
    """A plan whose method has another name."""

    def __init__(self, *arguments: Any):
        self.rows = [1]

    def finished(self, outputs: Any) -> None:
        """Return nothing."""


def test_a_mask_among_the_settings_of_any_strategy_is_checked_before_the_first_image() -> None:
    """Also of one that is passed as an object, and does not inherit from Localized."""
    import mine

    wrong = mine.Careful(mask=mine.LostMask())
    with LocalPool(tiny_backbone(), {"recorder": Recorder()}) as pool:
        asked: list[object] = []
        submit = pool.submit
        pool.submit = lambda work: (asked.append(work), submit(work))[1]  # type: ignore[method-assign]
        with pytest.raises(BadInput, match="did you mean 'locate'"):
            search("a star", strategy=wrong, verifier="recorder", pool=pool, images=2, steps=4)
        assert asked and not [work for work in asked if isinstance(work, Segment)]
        found = search("a star", strategy=mine.Careful(mask=mine.BrightMask()), pool=pool, images=2, steps=4)
        assert [trial.kind for trial in found.trials] == ["sample", "score", "localize"]


@pytest.mark.parametrize(("old", "new"), [("pictured", "needs_decoded"), ("needs_picture", "needs_image")])
def test_old_spellings_of_a_mask_source_are_refused(old: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        CODE.replace('method: ClassVar[str] = "mine:locate"', f"{old}: ClassVar[bool] = True")
    )
    with pytest.raises(BadInput, match=f"{old} of BrightMask is now called {new}"):
        mask_from_dict("mine:BrightMask")


def test_old_spellings_of_a_conformance_test_are_refused() -> None:
    with pytest.raises(BadInput, match="pictures_are_steps of Suite is now called images_are_steps"):
        type("Suite", (StrategyConformance,), {"pictures_are_steps": True})


@dataclass
class Choosy(Strategy):
    """Has choices."""

    pace: Literal["fast", "slow"] = "fast"
    count: Literal["all"] | int = 3

    async def run(self, search: Search) -> None:
        await search.sample(0)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 1, costs.sample))


def test_choices_are_checked_from_the_annotations(tmp_path: Path) -> None:
    """In Python; tests above and below do so for the command line and study files."""
    with AnalyticPool() as pool:
        for strategy, name, choices in (
            (Choosy(pace="quick"), "pace", "fast or slow"),  # type: ignore[arg-type]
            (Choosy(count="some"), "count", "all"),  # type: ignore[arg-type]
            (LoTTS(background="fixd"), "background", "fixed or fresh"),  # type: ignore[arg-type]
        ):
            with pytest.raises(BadInput, match=f"^{name} must be {choices}, not"):
                search("red star", strategy=strategy, pool=pool, images=3)
        assert pool.asked == []
        search("red star", strategy=Choosy(pace="slow", count=7), pool=pool, images=3)
    file = world(tmp_path, "model: ./analytic\nstrategies:\n  - strategy: lotts\n    settings:\n      blank: wole\n"
                 "prompts: [a]\nbudgets: {images: 2}\n")  # fmt: skip
    with pytest.raises(BadInput, match="line 5: blank of strategy 'lotts' must be fail or whole or random, not 'wole'"):
        read_study(file)


def test_a_choice_that_only_a_function_knows_is_not_checked() -> None:
    Pace = Literal["fast", "slow"]

    @dataclass
    class Local(Choosy):
        pace: Pace = "fast"

    with AnalyticPool() as pool:
        search("red star", strategy=Local(), pool=pool, images=3)


def test_help_of_a_mask_names_plug_ins(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("strategies", "lotts", "--json") == 0
    about = {one["name"]: one for one in json.loads(capsys.readouterr().out)["settings"]}
    assert "package.module:Class" in about["mask"]["type"]


def test_the_tables_of_a_study_show_whole_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    label = "a strategy whose author likes long names very much indeed"
    yaml = f"model: ./analytic\nstrategies:\n  - strategy: best-of-n\n    label: {label}\nprompts: [a]\nbudgets: {{images: 2}}\n"
    use(monkeypatch, AnalyticPool())
    file = world(tmp_path, yaml)
    for words in (["--dry-run"], []):
        assert call("study", file, "--out", tmp_path / "run", *words) == 0
        assert label in capsys.readouterr().out


def test_a_cut_template_is_reported() -> None:
    """Best-of-N with p+ is a baseline: its images are made with the template, of which the text encoder reads a part."""
    with LocalPool(tiny_backbone(), {"recorder": Recorder()}) as pool:
        strategy = BestOfN(template=f"{'very ' * 12}good image of {{}}")
        with pytest.warns(Notice, match="does not read the end of the prompt: '.*image of a star'"):
            search("a star", strategy=strategy, verifier="recorder", pool=pool, images=1, steps=4)
