"""The file of a study: what it means, and that every complaint about it names file, line, the bad value and good ones."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from lotts_search import BadInput, registry
from lotts_search.study.prompts import load_prompts
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import Limit, ModelEntry
from lotts_search.work.masks import RandomMask


def read(tmp_path: Path, text: str):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return read_study(path)


MINIMAL = "strategies: lotts\nprompts: [a, b]\nbudgets: {images: 9}\n"
NOISY = "{noisy: {of: shapes-reward, sd: 0.03}}"
NOISED = "noisy:of=shapes-reward,sd=0.03"


def test_the_smallest_study(tmp_path: Path) -> None:
    study = read(tmp_path, MINIMAL)
    assert (study.name, study.seeds, study.metrics) == ("study", (0,), ())
    assert study.models == (ModelEntry("shapes-sd", "shapes-sd", verifier="shapes-reward"),)
    (entry,) = study.strategies
    assert (entry.label, entry.limits, entry.nested) == ("lotts", (Limit(images=9),), False)
    assert [prompt.text for prompt in study.prompts] == ["a", "b"]


def test_grids_labels_and_settings(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        """\
strategies:
  - strategy: lotts
    settings: {depth: 2, mask: {kind: random, ratio: 0.25}}
    grid: {refinements: [1, 2], background: [fixed, fresh]}
  - {strategy: lotts, label: "k = {refinements}", grid: {refinements: [4, 8], ratio: [0.1]}}
  - {strategy: best-of-n, label: p+, settings: {template: "A good {}"}, nested: false}
  - best-of-n
prompts: [a]
seeds: 3
budgets:
  nfe: [48, 1e2]
  images: 9
""",
    )
    assert [entry.label for entry in study.strategies] == [
        "lotts depth=2 mask=random,ratio=0.25 refinements=1 background=fixed",
        "lotts depth=2 mask=random,ratio=0.25 refinements=1 background=fresh",
        "lotts depth=2 mask=random,ratio=0.25 refinements=2 background=fixed",
        "lotts depth=2 mask=random,ratio=0.25 refinements=2 background=fresh",
        "k = 4 ratio=0.1",
        "k = 8 ratio=0.1",
        "p+",
        "best-of-n",
    ]
    first = study.strategies[0].strategy
    assert (first.depth, first.refinements, first.mask) == (2, 1, RandomMask(0.25))
    assert study.limits == (Limit(48.0), Limit(100.0), Limit(images=9))
    assert [entry.nested for entry in study.strategies[-2:]] == [False, True]
    assert study.seeds == (0, 1, 2)
    tasks = tasks_of(study)
    # The nested one runs once a seed, at the budget that buys most images: 100 NFE pay ten of 10 steps.
    assert [task.limit for task in tasks if task.entry.label == "best-of-n"] == [Limit(100.0)] * 3
    assert len(tasks) == 3 * (7 * 3 + 1)


def test_models_with_options_and_budgets_of_both_kinds(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        """\
models:
  - shapes-sd
  - {model: shapes-sd, label: long, steps: 24, options: {dtype: bfloat16}}
