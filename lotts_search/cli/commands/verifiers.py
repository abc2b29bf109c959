"""``lotts-search verifiers``."""

from __future__ import annotations

from lotts_search.cli.commands.listing import show
from lotts_search.cli.options import Json


def verifiers(json: Json = False) -> None:
    """List the verifiers: what can guide a search.

    Example:

        lotts-search generate "center red star on gray" --verifier shapes-reward
    """
    from lotts_search import registry

    show("verifiers", registry.verifiers(), json)
