"""The words that the embedded models have learned."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lotts_search.errors import notice
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, PLACES, SHAPES

OTHER = "a an the image picture photo of high low good bad best worst quality on in with and , - ."
SHOWN = 8
"""Unknown words that a notice names."""


def vocabulary() -> set[str]:
    """Return the words of captions; the tokenizers spell out any other word."""
    words = set(OTHER.split()) | set(COLOURS) | set(SHAPES) | set(BACKGROUNDS)
    return words | {word for place in PLACES for word in place.split()}


def unknown_words(prompts: Iterable[str]) -> list[str]:
    """Return the words of prompts that the embedded models have not learned, in the order of their appearance."""
    known = vocabulary()
    found = (word for prompt in prompts for word in re.findall(r"\w+", prompt.lower()))
    return [word for word in dict.fromkeys(found) if word not in known]


def report_unknown_words(model: str, prompts: Iterable[str]) -> None:
    """Report, as a notice, the words that an embedded model has not learned and will not draw."""
    if model.startswith("shapes-") and (words := unknown_words(prompts)):
        more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
        notice(
            f"{model} does not know the words {', '.join(words[:SHOWN])}{more}: it draws scenes such as "
            "'top left red circle, center blue star on gray'"
        )
