"""Set metrics of a run folder: the right images, whatever their files are called and in whatever mode they are."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from lotts_search.cli import main
from lotts_search.core.trial_table import TrialRecord, to_table, write_parquet
from lotts_search.curves.panel import mean_interval
from lotts_search.errors import BadInput, Notice
from lotts_search.set_metrics.distances import Discrepancy, frechet_distance, polynomial
from lotts_search.set_metrics.features import ClipFeatures, load_features
from lotts_search.set_metrics.of_study import set_metrics
from lotts_search.verifiers.pixels import cropped, normalized
from lotts_search.work.requests import Bytes, Floats
from tests.verifiers.published import SIDE, clip_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*few for a Fréchet distance")
PROMPTS, SEEDS = 12, 2


class Corners:
    """Features of a test: the colours of the first and the last pixel."""

    @classmethod
    def load(cls, *, scale: float = 1.0) -> Corners:
        """Load them.

        Args:
            scale: a factor.
        """
        found = cls()
        found.scale = scale
        return found

    def embed(self, images: Bytes) -> Floats:
        return np.concatenate([images[:, 0, 0], images[:, -1, -1]], axis=1).astype(np.float32) * self.scale / 255


def picture(number: int, shape: tuple[int, int] = (8, 8)) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two images of each search, the second with the higher score; image i of search s is picture 2·s + i."""
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    records = []
    for search in range(PROMPTS * SEEDS):
        prompt = f"prompt {search // SEEDS}"
        for i in range(2):
            records.append(
                TrialRecord(
                    "run", f"search{search}", prompt, prompt, "m", "best-of-n", "{}", search % SEEDS, f"{i}", None, "sample",
                    label="best-of-n", budget_images=2, nfe=10, images=1, score=float(i), image=f"image{2 * search + i}",
                )
            )  # fmt: skip
            Image.fromarray(picture(2 * search + i)).save(folder / "images" / f"image{2 * search + i}.png")
    write_parquet(to_table(records), folder / "trials.parquet")
    strategies = [{"label": "best-of-n", "nested": True, "budgets": [{"images": n, "nfe": None} for n in (1, 2)]}]
    (folder / "study.json").write_text(json.dumps({"strategies": strategies}))
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "reference"
    (folder / "more").mkdir(parents=True)
    for i in range(20):
        path = folder / ("more" if i % 2 else "") / f"{i}.png"
        Image.fromarray(picture(1000 + i, (5, 9) if i % 3 else (8, 8))).save(path)
    (folder / "list.txt").write_text("no image")
    return folder


def test_each_set_is_the_returned_images_of_a_strategy_and_budget(run: Path, reference: Path) -> None:
    corners = Corners.load()
    whole, first = set_metrics(run, corners, reference)
    assert (whole.setup.images, first.setup.images) == (2, 1)
    known = np.concatenate([corners.embed(picture(1000 + i, (5, 9) if i % 3 else (8, 8))[None]) for i in range(20)])
    known = known.astype(np.float64)
    prompts = np.arange(PROMPTS * SEEDS) // SEEDS
    for found, i in ((whole, 1), (first, 0)):
        x = np.concatenate([corners.embed(picture(2 * s + i)[None]) for s in range(PROMPTS * SEEDS)]).astype(np.float64)
        assert (found.images, found.prompts) == (PROMPTS * SEEDS, PROMPTS)
        assert found.frechet == pytest.approx(frechet_distance(x, known))
        expected = Discrepancy.to(known, polynomial).of(x, prompts)
        assert found.kid is not None and found.kid.mean == pytest.approx(expected.mean)
        assert (found.kid.low, found.kid.high) == pytest.approx((expected.low, expected.high))
        spread = np.array([np.linalg.norm(x[2 * p] - x[2 * p + 1]) for p in range(PROMPTS)])
        assert found.diversity is not None and found.diversity.mean == pytest.approx(spread.mean())
        assert found.diversity.low == pytest.approx(mean_interval(spread).low)
        assert found.cmmd is None, "CMMD is of CLIP's features"


def test_files_may_have_any_name_and_mode(run: Path, reference: Path, tmp_path: Path) -> None:
    """Another order, grey and 16-bit grey, opaque RGBA and palettes: what a person sees is the same."""
    for path in reference.rglob("*.png"):
        grey = Image.open(path).convert("L")
        grey.convert("RGB").save(path)
    expected = set_metrics(run, Corners.load(), reference)[0]
    other = tmp_path / "other"
    other.mkdir()
    for i, path in enumerate(sorted(reference.rglob("*.png"), key=lambda path: path.read_bytes())):
        grey = Image.open(path).convert("L")
        sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        modes = [grey, sixteen, grey.convert("RGBA"), grey.convert("P")]
        modes[i % 4].save(other / f"{100 - i}.PNG", format="PNG")
    found = set_metrics(run, Corners.load(), other)[0]
    assert found.kid is not None and expected.kid is not None
    assert found.frechet == pytest.approx(expected.frechet, rel=1e-9)
    assert found.kid.mean == pytest.approx(expected.kid.mean, rel=1e-9)


