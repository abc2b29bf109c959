"""Ask an endpoint of this project with the official client of OpenAI, unmodified (pip install openai).

    lotts-search serve --local                                       # in another terminal
    python examples/openai_client.py generate --nfe 200 --seed 1
    python examples/openai_client.py stream --nfe 200 --seed 1
    python examples/openai_client.py edit --image out/client/best.png --mask examples/center.png
    python examples/openai_client.py models

`edit` resamples the white places of the mask, or without a mask the region that the server finds. Fields of this project
that the client does not know go into `extra_body`. Images are written into OUT; each is printed with its seed, its score and
the command that makes it again.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from PIL import Image, ImageOps

PROMPT = (
    "top left red circle, top blue star, left pink cross, center yellow square, right green ring, "
    "bottom cyan diamond on gray"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("generate", "stream", "edit", "models"))
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--model", help="one of `models` [the server's first]")
    parser.add_argument("--strategy", help="`lotts-search strategies` lists names [lotts]")
    parser.add_argument("--nfe", type=float, help="the budget in denoising steps [that of 9 images]")
    parser.add_argument("--seed", type=int, help="decides all noise [drawn by the server]")
    parser.add_argument("--image", type=Path, help="the image to edit")
    parser.add_argument("--mask", type=Path, help="white places are resampled [found by the server]")
    url = os.environ.get("LOTTS_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help="of the endpoint [$LOTTS_URL, here %(default)s]")
    parser.add_argument("--key", default=os.environ.get("LOTTS_API_KEY", "none"), help="API key [$LOTTS_API_KEY]")
    parser.add_argument("--out", type=Path, default=Path("out/client"), help="[%(default)s]")
    options = parser.parse_args()
    if (options.what == "edit") != (options.image is not None):
        parser.error("--image belongs to edit, which needs it")
    if options.mask is not None and options.what != "edit":
        parser.error("--mask belongs to edit")
    return options


def transparent(mask: Path) -> tuple[str, bytes]:
    """Return a black and white mask as OpenAI wants it: white places become transparent."""
    with Image.open(mask) as opened:
        white = opened.convert("L").point(lambda grey: 255 * (grey >= 128))
    image = Image.new("RGBA", white.size)
    image.putalpha(ImageOps.invert(white))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "mask.png", buffer.getvalue()


def write(name: str, b64: str, out: Path) -> Path:
    """Write an image of the endpoint into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / name
    path.write_bytes(base64.b64decode(b64))
    return path


def show(path: Path, found: Any) -> None:
    """Print what the endpoint tells of an image beside OpenAI's fields."""
    print(f"{path}: seed {found.seed}, score {found.score:.4f}\n  {found.recipe}")


def main() -> None:
    options = arguments()
    client = OpenAI(base_url=f"{options.url}/v1", api_key=options.key)
    ours = {"seed": options.seed, "nfe": options.nfe, "strategy": options.strategy}
    asked: dict[str, Any] = {
        "prompt": options.prompt,
        "extra_body": {name: value for name, value in ours.items() if value is not None},
    }
    if options.model is not None:
        asked["model"] = options.model
    if options.what == "models":
        for model in client.models.list():
            print(f"{model.id}: {model.size}, {model.steps} steps, verifiers {', '.join(model.verifiers)}")
    elif options.what == "generate":
        (image,) = client.images.generate(**asked).data
        show(write("best.png", image.b64_json, options.out), image)
    elif options.what == "stream":
        with client.images.generate(**asked, stream=True, partial_images=3) as events:
            for event in events:
                if event.type == "image_generation.completed":
                    show(write("best.png", event.b64_json, options.out), event)
                else:
                    print(write(f"partial-{event.partial_image_index}.png", event.b64_json, options.out))
    else:
        mask = {} if options.mask is None else {"mask": transparent(options.mask)}
        (image,) = client.images.edit(image=options.image, **mask, **asked).data
        show(write("edited.png", image.b64_json, options.out), image)


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"error: {error}")
