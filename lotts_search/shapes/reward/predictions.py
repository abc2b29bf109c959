"""Train and measure ``shapes-reward-x0``, which scores x0 predictions by what becomes of them:
``python -m lotts_search.shapes.reward.predictions OUT``.

It continues the training of ``shapes-reward`` on predictions of all steps of the embedded models' samples; the target of each is
what ``shapes-reward`` says of the finished image. That a reward for pruning must know noise is the idea of TTSnap (Yu et al. 2025,
arXiv 2511.22242), whose reward is also told the step. A prediction shows its step by how blurred it is, so this one is not told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.reward.data import altered
from lotts_search.shapes.reward.net import RewardNet, load_reward, pixels, save_reward, word_ids
from lotts_search.shapes.train import RECIPES
from lotts_search.shapes.verifier import FOLDER, PREDICTIONS, ShapesReward
from lotts_search.shapes.world.oracle import judge
from lotts_search.shapes.world.scene import Scene, Split, random_scene
from lotts_search.work.pool import Pool
from lotts_search.work.replacing import replacing
from lotts_search.work.requests import Bytes, Floats, Fresh, Predict, Sampling, Segment, State

_AT_ONCE = 96
_WRONG = 0.3
"""Share of the training images that are seen with a caption that is wrong in some cells."""


def train_on_predictions(
    out: Path,
    *,
    samples: int = 480,
    images: int = 96_000,
    batch: int = 64,
    lr: float = 5e-4,
    models: Sequence[str] = tuple(RECIPES),
    device: str = "cpu",
    seed: int = 31,
    state: Path | None = None,
    describe: Callable[[str], None] = print,
) -> None:
    """Train the verifier and save it to ``out``. The same call resumes an interrupted run.

    Args:
        out: folder of the finished model.
        samples: number of samples of each model, each of another scene of the train split, with the x0 prediction of every step.
        images: number of predictions seen in training.
        batch: predictions per optimizer step.
        lr: peak learning rate.
        models: names of the models that draw the samples.
        device: torch device.
        seed: seed of scenes, samples and batches.
        state: folder of the samples and checkpoints, by default beside ``out``.
        describe: called with lines of progress.
    """
    state = out.with_name(out.name + ".training") if state is None else state
    wanted, drawn = [], []
    for number, model in enumerate(models):
        rng = np.random.default_rng([seed, number])
        wanted += [random_scene(rng, "train") for _ in range(samples)]
        drawn.append(_kept(model, wanted[-samples:], seed, state, device, describe))
    teacher, net = load_reward(FOLDER).to(device), load_reward(FOLDER).to(device).train()
    trainer = Trainer(net, state, images // batch, lr, ema=0.998, warmup=100, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, 1, step])
        rows = rng.integers(len(wanted), size=batch)
        tracks = [drawn[row // samples][row % samples] for row in rows]
        seen = np.stack([track[rng.integers(len(track))] for track in tracks])
        finished = np.stack([track[-1] for track in tracks])
        captions = [altered(wanted[row], rng)[0] if rng.random() < _WRONG else wanted[row] for row in rows]
        words = torch.from_numpy(np.stack([word_ids(scene.caption) for scene in captions])).to(device)
        with torch.no_grad():
            target = teacher(pixels(finished, device), words).sigmoid()
        logits = net(pixels(seen, device), words)
        matching = functional.binary_cross_entropy_with_logits(logits, target)
        error = (logits.detach().sigmoid() - target).abs().mean()
        return matching, {"matching": float(matching.detach()), "error": float(error)}

    trainer.run(loss)
    trained = trainer.averaged()
    assert isinstance(trained, RewardNet)
    save_reward(trained, out)


def predictions(pool: Pool, scenes: Sequence[Scene], seed: int, describe: Callable[[str], None] = print) -> Bytes:
    """Draw a sample of each scene and return the decoded x0 predictions of its steps after the first [N, T, 64, 64, 3], of
    which the last are the finished images, and those before them the same, since the last step returns its prediction."""
    settings = [Sampling.of(pool.info, scene.caption) for scene in scenes]
    found: list[list[Bytes]] = [[] for _ in scenes]
    for first in range(0, len(scenes), _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, len(scenes)))
        for row, images in zip(some, _tracks(pool, [settings[row] for row in some], seed, first), strict=True):
            found[row] = images
        describe(f"{pool.info.name}: sampled {some.stop} of {len(scenes)} scenes")
    return np.stack([np.stack(images) for images in found])


def _tracks(pool: Pool, settings: Sequence[Sampling], seed: int, first: int) -> Iterator[list[Bytes]]:
    def run(work: Sequence[Segment | Predict]) -> tuple[list[State], list[Bytes | None]]:
        results = [future.result() for future in [pool.submit(one) for one in work]]
        states = [result.state for result in results if result.state is not None]
        return states, [result.image for result in results]

    lineages = [(f"seed {first + row}",) for row in range(len(settings))]
    starts = [
        Segment(seed, one, name, 1, noise=Fresh(first + row))
        for row, (one, name) in enumerate(zip(settings, lineages, strict=True))
    ]
    states, _ = run(starts)
    steps: list[list[Bytes | None]] = []
    for stop in range(2, settings[0].steps + 1):
        states, images = run([Predict(state, one) for state, one in zip(states, settings, strict=True)])
        steps.append(images)
        parts = zip(states, settings, lineages, strict=True)
        states, finished = run([Segment(seed, one, name, stop, state=state) for state, one, name in parts])
    for track in zip(*steps, finished, strict=True):
        yield [image for image in track if image is not None]


def _kept(
    model: str, scenes: Sequence[Scene], seed: int, state: Path, device: str, describe: Callable[[str], None]
) -> Bytes:
    """Return the predictions of a model: those in ``state`` if there are any, else new ones that are saved there."""
    file = state / f"{model}-{len(scenes)}-{seed}.npy"
    if file.is_file():
        stored: Bytes = np.load(file, allow_pickle=False)
        return stored
    dtype = "bfloat16" if device == "cpu" else None
    with LocalPool(load_backbone(model, device=device, dtype=dtype), {}, 8, 1) as pool:
        found = predictions(pool, scenes, seed, describe)
    state.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("wb") as to:
        np.save(to, found)
    return found


def measure(
    verifiers: Sequence[ShapesReward],
    pool: Pool,
    count: int = 24,
    each: int = 8,
    *,
    split: Split = "tune",
    seed: int = 9,
) -> list[tuple[list[float], list[float]]]:
    """Measure how well scores of x0 predictions tell which of ``each`` samples of a scene will be best, on ``count`` scenes.

    Returns:
        For each verifier by step after the first, the last being the finished images: the rank correlation with the oracle's quality of
        the finished images, the mean over scenes; and that quality of the image whose prediction scores highest.
    """
    rng = np.random.default_rng([seed, 2])
    wanted = [scene for scene in (random_scene(rng, split) for _ in range(count)) for _ in range(each)]
    captions = [scene.caption for scene in wanted]
    tracks = predictions(pool, wanted, seed)
    truth = np.array([judge(track[-1], scene).quality for track, scene in zip(tracks, wanted, strict=True)])
    truth = truth.reshape(count, each)

    def told(scores: Floats) -> float:
        ranks = [stats.spearmanr(a, b)[0] for a, b in zip(scores, truth, strict=True) if np.ptp(a) and np.ptp(b)]
        return float(np.mean(ranks))

    found = []
    for verifier in verifiers:
        steps = [verifier.score(captions, tracks[:, step]).reshape(count, each) for step in range(tracks.shape[1])]
        best = [float(truth[np.arange(count), scores.argmax(1)].mean()) for scores in steps]
        found.append(([told(scores) for scores in steps], best))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=PREDICTIONS, help="folder of the model")
    parser.add_argument("--measure", action="store_true", help="only measure the model in OUT beside shapes-reward")
    parser.add_argument("--device", default="cpu", help="torch device")
    args = parser.parse_args()
    if not args.measure:
        train_on_predictions(args.out, device=args.device, describe=lambda line: print(line, flush=True))
        return
    for model in RECIPES:
        with LocalPool(load_backbone(model, dtype="bfloat16"), {}, 8, 1) as pool:
            both = measure([ShapesReward(load_reward(folder)) for folder in (FOLDER, args.out)], pool, split="test")
        for folder, (ranks, best) in zip((FOLDER, args.out), both, strict=True):
            print(f"{model}, {folder.name}")
            print("  rank correlation", *(f"{value:.2f}" for value in ranks))
            print("  quality of best ", *(f"{value:.3f}" for value in best), flush=True)


if __name__ == "__main__":
    main()