strategies: [{strategy: lotts, budgets: [{nfe: 100, images: 9}, {images: [4, 5]}]}]
prompts: {texts: [a, b, c], count: 2, seed: 1}
budgets: {nfe: 50}
guidance: 2
""",
    )
    assert study.models[0].sampling == {"guidance": 2.0}
    assert study.models[1] == ModelEntry(
        "long", "shapes-sd", {"dtype": "bfloat16"}, {"guidance": 2.0, "steps": 24}, verifier="shapes-reward"
    )
    assert study.strategies[0].limits == (Limit(100.0, 9), Limit(images=4), Limit(images=5))
    assert len(study.prompts) == 2


def test_prompts_of_the_shapes_world_and_of_files(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,prompt\n7,a fox\n8,a hen\n")
    study = read(tmp_path, MINIMAL.replace("[a, b]", "mine.csv"))
    assert sorted((p.id, p.text) for p in study.prompts) == [("mine-7", "a fox"), ("mine-8", "a hen")]
    study = read(tmp_path, MINIMAL.replace("[a, b]", "{from: shapes-tune, count: 3, seed: 4}"))
    assert list(study.prompts) == load_prompts("shapes-tune", count=3, seed=4)
    assert study.source == {"source": "shapes-tune", "count": 3, "seed": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "budget: {nfe: 3}\n", r"line 4: unknown key of a study: 'budget'; did you mean 'budgets'\?"),
        (MINIMAL + "seeds: two\n", r"line 4: the number of seeds must be an integer of 1 or more, not 'two'"),
        (MINIMAL + "seeds: [1, 1]\n", r"line 4: a seed is duplicated"),
        (MINIMAL + "seeds: [\n", r"line 5: "),
        (MINIMAL + "prompts: [c]\n", r"line 4: 'prompts' is duplicated"),
        (MINIMAL + "verifier: shapes-rewad\n", r"line 4: unknown verifier 'shapes-rewad'; did you mean 'shapes-reward'\?"),
        (MINIMAL + "verifier: shapes-oracle\n", r"line 4: shapes-oracle is held out: it may be a metric, never the verifier"),
        (MINIMAL + "metrics:\n- shapes-reward\n", r"line 5: shapes-reward guides the searches"),
        (MINIMAL + f"verifier: [{NOISY}, shapes-reward]\nmetrics: shapes-reward\n", r"line 5: shapes-reward guides the searches"),
        (MINIMAL + "verifier:\n- shapes-reward\n- noisy: {of: shapes-rewad, sd: 0.1}\n", r"line 6: .*'shapes-rewad'; did you mean 'shapes-reward'"),
        (MINIMAL + "verifier: {noisy: {of: shapes-oracle, sd: 0.1}}\n", r"line 4: shapes-oracle is held out"),
        (MINIMAL + "verifier: {noisy: {of: 3, sd: 0.1}}\n", r"line 4: verifier 'noisy': of must name verifiers, not 3"),
        (MINIMAL + "verifier: [shapes-reward,\n  shapes-reward]\n", r"line 5: the verifier shapes-reward is duplicated"),
        (MINIMAL + "verifier: []\n", r"line 4: verifier must not be empty"),
        (MINIMAL + "model:\n  model: shapes-sd\n  verifier: shapes-oracle\n", r"line 6: shapes-oracle is held out"),
        (MINIMAL + "verifier: [aesthetic,\n  geneval]\n", r"line 5: 'a' is no prompt of GenEval"),
        (
            MINIMAL + f"verifier: [shapes-reward,\n  {NOISY}]\nmodels: [shapes-sd, {{model: shapes-sd, label: 'shapes-sd, {NOISED}'}}]\n",
            f"line 5: two models have the label 'shapes-sd, {NOISED}'",
        ),
        (MINIMAL + "guide: shapes-reward\nverifier: shapes-reward\n", r"line 5: 'verifier' is duplicated"),
        (MINIMAL + "baselines: [lots]\n", r"line 4: unknown baseline 'lots'; did you mean 'lotts'"),
        (MINIMAL.replace("{images: 9}", "{samples: 0}"), r"line 3: samples must be a number of 1 or more, not 0"),
        (MINIMAL + "seconds: soon\n", r"line 4: seconds must be a number of 0 or more, not 'soon'"),
        (MINIMAL + "metrics: [shapes-oracle]\n", r"line 4: shapes-oracle judges scenes .* alone: not a shapes caption: 'a'"),
        (MINIMAL + "model: shapes-s\n", r"line 4: unknown model 'shapes-s'; did you mean 'shapes-sd'"),
        (MINIMAL + "images: some\n", r"line 4: unknown images 'some'.* Known: all, best, none"),
        (MINIMAL + "rewriter: shapes-writer\n", r"line 4: unknown rewriter 'shapes-writer'; did you mean 'shapes-rewriter'"),
        (MINIMAL + "rewriter: os:path\n", r"line 4: os:path is not a rewriter"),
        (MINIMAL + "steps: 100000000\n", r"line 4: steps must be an integer within 1\.\.10000, not 100000000"),
        (MINIMAL + "workers: 3000000000\n", r"line 4: workers must be an integer within 1\.\.2147483647, not 3000000000"),
        (MINIMAL + "name: a/b\n", r"line 4: name is also the name of a folder"),
        (MINIMAL + "eta: -1\n", r"line 4: eta must be a number of 0 or more, not -1"),
        (MINIMAL + "negative: [dull, grey]\n", r"line 4: negative must be a text, not \['dull', 'grey'\]"),
        (MINIMAL + "negative: no\n", r"line 4: negative must be a text, not False"),
        (MINIMAL + 'negative: "a\\0b"\n', r"line 4: negative: a text holds a NUL character"),
        (MINIMAL.replace("[a, b]", '["a\\ud83e"]'), r"line 2: a prompt: a text holds half of a surrogate pair, U\+D83E"),
        (MINIMAL.replace("[a, b]", "{texts: [a], where: {x: 1}}"), r"line 2: 'where' would not be used: the prompts are the"),
        (MINIMAL.replace("[a, b]", "{texts: [a], from: b.csv}"), r"line 2: 'from' would not be used"),
        (MINIMAL.replace("[a, b]", "{from: shapes-test, count: 2, seed: yes}"), r"line 2: seed must be an integer, not True"),
        (MINIMAL + "model: {model: shapes-sd, options: {vae_tiling: 'no'}}\n", r"line 4: vae_tiling must be true or false, got 'no'"),
        (MINIMAL + "model: {model: shapes-sd, options: {variant: 16}}\n", r"line 4: variant must be a text, got 16"),
        (MINIMAL + "model: {model: shapes-sd, options: {lora: {a.safetensors: 0.5}}}\n", r"line 4: a LoRA adapter is SOURCE"),
        (MINIMAL + "place:\n  gpus: 1\n  gpus: 0.5\n", r"line 6: 'gpus' is duplicated"),
        (
            "prompts: [a]\nbudgets: {nfe: 50}\nstrategies:\n- strategy: lotts\n  settings:\n    mask: {kind: random, ratio: 0.2,\n      ratio: 0.4}\n",
            r"line 7: 'ratio' is duplicated",
        ),
        (MINIMAL.replace("lotts", "lott"), r"line 1: unknown strategy 'lott'; did you mean 'lotts'\?"),
        (MINIMAL.replace("lotts", "[lotts, lotts]"), r"line 1: two strategies have the label 'lotts'"),
        (
            "prompts: [a]\nbudgets: {nfe: 50}\nstrategies:\n- strategy: lotts\n  settings:\n    ratio: 0.5\n    refinement: 2\n",
            r"line 7: unknown setting of strategy 'lotts': 'refinement'; did you mean 'refinements'\?",
        ),
        (
            "prompts: [a]\nbudgets: {nfe: 50}\nstrategies:\n- strategy: lotts\n  grid:\n    depth: [1,\n      deep]\n",
            r"line 7: depth of strategy 'lotts' must be an integer, not 'deep'",
        ),
        (MINIMAL.replace("{images: 9}", "{images: 9, nfes: 3}"), r"line 3: unknown key of budgets: 'nfes'; did you mean"),
        (MINIMAL.replace("{images: 9}", "{images: [9, 9]}"), r"line 3: the budget of 9 images is given 2 times"),
        (MINIMAL.replace("{images: 9}", "{images: 0}"), r"line 3: images must be an integer of 1 or more, not 0"),
        (MINIMAL.replace("[a, b]", "shapes-tests"), r"line 2: unknown prompt set 'shapes-tests'; did you mean 'shapes-test'"),
        (MINIMAL.replace("[a, b]", "none.txt"), r"line 2: there is no file none.txt"),
        ("strategies: lotts\nprompts: [a]\n", r"line 1: a study needs 'budgets'"),
        ("- lotts\n", r"line 1: a study must be keys with values, not \['lotts'\]"),
        ("", r"study.yaml is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "study.yaml") in str(caught.value)


def test_a_budget_that_pays_for_nothing_is_said_with_its_line(tmp_path: Path) -> None:
    study = read(tmp_path, "strategies: lotts\nprompts: [a]\nbudgets:\n  nfe:\n  - 48\n  - 9\n")
    with pytest.raises(BadInput, match=r"line 6: a budget of 9 NFE does not pay .* lotts on shapes-sd, which costs 10"):
        tasks_of(study)


def test_the_example_is_a_study() -> None:
    example = Path(__file__).parents[2] / "examples" / "study.yaml"
    assert len(tasks_of(read_study(example))) == 20 * (1 + 3 * 2)


def test_the_comparisons_of_the_package_are_studies() -> None:
    examples = Path(__file__).parents[2] / "examples"
    study = read_study(examples / "compare.yaml")
    labels = ["LoTTS", "Best-of-N", "Best-of-N with p+", "MoreSteps"]
    assert [entry.label for entry in study.strategies] == labels and list(study.baselines) == labels[1:]
    assert study.strategies[2].strategy.settings()["template"] == "A high-quality image of {}"
    costs = {
        task.entry.label: (task.cost.nfe, task.cost.images)
        for task in tasks_of(study)
        if task.model.label == "shapes-sd"
    }
    assert costs == {"LoTTS": (90, 9), "Best-of-N": (90, 9), "Best-of-N with p+": (90, 9), "MoreSteps": (90, 1)}
    study = read_study(examples / "mosaic.yaml")
    assert {t.limit.nfe for t in tasks_of(study) if t.entry.label == "adaptive-mosaic"} == {19, 42.5, 85, 170}
    assert study.baselines == ("svdd", "rollover-budget")
    study = read_study(examples / "masks.yaml")
    masks = {entry.label: entry.strategy.settings()["mask"] for entry in study.strategies}
    assert masks["lotts"] is None and masks["lotts fused"] == masks["adaptive-lotts fused"] is not None
    study = read_study(examples / "strategies.yaml")
    ours = [e.name for e in registry.strategies().values() if e.target.startswith("lotts_search.")]
    assert {entry.name for entry in study.strategies} == set(ours) - {"random-search"}
    assert {t.limit.nfe for t in tasks_of(study) if t.entry.label == "lotts"} == {42.5, 85}
    assert study.baselines == ("best-of-n", "lotts") and study.metrics == ("shapes-oracle",)


def test_every_model_is_there_once_for_each_of_its_verifiers(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + f"verifier: [shapes-reward, {NOISY}]\nmodels: [shapes-sd, {{model: shapes-sd, label: own, verifier: aesthetic}}]\n"
    )
    study = read(tmp_path, text)
    assert [(m.label, m.model, m.verifier) for m in study.models] == [
        ("shapes-sd, shapes-reward", "shapes-sd", "shapes-reward"), (f"shapes-sd, {NOISED}", "shapes-sd", NOISED),
        ("own", "shapes-sd", "aesthetic"),
    ]  # fmt: skip
    assert [m.verifier for m in read(tmp_path, text.replace("verifier: [", "judge: all # ")).models] == [
        "shapes-reward",
        "aesthetic",
    ]
    alone = read(tmp_path, MINIMAL + f"verifier: [{NOISY}]\n")
    assert [(m.label, m.verifier) for m in alone.models] == [("shapes-sd", NOISED)]


def test_old_names_of_keys_work_and_are_noted(tmp_path: Path) -> None:
    old = read(tmp_path, MINIMAL + "guide: tests.actors.fakes:Brightness\n")
    assert old.verifiers == ["tests.actors.fakes:Brightness"]
    assert old.renamed == (f"{tmp_path / 'study.yaml'}, line 4: 'guide' is now called 'verifier'",)
    new = read(tmp_path, MINIMAL + "verifier: tests.actors.fakes:Brightness\n")
    assert new.renamed == () and [t.search_id for t in tasks_of(new)] == [t.search_id for t in tasks_of(old)]


def test_budgets_in_samples_are_nfe_of_each_model(tmp_path: Path) -> None:
    models = "models:\n- shapes-sd\n- {model: shapes-sd, label: long, steps: 24}\n"
    study = read(tmp_path, MINIMAL.replace("{images: 9}", "{samples: [4.25, 8]}") + models)
    assert {(task.model.label, task.limit.nfe) for task in tasks_of(study)} == {
        ("shapes-sd", 42.5), ("shapes-sd", 80), ("long", 102), ("long", 192),
    }  # fmt: skip
    (tmp_path / "strange").mkdir()
    strange = f"model: {tmp_path / 'strange'}\nverifier: clip-score\n"
    study = read(tmp_path, MINIMAL.replace("{images: 9}", "{samples: 8}") + strange)
    with pytest.raises(BadInput, match="a budget of 8 samples needs a model whose steps are known"):
        tasks_of(study)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no file .*none\.yaml"):
        read_study(tmp_path / "none.yaml")


COLUMNS = """\
from lotts_search.verifiers.metric import Metric


