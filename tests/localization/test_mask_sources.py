"""Mask sources beside the paper's: quality maps, disagreement, fusion, plug-ins, and a PNG as a setting."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import rankdata

from lotts_search import BadInput, plugins, registry
from lotts_search.backbones.base import Backbone
from lotts_search.engine.engine import Engine
from lotts_search.localization.locate import locate
from lotts_search.localization.plan import PredictionRow
from lotts_search.localization.quality import MAPS, grain, mscn, sharpness
from lotts_search.localization.select import from_heat, smooth, unit
from lotts_search.shapes.world.render import cell_box, render
from lotts_search.shapes.world.scene import scenes
from lotts_search.strategies.lotts import LoTTS
from lotts_search.work.masks import (
    AttentionMask,
    DisagreementMask,
    ErrorContrastMask,
    FusionMask,
    GivenMask,
    MaskSource,
    QualityMask,
    RandomMask,
    WholeMask,
    mask_from_dict,
    mask_kinds,
    mask_to_dict,
)
from lotts_search.work.noise import draw
from lotts_search.work.requests import Bytes, Locate, Located, Sampling, State
from tests.scripted import run as search_by
from tests.tiny import run, sample, tiny_backbone

SAMPLING = Sampling("a red circle", 4, 3.0)
LINEAGE = ("seed 0",)


@pytest.fixture(scope="module")
def finished() -> State:
    (result,) = run(Engine(tiny_backbone(), 2), sample(0, SAMPLING))
    assert result.state is not None
    return result.state


def work(state: State, source: MaskSource, image: Bytes | None = None) -> Locate:
    return Locate(5, LINEAGE, state, SAMPLING, source, image)


def whole_image() -> Bytes:
    """An undamaged scene, in which objects differ as they do."""
    scene = scenes("tune", 1)[0]
    return (render(scene, np.random.default_rng(0), damage=0.0).image * 255).round().astype(np.uint8)


def blurred(cell: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(cell.astype(float), (3, 3, 0)).astype(np.uint8)


def grainy(cell: np.ndarray) -> np.ndarray:
    return np.clip(cell + np.random.default_rng(1).normal(0, 25, cell.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("measure", "damage"), [(sharpness, blurred), (grain, grainy), (mscn, grainy)], ids=["sharpness", "grain", "mscn"]
)
def test_a_quality_map_rises_where_the_image_is_spoilt(
    measure: Callable[[Bytes], np.ndarray], damage: Callable[[np.ndarray], np.ndarray]
) -> None:
    before, after = whole_image(), whole_image()
    after[cell_box(4)] = damage(after[cell_box(4)])
    assert measure(before).shape == (64, 64)
    change = measure(after)[cell_box(4)].mean() - measure(before)[cell_box(4)].mean()
    elsewhere = measure(after)[cell_box(8)].mean() - measure(before)[cell_box(8)].mean()
    assert change > 0 and change > 10 * abs(elsewhere) - 0.5


def test_grain_is_the_deviation_of_the_noise() -> None:
    """Immerkær's estimate on a ramp, which it must not see, with noise of a known size."""
    ramp = np.add.outer(np.arange(80.0), np.arange(80.0)) + 40
    noise = np.random.default_rng(0).normal(0, 8, ramp.shape)
    image = np.repeat((ramp + noise).round().astype(np.uint8)[:, :, None], 3, axis=2)
    assert grain(image).mean() == pytest.approx(8, rel=0.05)
    assert grain(np.repeat(ramp.astype(np.uint8)[:, :, None], 3, axis=2)).max() < 0.5


def test_a_flat_image_has_flat_maps() -> None:
    for measure in MAPS.values():
        values = measure(np.full((64, 64, 3), 90, np.uint8))
        assert np.isfinite(values).all() and np.ptp(values) < 1e-6


def brightness(image: Bytes) -> np.ndarray:
    """A map of one's own: half the image's size, which is averaged to the latent's."""
    return image[::2, ::2].mean(-1)


