"""The effect of local and global trials, inferred from the images of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lotts_search import BadInput
from lotts_search.cli import main
from lotts_search.core.trial_table import TrialRecord, image_hash, to_table, write_parquet
from lotts_search.shapes.measure import regimes, slices
from lotts_search.shapes.measure.common import JudgedImage, cell_means
from lotts_search.shapes.world.oracle import judge
from lotts_search.shapes.world.render import cell_box, render, to_uint8
from lotts_search.shapes.world.scene import BACKGROUNDS, Scene, scenes
from lotts_search.testing import analytic_info
from lotts_search.work.requests import Located

MASK = np.zeros((16, 16), bool)
MASK[:8] = True


def rendered(scene: Scene, seed: int, damage: float):
    return to_uint8(render(scene, np.random.default_rng(seed), damage=damage).image)


def repaired(before, scene: Scene, cells: list[int]):
    """Return the image with other, undamaged renders in some cells."""
    image, clean = before.copy(), rendered(scene, 99, 0.0)
    for cell in cells:
        image[cell_box(cell)] = clean[cell_box(cell)]
    return image


def test_the_resampled_region_is_inferred_from_the_images():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    after = before.copy()
    after[:32] = rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)
    # The unmasked steps change every pixel a little.
    after = np.clip(after.astype(int) + rng.integers(-3, 4, after.shape), 0, 255).astype(np.uint8)
    assert np.array_equal(regimes.changed_mask(before, after, 0.5), MASK)
    assert regimes.changed_mask(before, after, 0.25).sum() == 64


def test_slices_are_distinguished():
    scene = scenes("tune", 1, seed=3)[0]
    other = replace(scene, background=next(b for b in BACKGROUNDS if b != scene.background))
    images = [rendered(scene, 0, 0.0), rendered(scene, 0, 1.0), rendered(other, 0, 0.0)]
    names = [regimes.slice_of(judge(image, scene)) for image in images]
    assert names == ["sparse defects", "dense defects", "defect of the whole image"]


def test_the_gain_of_a_change_is_the_change_of_quality():
    scene = scenes("tune", 1, seed=3)[0]
    before = rendered(scene, 0, 1.0)
    one, other = judge(before, scene), judge(repaired(before, scene, [0, 1, 2]), scene)
    change = regimes.change(one, other, cell_means(MASK) >= 0.5)
    assert change.gain == pytest.approx(other.quality - one.quality) and change.gain > 0
    assert change.selected.tolist() == [True] * 3 + [False] * 6 or change.selected[:3].all()


def run_of(folder: Path, count: int = 12, prompt: str | None = None) -> Path:
    """Write a run whose refinements repair the top row of images with about four damaged objects, and in which no other
    sample is better than the first."""
    rows = []
    (folder / "images").mkdir(parents=True)

    def row(index: int, scene: Scene, trial: str, kind: str, image=None, **more) -> None:
        if image is not None:
            more["image"] = image_hash(image)
            Image.fromarray(image).save(folder / "images" / f"{more['image']}.png")
        shared = ("run", f"search {index}", f"p{index}", prompt or scene.caption, "shapes-sd", "lotts", "{}", index)
        rows.append(TrialRecord(*shared, trial_id=trial, kind=kind, **{"parent_id": None, "lineage": ()} | more))

    for index, scene in enumerate(scenes("tune", count, seed=3)):
        before = rendered(scene, index, 0.5)
        row(index, scene, "a", "sample", before, nfe=12.0)
        row(index, scene, "b", "sample", rendered(scene, 100 + index, 0.5), nfe=12.0)
        row(index, scene, "m", "localize", parent_id="a", nfe=2.0)
        row(index, scene, "c", "refine", repaired(before, scene, [0, 1, 2]), parent_id="a", nfe=10.0, mask_ratio=0.33)
    write_parquet(to_table(rows), folder / "trials.parquet")
    return folder


def test_a_run_is_estimated_slice_by_slice(tmp_path, capsys):
    run = run_of(tmp_path / "run")
    by_slice, cost_local, cost_global = regimes.from_run(run)
    assert (cost_local, cost_global) == (12.0, 12.0)
    assert sum(len(trials.local) for trials in by_slice.values()) == 12
    usual = regimes.find(by_slice["usual defects"], cost_local, cost_global)
    assert usual.regime is not None
    assert usual.regime.repair_local == 1 and usual.regime.harm_local == 0
    assert usual.regime.required_precision == 0 and 0.2 < usual.regime.recall < 0.6
    # All changes are inside the mask, so the theory predicts the measured gain.
    assert usual.regime.gain_local / cost_local == pytest.approx(usual.local.mean, rel=0.25)
    assert usual.local.mean > usual.global_.mean and usual.regime.local_wins()
    with pytest.raises(SystemExit) as done:
        main(["theory", str(run), "--json"])
    assert done.value.code == 0
    said = json.loads(capsys.readouterr().out)["usual defects"]
    assert said["local beats global"]["should"] is said["local beats global"]["did"] is True
    with pytest.raises(SystemExit) as done:
        main(["theory", str(run)])
    assert done.value.code == 0
    assert "usual defects" in capsys.readouterr().out


def test_a_run_without_the_needed_files_is_refused(tmp_path, capsys):
    with pytest.raises(BadInput, match=r"no trials\.parquet"):
        regimes.from_run(tmp_path)
    with pytest.raises(BadInput, match="not a shapes caption"):
        regimes.from_run(run_of(tmp_path / "other", 1, prompt="a red fox"))
    run = run_of(tmp_path / "bare", 1)
    for file in (run / "images").iterdir():
        file.unlink()
    with pytest.raises(BadInput, match="no images"):
        regimes.from_run(run)
    with pytest.raises(SystemExit) as done:
        main(["theory"])
    assert done.value.code == 2 and "either the folder RUN" in capsys.readouterr().err


def test_every_slice_gets_its_local_and_global_trials(monkeypatch):
    """Renders replace the images of a model: refinements repair the top row, new samples are all damaged."""
    chosen = scenes("tune", 3, seed=3)

    def of(images, shown=chosen) -> list[JudgedImage]:
        return [JudgedImage(s, 0, None, image, judge(image, s)) for s, image in zip(shown, images, strict=True)]

    def sampled(pool, shown, seeds):
        groups = [of([rendered(s, 50 + i, 1.0) for s in shown], shown) for i in range(seeds)]
        return [list(group) for group in zip(*groups, strict=True)]

    monkeypatch.setattr(regimes, "damaged_renders", lambda *_, **__: of([rendered(s, 7, 1.0) for s in chosen]))
    monkeypatch.setattr(regimes, "scenes", lambda *_, **__: chosen)
    monkeypatch.setattr(regimes, "sample", sampled)
    monkeypatch.setattr(slices, "sample", sampled)
    monkeypatch.setattr(slices, "locate", lambda pool, shown, source: [Located(MASK, MASK.astype("f4"))] * len(shown))
    monkeypatch.setattr(
        slices, "refine", lambda pool, shown, *_, **__: of([repaired(p.image, p.scene, [0, 1, 2]) for p in shown])
    )
    pool = SimpleNamespace(info=analytic_info())
    found = regimes.measured(pool, 3)
    assert list(found) == ["sparse damage", "usual damage", "dense damage", "lighting defect", "plain samples"]
    for trials in found.values():
        assert len(trials.local) == len(trials.global_) == 3
        assert all(c.selected[:3].all() and not c.selected[6:].any() for c in trials.local)
        assert all(c.selected.all() for c in trials.global_)
        assert min(c.gain for c in trials.local) > 0
    # Plain samples are replaced by another sample, not by themselves.
    assert any(c.gain != 0 for c in found["plain samples"].global_)
