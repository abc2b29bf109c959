"""``lotts-search models``."""

from __future__ import annotations

from lotts_search.cli.commands.listing import show
from lotts_search.cli.options import Json


def models(json: Json = False) -> None:
    """List the models that have a name.

    Any folder or hub id of diffusers' format works as well, of Stable Diffusion 1.x and 2.x, SDXL, Stable Diffusion 3
    and FLUX.1:

        lotts-search generate "a red fox in the snow" --model ./my-stable-diffusion
    """
    from lotts_search import registry

    show("models", registry.models(), json)