def test_a_quality_mask_looks_at_the_image_that_comes_with_the_work(finished: State) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:16, 4:] = 200
    source = QualityMask(ratio=14 / 64, map=f"{__name__}:brightness", smooth=0)
    found = locate(tiny_backbone(), work(finished, source, image))
    want = np.zeros((8, 8), np.bool_)
    want[2:4, 1:] = True
    assert np.array_equal(found.mask, want) and found.confidence == pytest.approx(1)
    decoded = tiny_backbone().decode(torch.from_numpy(finished.latent)[None])[0]
    own, given = (locate(tiny_backbone(), work(finished, QualityMask(), image)) for image in (None, decoded))
    assert np.array_equal(own.heat, given.heat)
    (answer,) = run(Engine(tiny_backbone(), 2), work(finished, source, image))
    assert answer.located is not None and np.array_equal(answer.located.mask, want)
    assert (answer.usage.rows, answer.usage.nfe) == (0, 0)
    with pytest.raises(BadInput, match=r"unknown quality map 'blur'.*grain, mscn"):
        locate(tiny_backbone(), work(finished, QualityMask(map="blur")))
    with pytest.raises(BadInput, match="must return a map"):
        locate(tiny_backbone(), work(finished, QualityMask(map="numpy:mean")))


def test_disagreement_is_the_variance_of_predictions(finished: State) -> None:
    backbone, source = tiny_backbone(), DisagreementMask(levels=(300, 700), draws=3, smooth=1.0)
    conditioning = backbone.encode_prompts([SAMPLING.prompt])[0]
    total = np.zeros((8, 8))
    for index, level in enumerate(source.levels):
        alpha, sigma = backbone.train_level(level)
        seen = []
        for number in range(3):
            noise = draw(5, LINEAGE, "locate", 3 * index + number, finished.latent.shape)
            latent = torch.from_numpy(np.float32(alpha) * finished.latent + np.float32(sigma) * noise)[None]
            output = backbone.predict(latent, torch.tensor([float(level)]), backbone.stack([conditioning]))
            scale = torch.tensor([alpha, sigma]).view(2, 1, 1, 1, 1).float()
            seen.append(backbone.to_x0(output, latent, scale[0], scale[1])[0].detach().numpy())
        variance = np.var(seen, axis=0, ddof=1).mean(0)
        total += variance / variance.std() / 2
    direct = locate(backbone, work(finished, source))
    assert np.allclose(direct.heat, unit(smooth(total.astype(np.float32), 1.0)), atol=1e-3)
    (answer,) = run(Engine(backbone, 8), work(finished, source))
    assert answer.located is not None and np.allclose(answer.located.heat, direct.heat, atol=1e-3)
    assert (answer.usage.rows, answer.usage.nfe) == (source.rows(), 3) == (6, 3)
    with pytest.raises(BadInput, match="two draws"):
        locate(backbone, work(finished, DisagreementMask(draws=1)))


PARTS = (AttentionMask(grid=4), ErrorContrastMask(levels=(400,)), QualityMask(map="sharpness"))


@pytest.mark.parametrize("scale", ["rank", "range"])
def test_fusion_is_the_weighted_mean_of_its_parts(finished: State, scale: Any) -> None:
    source = FusionMask(0.25, PARTS, (1.0, 2.0, 1.0), scale)
    heat = np.zeros((8, 8))
    for part, weight in zip(PARTS, (0.25, 0.5, 0.25), strict=True):
        values = locate(tiny_backbone(), work(finished, part)).heat
        values = values.repeat(8 // len(values), 0).repeat(8 // len(values), 1)
        heat += weight * ((rankdata(values).reshape(8, 8) - 1) / 63 if scale == "rank" else values)
    direct = locate(tiny_backbone(), work(finished, source))
    assert np.allclose(direct.heat, unit(heat.astype(np.float32)), atol=1e-5) and direct.mask.sum() == 16
    assert list(direct.stages) == ["1 attention", "2 error-contrast", "3 quality", "fused"]
    engine = Engine(tiny_backbone(), 8)
    (answer,) = run(engine, work(finished, source))
    assert answer.located is not None and np.allclose(answer.located.heat, direct.heat, atol=0.02)
    assert (answer.usage.rows, answer.usage.nfe) == (source.rows(), 2.5) == (5, 2.5)
    assert engine.outstanding_nfe == 0


def test_a_part_that_fails_fails_the_fusion_alone(finished: State) -> None:
    engine = Engine(tiny_backbone(), 8)
    bad = engine.submit(work(finished, FusionMask(sources=(ErrorContrastMask(), GivenMask(b"no image")))))
    good = engine.submit(work(finished, FusionMask(sources=(RandomMask(), FusionMask(sources=(WholeMask(),))))))
    while engine.tick():
        pass
    with pytest.raises(BadInput, match="the mask is not a readable image"):
        bad.result(0)
    assert good.result(0).located is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, "at least one source"),
        ({"weights": [1.0]}, "3 fused sources need as many weights, not 1"),
        ({"weights": [0, 0, 0]}, "not all 0"),
        ({"weights": [1, 1, -1]}, "0 or more"),
        ({"scale": "log"}, "unknown scale 'log'.*range, rank"),
        ({"sources": ["qualty"]}, "unknown mask kind 'qualty'; did you mean 'quality'"),
    ],
)
def test_bad_fusions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        mask_from_dict({"kind": "fusion"} | settings)


