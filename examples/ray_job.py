"""Run many searches at once on one Ray pool, on a private Ray or as a job on a cluster:

    python examples/ray_job.py "a red circle" "a blue star"
    ray job submit --working-dir . -- python examples/ray_job.py --out /shared/out --generators 4 --gpus 1 "a red circle"

It prints one line of JSON per prompt and writes the images.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from PIL import Image

from lotts_search import asearch
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from lotts_search.registry import default_verifier


async def run(options: argparse.Namespace, pool: RayPool) -> None:
    async def one(number: int, prompt: str) -> None:
        found = await asearch(
            prompt,
            strategy=options.strategy,
            nfe=options.nfe,
            pool=pool,
        )
        assert found.image is not None  # a search without an image raises an error
        path = options.out / f"{number:03d}.png"
        Image.fromarray(found.image).save(path)
        print(json.dumps({"prompt": prompt, "score": found.score, "trials": len(found.trials), "image": str(path)}))

    await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(options.prompts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--model", default="shapes-sd")
    parser.add_argument("--strategy")
    parser.add_argument("--verifier", help="the model's by default")
    parser.add_argument("--nfe", type=float, default=300)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each generator")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not options.out.is_absolute():
        parser.error(f"a job runs in a folder that Ray deletes: give --out as an absolute path, not {options.out}")
    options.out.mkdir(parents=True, exist_ok=True)
    device = {"device": "cuda"} if options.gpus else {}
    verifier = options.verifier or default_verifier(options.model)
    placement = Placement(gpus=options.gpus)
    with RayPool(options.model, [verifier], options.generators, backbone_options=device, placement=placement) as pool:
        asyncio.run(run(options, pool))


if __name__ == "__main__":
    main()