class Sharp(Metric):
    columns = ("sharp",)

    def judge(self, images, prompt):
        return {"sharp": [0.0] * len(images)}


class Both(Sharp):
    columns = ("bright", "sharp")


class Bright(Sharp):
    columns = ("bright",)
"""


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["mine_a:Judge", "mine_b:Judge"], "mine_b:Judge and mine_a:Judge both fill the column metric_Judge"),
        (["mine_c:Sharp", "mine_c:Both"], "mine_c:Both and mine_c:Sharp both fill the column metric_sharp"),
        (["mine_c:Both", "mine_c:Bright"], "mine_c:Bright and mine_c:Both both fill the column metric_bright"),
        # A verifier of this name fills metric_oracle, as the oracle does.
        (["shapes-oracle", "mine_c:oracle"], "mine_c:oracle and shapes-oracle both fill the column metric_oracle"),
        (["mine_c:Sharp", "mine_c:Bright", "mine_a:Judge"], ""),
    ],
)
def test_two_metrics_do_not_share_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: list[str], said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_c.py").write_text(COLUMNS)
    monkeypatch.delitem(sys.modules, "mine_c", raising=False)
    items = "".join(f"- {name}\n" for name in metrics)
    text = f"strategies: lotts\nprompts: ['top left red circle, center blue star on gray']\nbudgets: {{images: 9}}\nmetrics:\n{items}"
    if not said:
        assert read(tmp_path, text).metrics == tuple(metrics)
        return
    with pytest.raises(BadInput, match=f"study.yaml, line 6: {said}"):
        read(tmp_path, text)


def test_an_anchor_that_contains_itself_is_refused(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise TimeoutError("the anchor is followed without end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        with pytest.raises(BadInput, match="line 1"):
            read(tmp_path, "strategies: &all [*all]\nprompts: [a]\nbudgets: {images: 9}\n")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_anchors_merge_and_override(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        """\
strategies:
  - {strategy: lotts, label: a, settings: {mask: &mask {kind: random, ratio: 0.2, block: 2}}}
  - {strategy: lotts, label: b, settings: {mask: {<<: *mask, ratio: 0.4}}}
prompts: [a]
budgets: {images: 9}
negative:
""",
    )
    assert [entry.strategy.mask for entry in study.strategies] == [RandomMask(0.2, 2), RandomMask(0.4, 2)]
    assert study.models[0].sampling == {"negative": ""}
