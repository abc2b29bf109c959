"""The instructions for a vision-language model, and the parser of its reply."""

from __future__ import annotations

import json
from typing import Any

from lotts_search.work.requests import Rewrite

SYSTEM = """You improve prompts for a text-to-image diffusion model. You see an image, which may be half-finished and then \
blurred, and the prompt that it should show. Find what of the prompt the image misses or shows wrongly, and write revised \
prompts that stress it. Each revised prompt describes the whole image, keeps the meaning of the original, adds nothing \
that contradicts it, and is not much longer. Where nothing is missing, repeat the original prompt. Vary the prompts."""


def question(work: Rewrite) -> str:
    """Return the user's message that accompanies the image."""
    return (
        f"The prompt: {work.prompt}\n"
        f"Write {work.count} revised prompt{'s' if work.count > 1 else ''}. "
        f'Reply with JSON alone: {{"prompts": [{", ".join(["…"] * work.count)}]}}'
    )


def read_reply(text: str) -> list[str]:
    """Return the prompts of a reply: a JSON object with ``prompts``, or a JSON list, possibly within other text.

    Raises:
        ValueError: the reply contains neither.
    """
    decoder = json.JSONDecoder()
    for place, character in enumerate(text):
        if character not in "{[":
            continue
        try:
            found, _ = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            continue
        prompts = _prompts(found)
        if prompts:
            return prompts
    raise ValueError(f"the reply contains no JSON with prompts: {text[:200]!r}")


def _prompts(found: Any) -> list[str]:
    values = found.get("prompts") if isinstance(found, dict) else found
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