def test_nested_masks_survive_json() -> None:
    source = FusionMask(0.3, (ErrorContrastMask(levels=(100, 200)), FusionMask(), GivenMask(b"\x89PNG")), (1, 2, 0.5))
    assert mask_from_dict(json.loads(json.dumps(mask_to_dict(source)))) == source


@dataclass(frozen=True)
class LargestErrorMask(MaskSource):
    """A plug-in's kind: where one prediction strays most from the image.

    Attributes:
        ratio: share of the latent.
        level: training timestep of the look.
    """

    ratio: float = 0.5
    level: int = 300

    method: ClassVar[str] = f"{__name__}:LargestError"

    def rows(self) -> int:
        return 1


class LargestError:
    def __init__(self, backbone: Backbone, work: Locate, source: LargestErrorMask):
        self.work, self.source = work, source
        self.rows = [PredictionRow(work.state.latent, float(source.level), work.sampling.prompt)]

    def finish(self, outputs: list[torch.Tensor]) -> Located:
        return from_heat(outputs[0].square().mean(0).cpu().numpy(), self.source.ratio, (8, 8), {})


def test_a_package_adds_a_kind(finished: State, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("largest-error", f"{__name__}:LargestErrorMask", "lotts_search.masks")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    plugins._plugins.cache_clear()
    try:
        assert {"largest-error", "attention"} <= set(mask_kinds())
        strategy = registry.make_strategy("lotts", {"mask": '{"kind": "largest-error", "level": 200}', "ratio": "0.25"})
        assert isinstance(strategy, LoTTS) and strategy.mask == LargestErrorMask(level=200)
        assert mask_to_dict(LargestErrorMask(0.4)) == {"kind": "largest-error", "ratio": 0.4, "level": 300}
    finally:
        plugins._plugins.cache_clear()
        monkeypatch.undo()
    plugins._plugins.cache_clear()
    source = mask_from_dict({"kind": f"{__name__}:LargestErrorMask", "ratio": 0.25})
    assert mask_from_dict(mask_to_dict(source)) == source
    (answer,) = run(Engine(tiny_backbone(), 8), work(finished, source))
    assert answer.located is not None and answer.located.mask.sum() == 16 and answer.usage.rows == 1
    with pytest.raises(BadInput, match="must be a dataclass derived from"):
        mask_from_dict({"kind": f"{__name__}:LargestError"})

    class Lost(LargestErrorMask):
        method = "nowhere:at_all"

    with pytest.raises(BadInput, match=r"method of Lost 'nowhere:at_all' cannot be imported"):
        locate(tiny_backbone(), work(finished, Lost()))


def documented(name: str) -> str:
    """The code in docs/masks.md that defines a class."""
    text = (Path(__file__).parents[2] / "docs" / "masks.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"class {name}" in block]
    return str(code)


def test_the_documented_example_from_the_image_alone(
    finished: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dark square of 16 × 16 pixels is 4 × 4 of the 8 × 8 cells of the latent."""
    (tmp_path / "my_image_masks.py").write_text(documented("DarkMask"))
    monkeypatch.syspath_prepend(tmp_path)
    image = np.full((32, 32, 3), 200, np.uint8)
    image[8:24, 4:20] = 50
    (answer,) = run(Engine(tiny_backbone(), 8), work(finished, mask_from_dict("my_image_masks:DarkMask"), image))
    dark = np.zeros((8, 8), np.bool_)
    dark[2:6, 1:5] = True
    assert answer.located is not None and answer.usage.rows == 0
    assert answer.located.mask.sum() == 20 and answer.located.mask[dark].all()
    source = mask_from_dict({"kind": "my_image_masks:DarkMask", "ratio": 0.25, "power": 2})
    (answer,) = run(Engine(tiny_backbone(), 8), work(finished, source, image))
    assert answer.located is not None and np.array_equal(answer.located.mask, dark)


def test_the_documented_example_is_a_mask_source(
    finished: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_masks.py").write_text(documented("LargestErrorMask"))
    monkeypatch.syspath_prepend(tmp_path)
    source = mask_from_dict({"kind": "my_masks:LargestErrorMask", "level": 200, "ratio": 0.25})
    (answer,) = run(Engine(tiny_backbone(), 8), work(finished, source))
    assert answer.located is not None and answer.located.mask.sum() == 16
    assert (answer.usage.rows, answer.usage.nfe) == (1, 0.5)
    # Its map is the squared error of the prediction.
    backbone, (alpha, sigma) = tiny_backbone(), tiny_backbone().train_level(200)
    noise = draw(5, LINEAGE, "locate", 0, finished.latent.shape)
    latent = torch.from_numpy(np.float32(alpha) * finished.latent + np.float32(sigma) * noise)[None]
    conditioning = backbone.stack(backbone.encode_prompts([SAMPLING.prompt]))
    output = backbone.predict(latent, torch.tensor([200.0]), conditioning)
    scale = torch.tensor([alpha, sigma]).view(2, 1, 1, 1, 1).float()
    error = (backbone.to_x0(output, latent, scale[0], scale[1])[0] - torch.from_numpy(finished.latent)).square().mean(0)
    assert np.allclose(answer.located.heat, unit(error.detach().numpy()), atol=1e-3)


def test_a_method_must_return_a_plan_or_an_answer(finished: State) -> None:
    @dataclass(frozen=True)
    class Nothing(MaskSource):
        ratio: float = 0.5
        method: ClassVar[str] = "builtins:print"

        def rows(self) -> int:
            return 0

    class Rowless(Nothing):
        method = f"{__name__}:rowless"

    for source, name in ((Nothing(), "Nothing"), (Rowless(), "Rowless")):
        future = (engine := Engine(tiny_backbone(), 2)).submit(work(finished, source))
        while engine.tick():
            pass
        with pytest.raises(BadInput, match=f"of {name} must return a Located, or a plan with rows, parts or call"):
            future.result(0)


def rowless(backbone: Backbone, work: Locate, source: MaskSource) -> LargestError:
    """A plan without rows, which would never be finished."""
    plan = LargestError(backbone, work, LargestErrorMask())
    plan.rows = []
    return plan


def test_a_png_is_a_mask_setting(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (6, 6), 255).save(stream, "PNG")
    (tmp_path / "face.png").write_bytes(stream.getvalue())
    strategy = registry.make_strategy("lotts", {"mask": str(tmp_path / "face.png")})
    assert isinstance(strategy, LoTTS) and strategy.mask == GivenMask(stream.getvalue())
    with pytest.raises(BadInput, match=r"gone\.png cannot be read: No such file"):
        registry.make_strategy("lotts", {"mask": str(tmp_path / "gone.png")})


def test_a_search_gives_the_image_to_sources_that_look_at_it() -> None:
    seen: list[Locate] = []

    async def script(search: Any) -> None:
        candidate = await search.sample(0)
        for source in (QualityMask(), ErrorContrastMask(), FusionMask(sources=(RandomMask(), QualityMask()))):
            await search.localize(candidate, source)

    from lotts_search.testing import AnalyticPool

    pool = AnalyticPool()
    result = search_by(script, pool)
    seen = [asked for asked in pool.asked if isinstance(asked, Locate)]
    (image,) = result.images.values()
    assert [asked.image is not None for asked in seen] == [True, False, True]
    assert np.array_equal(seen[0].image, image)  # type: ignore[arg-type]
    assert replace(seen[0], image=None).nfe == 0
