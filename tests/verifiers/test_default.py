"""The verifier of a search that names none: the model's own, or the only one of a pool."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lotts_search import search
from lotts_search.backbones.defaults import STABLE_DIFFUSION_XL, merged
from lotts_search.cli import main
from lotts_search.cli.pools import Compute
from lotts_search.errors import BadInput
from lotts_search.registry import default_rewriter, default_strategy, default_verifier
from lotts_search.study.read import read_study
from lotts_search.testing import AnalyticPool

STUDY = "strategies: [best-of-n]\nprompts: [a fox]\nbudgets: {images: 2}\n"
REFUSED = (
    r"names no verifier of its own: choose one with --verifier NAME, .* any images: "
    r"image-reward, hpsv2, pickscore, clip-score, aesthetic, .*http"
)


def model(folder: Path, verifier: Any = None) -> str:
    """Return a model folder without weights: whatever loads it fails."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / "lotts.json").write_text(json.dumps({"steps": 4} | ({} if verifier is None else {"verifier": verifier})))
    return str(folder)


def study(folder: Path, text: str) -> Any:
    (folder / "study.yaml").write_text(text)
    return read_study(folder / "study.yaml")


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-sdxl", "shapes-flux"])
def test_embedded_models_name_shapes_reward(name: str) -> None:
    assert default_verifier(name) == "shapes-reward"
    assert default_rewriter(name) == "shapes-rewriter"


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ("clip-score", "clip-score"),
        ("clip-score:batch=4,weights=judge", "clip-score:batch=4,weights={0}/judge"),
        ({"clip-score": {"weights": "judge", "batch": 4}}, "clip-score:batch=4,weights={0}/judge"),
        ("clip-score:weights=./absent,tokenizer=../near", "clip-score:tokenizer={0}/../near,weights={0}/absent"),
        ("clip-score:weights=some/hub", "clip-score:weights=some/hub"),
        ("clip-score:weights=/an/absolute/path", "clip-score:weights=/an/absolute/path"),
        ("vlm-judge:rubric=./rubric.txt,mode=rubric", "vlm-judge:mode=rubric,rubric={0}/rubric.txt"),
        ("noisy:of=aesthetic,sd=1", 'noisy:of=["aesthetic"],sd=1'),
        (
            {"weighted": {"of": {"clip-score:weights=judge": 1, "aesthetic:clip=judge": 2.5}}},
            'weighted:of={{"aesthetic:clip={0}/judge": 2.5, "clip-score:weights={0}/judge": 1}}',
        ),
    ],
)
def test_a_model_names_its_verifier_with_paths_from_its_folder(named: object, text: str, tmp_path: Path) -> None:
    (tmp_path / "model" / "judge").mkdir(parents=True)
    folder = model(tmp_path / "model", named)
    assert default_verifier(folder) == text.format(folder)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("clip-scor", "unknown verifier 'clip-scor'; did you mean 'clip-score'"),
        ("clip-score:weight=x", "unknown setting of verifier 'clip-score': 'weight'; did you mean 'weights'"),
        ("shapes-oracle", "unknown verifier 'shapes-oracle'"),
        ("tests.actors.fakes:Brightness", "unknown verifier 'tests.actors.fakes:Brightness'"),
        ("noisy:of=tests.actors.fakes:Brightness,sd=1", "unknown verifier 'tests.actors.fakes:Brightness'"),
        ("vlm-judge:base_url=https://127.0.0.1/v1", "base_url is an address, which only commands and programs choose"),
        ('noisy:of=["http:url=http://127.0.0.1/s"],sd=1', "url is an address"),
        (7, "a verifier is a name, or a name with a table of settings, not 7"),
    ],
)
def test_a_model_names_registered_verifiers_without_addresses_only(
    named: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=rf"verifier in its lotts\.json: {message}"):
        default_verifier(model(tmp_path, named))


def test_the_verifier_is_no_setting_of_the_model() -> None:
    assert merged("m", {"verifier": "clip-score", "steps": 7}, STABLE_DIFFUSION_XL).steps == 7
    with pytest.raises(BadInput, match="unknown setting 'verifyer'; did you mean 'verifier'"):
        merged("m", {"verifyer": "clip-score"}, STABLE_DIFFUSION_XL)


@pytest.mark.parametrize("door", ["search", "generate", "refine", "study", "dry run"])
def test_a_model_without_a_verifier_is_refused_before_it_is_loaded(
    door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model")
    if door == "search":
        with pytest.raises(BadInput, match=REFUSED):
            search("a fox", model=folder)
        return
    (tmp_path / "study.yaml").write_text(STUDY + f"model: {folder}\n")
    study = ["study", str(tmp_path / "study.yaml")]
    words = {
        "generate": ["generate", "a fox", "--model", folder],
        "refine": ["refine", "examples/center.png", "--prompt", "a fox", "--model", folder],
        "study": study,
        "dry run": [*study, "--dry-run"],
    }[door]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(tmp_path / "out")] if door != "dry run" else words)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and len(printed.splitlines()) == 1
    assert re.search(REFUSED, printed)
    assert not (tmp_path / "out").exists()


