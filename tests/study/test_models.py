"""What a study knows of a model before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lotts_search import fingerprint
from lotts_search.backbones import model_folder
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Costs
from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_backbone
from lotts_search.strategies.lotts import LoTTS
from lotts_search.study import model_files as models
from lotts_search.study.model_files import check_settings, costs_of
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.work.prices import Prices, published
from lotts_search.work.requests import Sampling
from tests.tiny import tiny_pipeline
from tests.tiny_flux import tiny_flux
from tests.tiny_sd3 import tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_pipeline


def loaded(model: str, prices: Prices = Prices(), **sampling: Any) -> Costs:  # noqa: B008, it has no state
    """What trials cost, told by the model itself, except for FLOPs."""
    info = load_backbone(model).info
    chosen = {"steps": info.defaults.steps, "guidance": info.defaults.guidance} | sampling
    return Costs.of(info, Sampling("an image", **chosen, embedded=info.embedded_guidance), prices=prices)


@pytest.mark.parametrize(
    ("pipeline", "nfe"),
    [
        (tiny_pipeline, 50),
        (tiny_xl_pipeline, 30),
        (tiny_sd3_pipeline, 28),
        (tiny_flux, 10),
        (lambda: tiny_flux(guidance=True), 28),
    ],
    ids=["sd", "sdxl", "sd3", "schnell", "dev"],
)
def test_a_published_model_costs_what_it_says_once_loaded(
    tmp_path: Path, pipeline: Callable[[], Any], nfe: int
) -> None:
    pipeline().save_pretrained(tmp_path, safe_serialization=True)
    model = str(tmp_path)
    assert costs_of(ModelEntry("mine", model)) == loaded(model)
    assert loaded(model).sample.nfe == nfe
    faster = {"steps": 12, "guidance": 1.0}
    assert costs_of(ModelEntry("mine", model, sampling=faster)) == loaded(model, **faster)
    (tmp_path / "lotts.json").write_text(json.dumps({"steps": 20, "t0": 4, "mask": {"kind": "random", "ratio": 0.3}}))
    models.read_json.cache_clear()
    assert costs_of(ModelEntry("mine", model)) == loaded(model)
    assert loaded(model).refine().nfe == 16


@pytest.mark.parametrize("model", ["shapes-sd", "shapes-sdxl", "shapes-flux"])
def test_an_embedded_model_costs_what_it_says_once_loaded(model: str) -> None:
    """Priced as a published one, also in confined refinements."""
    assert costs_of(ModelEntry(model, model)) == loaded(model)
    known, there = costs_of(ModelEntry(model, model, priced_as="flux")), loaded(model, prices=published("flux"))
    assert known == there and LoTTS(refresh=2).refinement(there).nfe < there.refine().nfe == 8
    for budget in (Budget(images=9), Budget(60), Budget(flops=60 * published("flux").row)):
        assert LoTTS(refresh=2).plan(budget, known) == LoTTS(refresh=2).plan(budget, there)


def test_a_model_that_will_be_compiled_is_not_confined(tmp_path: Path) -> None:
    """By its options, before it is loaded."""
    tiny_flux().save_pretrained(tmp_path, safe_serialization=True)
    plain, compiled = (ModelEntry("mine", str(tmp_path), options) for options in ({}, {"compile": True}))
    costs = costs_of(compiled)
    assert costs is not None and costs.grid == (0, 0) and LoTTS().refinement(costs) == costs.refine()
    check_settings(LoTTS(refresh=2), "lotts", plain, image=False)
    with pytest.raises(BadInput, match=r"refresh=2 .* loaded without compile"):
        check_settings(LoTTS(refresh=2), "lotts", compiled, image=False)


def test_unets_of_other_blocks_may_not_be_confined(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    config = tmp_path / "unet" / "config.json"
    blocks = json.loads(config.read_text())
    config.write_text(json.dumps(blocks | {"down_block_types": ["AttnDownBlock2D", *blocks["down_block_types"][1:]]}))
    models.read_json.cache_clear()
    costs = costs_of(ModelEntry("mine", str(tmp_path)))
    assert costs is not None and costs.grid is None


def test_what_cannot_be_read_has_no_price_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model_index.json": '{"_class_name": "OtherPipeline"}'}
    for name, text in [*files.items(), ("model_index.json", "{"), ("model_index.json", "[]")]:
        (tmp_path / name).write_text(text)
        models.read_json.cache_clear()
        assert costs_of(ModelEntry("mine", str(tmp_path))) is None
    whole = {"steps": 8, "guidance": 3.0, "t0": 3, "integrate": 1, "mask": {"kind": "random"}}
    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    (tmp_path / "lotts.json").write_text(json.dumps(whole))
    models.read_json.cache_clear()
    costs = costs_of(ModelEntry("mine", str(tmp_path)))
    assert costs is not None and (costs.sample.nfe, costs.refine().nfe, costs.guided) == (8, 5, True)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "lotts.json").write_text('{"steps": "many"}')
    models.read_json.cache_clear()
    assert costs_of(ModelEntry("mine", str(tmp_path))) is None

    asked = []

    def hub(model: str, file: str, *, optional: bool = False, revision: str | None) -> dict[str, Any]:
        asked.append((model, file, revision))
        if model == "gone/model":
            raise Failure("the hub cannot be reached")
        return {"_class_name": "StableDiffusionXLPipeline"} if file == "model_index.json" else {}

    monkeypatch.setattr(model_folder, "read_json", hub)
    costs = costs_of(ModelEntry("mine", "some/model", {"revision": "v2"}))
    assert costs is not None and costs.sample.nfe == 30 and costs.guided
    parts = (f"{part}/config.json" for part in ("unet", "vae"))
    names = "lotts.json", "model_index.json", "scheduler/scheduler_config.json", *parts
    assert set(asked) == {("some/model", file, "v2") for file in names}
    assert costs_of(ModelEntry("mine", "gone/model")) is None


@pytest.mark.parametrize("change", ["weights", "strategy", "verifier", "adapter", "version", "nothing"])
def test_ids_of_searches_change_with_everything_that_decides_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {
        "weights": tmp_path / "model" / "unet.safetensors",
        "adapter": tmp_path / "style.safetensors",
        "strategy": tmp_path / f"ids_{change}_strategy.py",
        "verifier": tmp_path / f"ids_{change}_verifier.py",
    }
    files["weights"].parent.mkdir()
    for name in ("weights", "adapter"):
        files[name].write_bytes(bytes(400_000))
    files["strategy"].write_text(
        "from lotts_search.strategies.best_of_n import BestOfN\nclass Own(BestOfN):\n    '''Own.'''\n"
    )
    files["verifier"].write_text("class Judge:\n    name, requirements = 'judge', ()\n")
    path = tmp_path / "study.yaml"
    path.write_text(
        f"model: {{ model: {tmp_path / 'model'}, options: {{ lora: ['{files['adapter']}:0.5'] }} }}\n"
        f"verifier: ids_{change}_verifier:Judge\nstrategies: ['ids_{change}_strategy:Own']\n"
        "prompts: [a fox]\nbudgets: { images: 3 }\n"
    )

    def ids() -> list[str]:
        for cached in (fingerprint.of_code, fingerprint.of_named):
            cached.cache_clear()
        return [task.search_id for task in tasks_of(read_study(path))]

    before = ids()
    if change in ("weights", "adapter"):
        data = bytearray(files[change].read_bytes())
        data[200_000] = 1
        files[change].write_bytes(data)
    elif change in files:
        files[change].write_text(files[change].read_text() + "# edited\n")
    elif change == "version":
        monkeypatch.setattr("lotts_search.__version__", "99.0")
    assert (ids() == before) is (change == "nothing")
