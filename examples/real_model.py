"""Search with a published model: SDXL from the Hub, guided by ImageReward.

    python examples/real_model.py --device cuda --dtype float16 --variant fp16
    python examples/real_model.py --device cuda --dtype bfloat16 --model black-forest-labs/FLUX.1-schnell --verifier hpsv2 \\
        --prompt "two cats on a blue sofa" --images 18
    python examples/real_model.py --model ./my-sdxl --verifier clip-score:weights=./my-clip --size 768

Model and verifier are Hub ids or folders. The first run downloads what the cache lacks; with a full cache no network is
needed. Without a GPU one image of SDXL takes minutes: try the embedded models first (examples/search.py).

The program writes the winner, the search as a tree and all trials into OUT. On the command line the same search is
`lotts-search generate PROMPT --model MODEL --verifier VERIFIER`, which may also use several GPUs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from lotts_search import LocalPool, search
from lotts_search.core.events import Event, TrialFinished
from lotts_search.core.trial_table import write_parquet
from lotts_search.errors import LottsError
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.report import write_search_page


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red fox in the snow, a frozen lake behind it")
    parser.add_argument(
        "--model", default="stabilityai/stable-diffusion-xl-base-1.0", help="folder or Hub id [%(default)s]"
    )
    parser.add_argument("--variant", help="variant of the weight files, e.g. fp16")
    parser.add_argument(
        "--verifier",
        default="image-reward",
        help="NAME:KEY=VALUE,…, such as image-reward:device=cuda; `lotts-search verifiers` lists names [%(default)s]",
    )
    parser.add_argument("--strategy", help="`lotts-search strategies` lists names [as for searches]")
    parser.add_argument("--images", type=int, default=9, help="the budget [%(default)s]")
    parser.add_argument("--steps", type=int, help="of an image [the model's]")
    parser.add_argument("--size", type=int, help="height and width in pixels [the model's]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the model; that of the verifier is a setting of its own")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--out", type=Path, default=Path("out/real"), help="[%(default)s]")
    return parser.parse_args()


def show(event: Event) -> None:
    if isinstance(event, TrialFinished):
        trial = event.record
        print(f"{trial.kind:8} {trial.nfe:5g} NFE  {trial.score or ''}", flush=True)


def main() -> None:
    options = arguments()
    verifier = load_verifier(options.verifier)  # the smaller download first: a mistake shows before the larger one
    backbone = load_backbone(
        options.model,
        variant=options.variant,
        device=options.device,
        dtype=options.dtype,
        size=options.size and (options.size, options.size),
    )
    with LocalPool(backbone, {options.verifier: verifier}) as pool:
        result = search(
            options.prompt,
            pool=pool,
            strategy=options.strategy,
            images=options.images,
            steps=options.steps,
            seed=options.seed,
            on_event=show,
        )
    assert result.image is not None  # a search without an image raises an error
    options.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result.image).save(options.out / "best.png")
    write_search_page(result, options.out / "search.html")
    write_parquet(result.to_table(), options.out / "trials.parquet")
    print(f"score {result.score:.4f} for {result.ledger.nfe:g} NFE: {options.out / 'best.png'}")


if __name__ == "__main__":
    try:
        main()
    except LottsError as error:
        sys.exit(f"error: {error}")
