"""The paper's tables as studies, and the page that says which findings hold, on runs whose truth is known."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import yaml

from lotts_search.core.trial_table import write_parquet
from lotts_search.errors import BadInput
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.testing.studies import Simulated, simulate
from lotts_search.work.masks import AttentionMask, ConceptMask
from tests.report.test_report import Page

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
TABLES = sorted(PAPER.glob("table-*.yaml"))


def _module(name: str) -> ModuleType:
    if str(PAPER) not in sys.path:
        sys.path.append(str(PAPER))  # run.py imports findings.py beside it
    spec = importlib.util.spec_from_file_location(f"paper_{name}", PAPER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


findings, run = _module("findings"), _module("run")


def test_every_table_is_a_study_that_can_run() -> None:
    assert [t.stem[-2:] for t in TABLES] == ["01", "02", "05", "06", "07", "08", "09", "10", "11", "12", "13"]
    assert sorted(run.ORDER) == [t.stem[-2:] for t in TABLES]
    total = 0.0
    for table in TABLES:
        study = read_study(table)
        assert study.name == table.stem and len(study.prompts) >= 100 and "shapes-oracle" in study.metrics
        # The mask that is found is one line of the file.
        assert sum("mask:" in line for line in table.read_text().splitlines() if "*" not in line) <= 3
        total += sum(task.cost.nfe or 0.0 for task in tasks_of(study))
    assert 200_000 < total < 400_000


def test_a_table_is_changed_by_names_alone() -> None:
    options = argparse.Namespace(
        prompts=7, verifier="image-reward", prompts_from="drawbench", metrics="hps,pickscore",
        attention='{"kind": "attention", "level": 50}', dtype="float16", compile=False,
    )  # fmt: skip
    study = run.prepared(PAPER / "table-05.yaml", "some/model", options, run.Fit(99.0, [5]))
    assert study["models"] == [{"model": "some/model", "options": {"dtype": "float16"}}]
    assert study["prompts"] == {"from": "drawbench", "count": 7, "seed": 0}
    assert (study["verifier"], study["metrics"]) == ("image-reward", ["hps", "pickscore"])
    masks = [s["settings"]["mask"] for s in study["strategies"]]
    assert masks == [{"kind": "attention", "level": 50}] * 4 + ["random", "whole"]
    assert run.prepared(PAPER / "table-09.yaml", "m", options, run.Fit(99.0, [5]))["budgets"] == {"nfe": 99.0}
    assert run.prepared(PAPER / "table-11.yaml", "m", options, run.Fit(99.0, [5]))["strategies"][0]["grid"] == {
        "start": [5]
    }


def test_each_model_is_asked_for_the_attention_that_it_has(tmp_path: Path) -> None:
    options = argparse.Namespace(
        prompts=7, verifier=None, prompts_from=None, metrics=None, attention=None, dtype="float32", compile=False
    )
    yaml_file = tmp_path / "study.yaml"
    for model, kind, nfe in (("shapes-sd", AttentionMask, 90.0), ("shapes-flux", ConceptMask, 90.0)):
        fit = run.fitted(model)
        assert (fit.nfe, fit.starts) == (nfe, [1, 4, 7])
        for table, attention in (("05", 4), ("06", 1), ("07", 2)):
            yaml_file.write_text(yaml.safe_dump(run.prepared(PAPER / f"table-{table}.yaml", model, options, fit)))
            masks = [entry.strategy.mask for entry in read_study(yaml_file).strategies]
            assert [type(mask) for mask in masks].count(kind) == attention


def test_a_published_model_is_fitted_by_its_small_files_alone(tmp_path: Path) -> None:
    attention, concepts = {"kind": "attention"}, {"kind": "concept-attention"}
    for pipeline, fit in (
        ("StableDiffusionPipeline", run.Fit(3 * (50 + 1.5) + 6 * 25, [10, 40], attention)),
        ("StableDiffusionXLPipeline", run.Fit(3 * (30 + 1.5) + 6 * 15, [5, 25], attention)),
        ("FluxPipeline", run.Fit(3 * (10 + 1) + 6 * 9, [5, 8], concepts)),
        ("StableDiffusion3Pipeline", run.Fit(3 * (28 + 1.5) + 6 * 10, [3, 11, 20], attention)),
    ):
        (tmp_path / pipeline).mkdir()
        (tmp_path / pipeline / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        assert run.fitted(str(tmp_path / pipeline)) == fit
    with pytest.raises(BadInput, match="did you mean 'shapes-sdxl'"):
        run.fitted("shapes-sdx")


def test_a_model_without_a_verifier_is_refused_before_any_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    monkeypatch.setattr(sys, "argv", ["run.py", "--models", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2 and "names no verifier of its own" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_of_the_findings_are_those_of_the_tables(tmp_path: Path) -> None:
    """No comparison of the page asks for a label that no table makes."""
    known = {entry.label for table in TABLES for entry in read_study(table).strategies}
    lines = [line for finding in _page(tmp_path, dict.fromkeys(known, 1)) for line in finding["lines"]]
    assert lines and not [line for line in lines if line["verdict"] == "not run"]


def _page(out: Path, speeds: dict[str, int]) -> list[dict]:
    """The findings of a made-up run in which each label makes the best of so many draws an image."""
    rng, parts = np.random.default_rng(0), []
    sizes = {"Best-of-N": (9, 64), "LoTTS": (3, 6, 9), "Particle": (9, 18)}
    for label, speed in speeds.items():
        strategy = "best-of-n" if label == "Best-of-N" else "lotts"
        for n in sizes.get(label, (9,)):
            part = simulate({label: Simulated(strategy, n, speed)}, 120, rng=rng, fidelity=0.99, difficulty=0.0)
            ids = pa.array([f"{n} {name}" for name in part.column("search_id").to_pylist()])
            kind = "refine" if strategy == "lotts" else "sample"
            kinds = pa.array([kind if k == "sample" else k for k in part.column("kind").to_pylist()])
            part = part.set_column(part.column_names.index("search_id"), "search_id", ids)
            parts.append(part.set_column(part.column_names.index("kind"), "kind", kinds))
    write_parquet(pa.concat_tables(parts), out / "shapes-sd" / "table-01" / "trials.parquet")
    page = findings.write(out)
    text = (out / "findings.md").read_text()
    assert "judged by truth" in text and text.count("\n| LoTTS |") == 3
    assert Page(page.read_text()).references[0].startswith("data:")
    found: list[dict] = json.loads((out / "findings.json").read_text())["models"][0]["findings"]
    return found


def test_findings_follow_the_truth(tmp_path: Path) -> None:
    speeds = {"Best-of-N": 1, "LoTTS": 5, "Resampling": 1, "More steps": 1, "Best-of-N with p+": 1, "Particle": 1,
              "LoTTS, r = 0.2": 1, "LoTTS, r = 0.8": 40, "LoTTS, k = 1": 40, "LoTTS, k = 8": 40}  # fmt: skip
    found = {(f["claim"], f["where"]): f for f in _page(tmp_path, speeds)}
    verdicts = {claim: f["verdict"] for (claim, _), f in found.items()}
    # Five times as good an image, against the paper's 2.8 times the images and 4.1 times the steps.
    assert verdicts["Best-of-N needs several times the images of LoTTS for its quality"] == "holds"
    assert verdicts["LoTTS is better than all others at nine images"] == "holds"
    assert verdicts["k = 2 refinements are better than 1 and 8 at equal NFE"] == "does not hold"
    assert verdicts["A middle mask ratio, r = 0.5, is best"] == "in part"
    assert verdicts["Every component of the attention mask helps"] == "not run"
    assert verdicts["LoTTS scales with the number of images"] == "holds"
    told = "Not run on this model: Tables 1 and 13, Table 5, Table 6, Table 7, Table 8, Table 11."
    for page in ("findings.md", "index.html"):
        text = (tmp_path / page).read_text()
        assert told in text and "Every component" not in text and "unknown strategy" not in text


def test_several_models_are_shown_side_by_side(tmp_path: Path) -> None:
    _page(tmp_path, {"Best-of-N": 1, "LoTTS": 5})
    assert "| finding | comparison |" not in (tmp_path / "findings.md").read_text()
    shutil.copytree(tmp_path / "shapes-sd", tmp_path / "shapes-flux")
    findings.write(tmp_path)
    models = json.loads((tmp_path / "findings.json").read_text())["models"]
    text, page = (tmp_path / "findings.md").read_text(), (tmp_path / "index.html").read_text()
    rows = [line.split(" | ") for line in text.partition("## ")[0].splitlines()]
    (head,) = [row for row in rows if row[0] == "| finding"]
    assert head[2:] == ["shapes-flux", "shapes-sd |"] and "<h2>All models</h2>" in page
    for what in ("images of Best-of-N / images of LoTTS", "LoTTS − Best-of-N", "6 − 3 images"):
        (row,) = [row for row in rows if len(row) > 1 and row[1] == what]
        for cell, model in zip(row[2:], models, strict=True):
            lines = [line for finding in model["findings"] for line in finding["lines"]]
            (line,) = [line for line in lines if line["what"].partition(";")[0] == what]
            assert cell.removesuffix(" |") == f"{line['value']} · {line['verdict']}"


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tables in"):
        findings.write(tmp_path)


def test_settings_in_the_files_are_plain_yaml() -> None:
    for table in TABLES:
        assert yaml.safe_load(table.read_text())["name"] == table.stem
