"""Registered names, and settings as text."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lotts_search import BadInput, registry
from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed
from lotts_search.strategies.lotts import LoTTS
from lotts_search.work.masks import AttentionMask, ErrorContrastMask, mask_from_dict, mask_kinds, mask_to_dict

LEVELS = (1, 2)


@dataclass
class FirstOfTwo(Strategy):
    """Sample two images.

    Attributes:
        widths: some
            numbers.
    """

    widths: tuple[int, ...] = (1, 2)

    async def run(self, search: Search) -> None:
        await gather_completed(search.sample(0), search.sample(1))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 2, costs.sample))


def test_text_is_parsed_by_the_types_of_the_fields():
    made = registry.make_strategy(
        "lotts",
        {
            "initial": "3",
            "ratio": "0.25",
            "spatial": "no",
            "background": "fresh",
            "start": "None",
            "mask": "attention",
            "high": "3",
        },
    )
    assert made == LoTTS(initial=3, ratio=0.25, spatial=False, background="fresh", mask=AttentionMask(), high="3")
    mask = '{"kind": "error-contrast", "levels": [150]}'
    assert registry.make_strategy("lotts", {"mask": mask}) == LoTTS(mask=ErrorContrastMask(levels=(150,)))
    path = f"{__name__}:FirstOfTwo"
    assert registry.make_strategy(path, {"widths": "3, 4"}) == FirstOfTwo((3, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refinement": "2"}, r"'refinement'; did you mean 'refinements'\?.*ratio"),
        ({"refinements": "two"}, "refinements of strategy 'lotts' must be an integer, not 'two'"),
        ({"refinements": 2.5}, "refinements of strategy 'lotts' must be an integer, not 2.5"),
        ({"ratio": True}, "ratio of strategy 'lotts' must be a number or none"),
        ({"background": "old"}, "must be fixed or fresh, not 'old'"),
        ({"spatial": "maybe"}, "must be true or false"),
        ({"mask": "atention"}, r"'atention'; did you mean 'attention'\?"),
        ({"mask": '{"kind": "random", "blocks": 2}'}, r"'blocks'; did you mean 'block'\?"),
        ({"mask": "{"}, "mask of strategy 'lotts' must be attention or"),
        ({"mask": '{"kind": "attention", "draws": 1001}'}, "a mask's draws must be at most 1000, not 1001"),
        ({"mask": '{"kind": "disagreement", "draws": 1e3}'}, "draws of mask 'disagreement' must be an integer"),
        ({"depth": "0"}, "depth must be 1 or more"),
        ({"high": "\udcff {}"}, "high of strategy 'lotts': a text holds half of a surrogate pair, U\\+DCFF"),
        ({"low": "a\0 {}"}, "low of strategy 'lotts': a text holds a NUL character"),
        ({"mask": '{"kind": "attention", "high": "\\ud800 {}"}'}, "high of mask 'attention': a text holds half"),
    ],
)
def test_a_bad_setting_raises_one_clear_message(settings, message):
    with pytest.raises(BadInput, match=message):
        registry.make_strategy("lotts", settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: registry.make_strategy("lots", {}), r"unknown strategy 'lots'; did you mean 'lotts'\?.*best-of-n"),
        (lambda: registry.make_strategy("nowhere.at_all:Thing", {}), "cannot be imported"),
        (lambda: registry.resolve_strategy("lotts_search.core.budget:Budget"), "not a strategy"),
        (lambda: registry.load_verifier("shape-reward"), r"did you mean 'shapes-reward'\?"),
        (lambda: registry.load_backbone("shapes-st"), r"did you mean 'shapes-sd'\?"),
    ],
)
def test_an_unknown_name_raises_one_clear_message(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_every_registered_strategy_loads_and_keeps_its_name():
    for name in registry.strategies():
        assert registry.name_of(registry.make_strategy(name, {})) == name
    assert registry.name_of(FirstOfTwo()) == f"{__name__}:FirstOfTwo"


def test_a_description_lists_every_field_with_type_default_and_text():
    info = registry.describe_strategy("lotts")
    described = {s.name: s for s in info.settings}
    assert set(described) == set(LoTTS().settings())
    assert all(s.doc for s in info.settings)
    assert (described["initial"].type, described["initial"].default) == ("an integer or none", None)
    assert described["background"].type == "fixed or fresh"
    assert info.summary.startswith("Localized test-time search")
    (own,) = registry.describe_strategy(f"{__name__}:FirstOfTwo").settings
    assert (own.doc, own.type) == ("some numbers.", "an integer, or several separated by commas")


def test_a_mask_source_survives_a_round_trip_through_its_dictionary():
    for kind in mask_kinds():
        source = mask_from_dict({"kind": kind, "ratio": 0.4})
        assert source.ratio == 0.4
        assert mask_from_dict(mask_to_dict(source)) == source
    with pytest.raises(BadInput, match="ratio must be above 0"):
        mask_from_dict({"kind": "random", "ratio": 0})


def test_neither_the_package_nor_a_strategy_imports_torch_or_ray():
    code = (
        "import sys, lotts_search, lotts_search.registry as r, lotts_search.testing\n"
        "[r.resolve_strategy(n) for n in r.strategies()]; lotts_search.search\n"
        "print([m for m in ('torch', 'ray', 'diffusers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["os:path", f"{__name__}:LEVELS", f"{__name__}:FirstOfTwo"])
def test_what_is_no_rewriter_is_refused_by_name(name: str) -> None:
    for use in (registry.load_rewriter, registry.describe_rewriter):
        with pytest.raises(BadInput, match=f"{name} is not a rewriter: it must be a dataclass with a method rewrite"):
            use(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("from lotts_search import nope", "cannot import name 'nope'"),
    ],
)
def test_a_plugin_that_breaks_at_its_import_is_refused(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plug.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=f"strategy 'plug:Mine' cannot be imported from plug:Mine: .*{message}"):
        registry.make_strategy("plug:Mine", {})