def test_an_explicit_verifier_precedes_the_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def pool(self: Compute, model: str, *verifiers: str, **options: object) -> None:
        opened.extend(verifiers)
        raise BadInput("that is enough")

    monkeypatch.setattr(Compute, "pool", pool)
    folder = model(tmp_path / "model", "clip-score")
    for words in ([], ["--verifier", "aesthetic"]):
        with pytest.raises(SystemExit):
            main(["generate", "a fox", "--model", folder, "--out", str(tmp_path / "out"), *words])
    assert opened == ["clip-score", "aesthetic"]
    assert study(tmp_path, STUDY + f"model: {folder}\n").verifiers == ["clip-score"]
    assert study(tmp_path, STUDY + f"model: {folder}\nverifier: aesthetic\n").verifiers == ["aesthetic"]


def test_models_that_name_different_verifiers_need_one_from_their_study(tmp_path: Path) -> None:
    one, other = (model(tmp_path / name, name) for name in ("clip-score", "aesthetic"))
    with pytest.raises(
        BadInput,
        match="the models name several verifiers: give 'verifier', because shapes-sd names shapes-reward, clip-score names clip",
    ):
        study(tmp_path, STUDY + f"models: [shapes-sd, {one}]\n")
    text = STUDY + f"models: [{one}, {{model: {one}, label: again}}]\n"
    assert study(tmp_path, text).verifiers == ["clip-score"]
    assert study(tmp_path, STUDY + f"models: [{one}, {other}]\nverifier: pickscore\n").verifiers == ["pickscore"]


def test_a_search_takes_the_only_verifier_of_its_pool() -> None:
    with AnalyticPool() as pool:
        pool.verifiers = ("mine",)
        assert search("red star", pool=pool, images=1, strategy="best-of-n").verifier == "mine"
        pool.verifiers = ("mine", "yours")
        assert search("red star", verifier="yours", pool=pool, images=1, strategy="best-of-n").verifier == "yours"
        asked = len(pool.asked)
        with pytest.raises(BadInput, match=r"several verifiers, choose one with verifier=…: mine, yours"):
            search("red star", pool=pool)
        pool.verifiers = ()
        with pytest.raises(BadInput, match="this pool has no verifier"):
            search("red star", pool=pool)
        assert len(pool.asked) == asked


def test_a_search_that_revises_prompts_takes_the_only_rewriter_of_its_pool() -> None:
    with AnalyticPool() as pool:
        pool.rewriters = ("mine",)
        assert search("red star", pool=pool, images=1, strategy="ttgen").rewriter == "mine"
        assert search("red star", pool=pool, images=1, strategy="best-of-n").rewriter == ""
        asked = len(pool.asked)
        pool.rewriters = ("mine", "yours")
        with pytest.raises(BadInput, match=r"several rewriters, choose one with rewriter=…: mine, yours"):
            search("red star", pool=pool, images=1, strategy="ttgen")
        pool.rewriters = ()
        with pytest.raises(BadInput, match="this pool has no rewriter"):
            search("red star", pool=pool, images=1, strategy="ttgen")
        assert len(pool.asked) == asked


def test_a_model_names_its_rewriter_for_strategies_that_use_one(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "aesthetic")
    refused = r"names no rewriter of its own: .* in a study rewriter: NAME\. For any images: chat, transformers;"
    revised = STUDY.replace("best-of-n", "ttgen") + f"model: {folder}\n"
    for refuses in (lambda: search("a fox", model=folder, strategy="ttgen"), lambda: study(tmp_path, revised)):
        with pytest.raises(BadInput, match=refused):
            refuses()
    assert study(tmp_path, STUDY + f"model: {folder}\n").rewriter == ""
    assert study(tmp_path, revised + "rewriter: chat\n").rewriter == "chat"
    settings = Path(folder, "lotts.json")
    for named, message in (("chatt", "unknown rewriter 'chatt'; did you mean 'chat'"), (["chat"], "unknown rewriter")):
        settings.write_text(json.dumps({"rewriter": named, "verifier": "aesthetic"}))
        with pytest.raises(BadInput, match=rf"rewriter in its lotts\.json: {message}"):
            study(tmp_path, revised)
    settings.write_text(json.dumps({"rewriter": "transformers", "verifier": "aesthetic"}))
    assert study(tmp_path, revised).rewriter == default_rewriter(folder) == "transformers"


@pytest.mark.parametrize(
    ("verifier", "strategy"),
    [
        ("shapes-reward", "adaptive-mosaic"),
        ("vlm-judge:base_url=http://127.0.0.1:1/v1", "adaptive-lotts"),
        ("http:url=http://127.0.0.1:1", "adaptive-lotts"),
        ("noisy:of=http:url=http://127.0.0.1:1", "adaptive-lotts"),
        ("an object of a pool", "adaptive-mosaic"),
    ],
)
def test_a_verifier_that_asks_a_server_gets_a_strategy_that_asks_it_rarely(verifier: str, strategy: str) -> None:
    assert default_strategy(verifier) == strategy