def test_equal_images_have_no_diversity_and_no_reference_leaves_diversity_alone(run: Path) -> None:
    for path in (run / "images").iterdir():
        Image.fromarray(picture(0)).save(path)
    found = set_metrics(run, Corners.load())[0]
    assert found.diversity is not None and (found.diversity.mean, found.diversity.high) == (0, 0)
    assert (found.frechet, found.kid, found.cmmd) == (None, None, None)


def test_few_images_are_reported(run: Path, reference: Path) -> None:
    with pytest.warns(Notice, match="24 images and 20 of the reference are few for a Fréchet distance on 6 features"):
        set_metrics(run, Corners.load(), reference)
    for i in range(60):
        Image.fromarray(picture(2000 + i)).save(reference / f"again{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Notice, match="24 images and 80"):
            set_metrics(run, Corners.load(), reference)


def test_what_is_wrong_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        set_metrics(run, Corners.load(), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"two images or more: .*empty has 0"):
        set_metrics(run, Corners.load(), tmp_path / "empty")
    with pytest.raises(BadInput, match="is no run folder"):
        set_metrics(tmp_path / "nowhere", Corners.load())
    with pytest.raises(BadInput, match="unknown features 'clips'; did you mean 'clip'"):
        load_features("clips")
    with pytest.raises(BadInput, match="scale"):
        load_features("tests.set_metrics.test_of_study:Corners:scale=wide")
    with pytest.raises(BadInput, match="are no features"):
        load_features("tests.set_metrics.test_of_study:picture")


def test_nothing_is_loaded_before_the_images_are_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(text: str) -> None:
        raise AssertionError(f"{text} was loaded")

    monkeypatch.setattr("lotts_search.set_metrics.of_study.load_features", load)
    with pytest.raises(BadInput, match="there is no folder"):
        set_metrics(run, "clip", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is no run folder"):
        set_metrics(tmp_path / "nowhere", "clip")

    def store(searches: int, prompts: int) -> None:
        records = [
            TrialRecord(
                "r", f"{i}{label}", f"p{i % prompts}", f"p{i % prompts}", "m", "lotts", "{}", i, "0", None, "sample",
                label=label, nfe=1, images=1, score=1.0, image=f"image{i}",
            )
            for label, count in (("lotts", searches), ("other", 1))
            for i in range(count)
        ]  # fmt: skip
        write_parquet(to_table(records), run / "trials.parquet")

    store(1, 1)
    with pytest.raises(BadInput, match="no strategy returned more than one"):
        set_metrics(run, "clip")
    store(2, 2)
    with pytest.raises(BadInput, match="diversity needs two seeds"):
        set_metrics(run, "clip")
    store(2, 1)
    with pytest.warns(Notice, match="other on m .without limit. is left out"):
        assert [one.setup.label for one in set_metrics(run, Corners.load())] == ["lotts"]


def test_features_of_shapes_need_its_size() -> None:
    shapes = load_features("shapes")
    images = np.stack([picture(i, (64, 64)) for i in range(3)])
    together, alone = shapes.embed(images), np.concatenate([shapes.embed(image[None]) for image in images])
    assert together.shape == (3, 128) and np.allclose(together, alone, atol=1e-4)
    with pytest.raises(BadInput, match=r"64×64 pixels, not 9×8"):
        shapes.embed(picture(0, (8, 9))[None])


def test_features_of_clip_are_those_of_the_model_and_have_cmmd(run: Path, reference: Path, tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    clip = load_features(f"clip:weights={folder},batch=2")
    assert isinstance(clip, ClipFeatures)
    images = np.stack([picture(i, (40, 50)) for i in range(3)])
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder).eval()
        expected = model.get_image_features(pixel_values=normalized(cropped(images, SIDE))).pooler_output.numpy()
    assert np.allclose(clip.embed(images), expected, atol=1e-5)
    assert not np.allclose(np.linalg.norm(expected, axis=1), 1), "features are not normalized"
    found = set_metrics(run, clip, reference)[0]
    assert found.cmmd is not None and found.cmmd.low <= found.cmmd.mean <= found.cmmd.high


def test_the_command_writes_and_prints_the_table(
    run: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*more: str) -> str:
        features = "tests.set_metrics.test_of_study:Corners:scale=2"
        with pytest.raises(SystemExit) as ended:
            main(["set-metrics", str(run), "--features", features, *more])
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    shown = call("--reference", str(reference))
    assert "KID" in shown and "CMMD" not in shown and "best-of-n" in shown
    rows = list(csv.DictReader((run / "set-metrics.csv").open()))
    expected = set_metrics(run, Corners.load(scale=2.0), reference)
    for row, one in zip(rows, expected, strict=True):
        assert one.kid is not None
        assert float(row["frechet"]) == pytest.approx(one.frechet) and float(row["kid_low"]) == pytest.approx(
            one.kid.low
        )
        assert row["cmmd"] == "" and int(row["budget_images"]) == one.setup.images
    answer = json.loads(call("--json", "--out", str(run / "only.csv")))
    assert answer["table"] == str(run / "only.csv") and answer["sets"][0]["kid"] is None
    assert answer["sets"][0]["diversity"] == pytest.approx(float(rows[0]["diversity"]))
