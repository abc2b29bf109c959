"""``lotts-search masks``."""

from __future__ import annotations

from lotts_search.cli.commands.listing import show
from lotts_search.cli.options import Json


def masks(json: Json = False) -> None:
    """List the mask sources: how the region to draw anew is found.

    Examples:

        lotts-search generate "$PROMPT" --set mask=disagreement --set ratio=0.3

        lotts-search generate "$PROMPT" --set 'mask={"kind": "fusion", "sources": ["error-contrast", "quality"]}'

        lotts-search generate "$PROMPT" --set mask=center.png
    """
    from lotts_search.work.masks import mask_kinds

    show("mask sources", mask_kinds(), json)
