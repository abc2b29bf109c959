"""DDIM as the solver of a search: in the engine, in a model's own settings, in Python and on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from lotts_search import BadInput, search
from lotts_search.backbones.defaults import merged
from lotts_search.engine.engine import Engine
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.work.noise import draw
from lotts_search.work.requests import Sampling, Segment
from tests.cli.test_cli import call, use
from tests.tiny import backbone_of, run, sample, scheduler_config, tiny_pipeline


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_whole_samples_equal_the_pipeline_with_ddim(prediction: str) -> None:
    """Trailing spacing, where both solvers of diffusers lay the same timesteps."""
    config = scheduler_config(prediction_type=prediction, timestep_spacing="trailing")
    pipeline = tiny_pipeline(prediction=prediction)
    scheduler = pipeline.scheduler = DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=True)
    pipeline.set_progress_bar_config(disable=True)
    settings = [Sampling("a red circle", 5, 4.0, eta=eta, solver="ddim") for eta in (0.0, 0.5, 1.0)]
    results = run(Engine(backbone_of(pipeline), 4), *(sample(seed, s) for seed, s in enumerate(settings)))
    plain, shape = DDIMScheduler.step, (4, 8, 8)
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        lineage = (f"seed {seed}",)
        steps = iter(range(5))

        def step(
            output: Any, at: Any, latents: Any, lineage: Any = lineage, steps: Any = steps, eta: float = sampling.eta
        ) -> Any:
            noise = torch.from_numpy(draw(1, lineage, "step", next(steps), shape))[None]
            return (plain(scheduler, output, at, latents, eta=eta, variance_noise=noise).prev_sample,)

        scheduler.step = lambda output, at, latents, step=step, **rest: step(output, at, latents)
        start = torch.from_numpy(draw(1, lineage, "start", 0, shape))[None]
        images = pipeline(
            sampling.prompt, num_inference_steps=5, guidance_scale=4.0, latents=start, output_type="latent"
        )
        want = images.images[0].numpy()
        assert result.state is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max())


def test_parts_of_a_trajectory_equal_the_whole_and_solvers_run_side_by_side() -> None:
    settings = [Sampling("a red circle", 5, 4.0, eta=1.0, solver=solver) for solver in ("ddim", "dpm")]
    engine = Engine(backbone_of(tiny_pipeline()), 4)
    together = run(engine, *(sample(3, s) for s in settings))
    alone = [run(engine, sample(3, s))[0] for s in settings]
    (half,) = run(engine, sample(3, settings[0], stop=2))
    (rest,) = run(engine, Segment(1, settings[0], ("seed 3",), 5, state=half.state))
    for one, other in zip(together, alone, strict=True):
        assert one.state is not None and other.state is not None
        assert np.array_equal(one.state.latent, other.state.latent)
    assert rest.state is not None and together[0].state is not None and together[1].state is not None
    assert np.array_equal(rest.state.latent, together[0].state.latent)
    assert not np.allclose(together[0].state.latent, together[1].state.latent, atol=1e-3)


def test_a_models_own_solver_and_its_eta() -> None:
    own = merged("mine", {"solver": "ddim", "eta": 0.3}, analytic_info().defaults)
    assert (own.solver, own.eta) == ("ddim", 0.3)
    with pytest.raises(BadInput, match="did you mean 'ddim'"):
        merged("mine", {"solver": "dimm"}, own)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("dpm", 1.0)),
        ({"solver": "ddim"}, ("ddim", 1.0)),
        ({"solver": "ddim", "eta": 0.0}, ("ddim", 0.0)),
        ({"eta": 1.5}, ("dpm", 1.5)),
    ],
)
def test_solver_and_eta_reach_every_segment(arguments: dict[str, Any], expected: tuple[str, float]) -> None:
    with AnalyticPool() as pool:
        result = search("red star", pool=pool, images=4, **arguments)
    made = {(w.sampling.solver, w.sampling.eta) for w in pool.asked if isinstance(w, Segment)}
    assert made == {(result.sampling.solver, result.sampling.eta)} == {expected}
    with AnalyticPool() as pool, pytest.raises(BadInput, match=r"DDIM must be within 0\.\.1, got 1.5"):
        search("red star", pool=pool, solver="ddim", eta=1.5)
    with AnalyticPool() as pool, pytest.raises(BadInput, match="Known: ddim, dpm"):
        search("red star", pool=pool, solver="euler")  # type: ignore[arg-type]


def test_solvers_make_other_images_and_the_command_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with AnalyticPool() as pool:
        use(monkeypatch, pool)
        images = []
        for words in ([], ["--solver", "ddim", "--eta", "0.5"]):
            assert call("generate", "a red circle", "--images", "3", "--out", tmp_path, *words) == 0
            with Image.open(tmp_path / "best.png") as image:
                images.append(np.asarray(image))
                command = shlex.split(image.text["command"])
        assert not np.array_equal(*images)
        assert command[-4:] == ["--solver", "ddim", "--eta", "0.5"]
        capsys.readouterr()
        assert call("generate", "a red circle", "--solver", "dpmm") == 2
        assert "did you mean 'dpm'" in capsys.readouterr().err
