"""Whether an image shows the text that its prompt quotes, by optical character recognition on the CPU."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes, Floats

_QUOTED = re.compile(
    r"""„(.*?)[“”]|“(.*?)”|"(.*?)"|«(.*?)»|「(.*?)」|(?<!\w)‘(.*?)’(?!\w)|(?<!\w)'(.*?)'(?!\w)""", re.DOTALL
)
"""Text in quotation marks; an apostrophe within a word is none."""
_MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}
"""The models of rapidocr 3.10, by its names of the two steps: find lines of text, read them."""


class Ocr:
    """``ocr``: how well each text in quotation marks of the prompt can be read in the image, 0..1, by PP-OCRv6 (rapidocr).

    A text's score is 1 - d / n of the run of consecutive recognized words that is most like it: d is the edit distance, n
    the length of the longer of the two. Case and white space do not count, and other words in the image cost nothing. The score is
    the mean over the texts; without any recognized word it is 0.
    """

    name = "ocr"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, read: Callable[[Bytes], Sequence[str]], unquoted: float | None = None):
        self.read, self.unquoted = read, unquoted

    @classmethod
    def load(cls, *, unquoted: float | None = None) -> Ocr:
        """Load the verifier, with the models in the package rapidocr.

        Args:
            unquoted: score of prompts without a text in quotation marks; none = they are refused.

        Raises:
            Failure: a package or a model is missing.
        """
        return cls(_reader(), unquoted)

    @classmethod
    def check(cls, prompt: str, unquoted: float | None = None) -> None:
        """Raise BadInput where the prompt has no text in quotation marks, unless such prompts have a score."""
        if unquoted is None and not quoted(prompt):
            raise BadInput(
                f"ocr looks for the text in quotation marks, and the prompt {prompt!r} has none: quote it, "
                'e.g. a sign that says "OPEN"; or set unquoted, the score of such prompts, e.g. ocr:unquoted=0'
            )

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B].

        Raises:
            BadInput: a prompt has no text in quotation marks.
        """
        for prompt in prompts:
            self.check(prompt, self.unquoted)
        scores = []
        for wanted, image in zip(map(quoted, prompts), images, strict=True):
            lines = self.read(image) if wanted else []
            scores.append(np.mean([legibility(text, lines) for text in wanted]) if wanted else self.unquoted)
        return np.array(scores, np.float32)


def quoted(prompt: str) -> list[str]:
    """Return the texts in quotation marks of a prompt: “…”, "…", „…“, «…», 「…」, ‘…’ and '…'."""
    found = ("".join(filter(None, groups)) for groups in _QUOTED.findall(prompt))
    return [text for text in found if text.strip()]


def legibility(text: str, lines: Sequence[str]) -> float:
    """Return how much of a text the recognized lines show, 0..1, see :class:`Ocr`."""
    wanted, words = _folded(text), [_folded(word) for word in " ".join(lines).split()]
    best = 0.0
    for first in range(len(words)):
        run = ""
        for word in words[first:]:
            run += word
            short, long = sorted((len(run), len(wanted)))
            if short / long > best:  # a distance is at least the difference of the lengths
                best = max(best, 1 - _distance(run, wanted) / long)
    return best


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _distance(one: str, other: str) -> int:
    """Return the edit distance (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for number, character in enumerate(one, 1):
        previous, row = row, [number]
        for place, against in enumerate(other):
            row.append(min(row[place] + 1, previous[place + 1] + 1, previous[place] + (character != against)))
    return row[-1]


def _reader() -> Callable[[Bytes], Sequence[str]]:
    """Return a function that reads the lines of text in an image [h, w, 3], from top to bottom."""
    found = {name: find_spec(name) for name in ("rapidocr", "onnxruntime")}
    if missing := [name for name, spec in found.items() if spec is None or spec.origin is None]:
        raise Failure(f"verifier 'ocr' needs {' and '.join(missing)}: pip install 'lotts-search[ocr]'")
    folder = Path(str(getattr(found["rapidocr"], "origin", ""))).parent / "models"
    for model in _MODELS.values():
        if not (folder / model).is_file():
            raise Failure(f"the installed rapidocr has no model {model}: pip install 'lotts-search[ocr]'")
    from rapidocr import RapidOCR

    # With their paths given, rapidocr downloads no models. Text that stands on its head does not count as legible.
    settings = {f"{step}.model_path": str(folder / model) for step, model in _MODELS.items()}
    reader = RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False, **settings})

    def read(image: Bytes) -> Sequence[str]:
        lines: Sequence[str] | None = getattr(reader(Image.fromarray(image)), "txts", None)
        return lines or []

    return read
