"""A vision-language model behind an OpenAI-compatible endpoint as the judge of images."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from lotts_search.endpoints.client import Client, checked
from lotts_search.endpoints.judge import RUBRIC, Judge, criteria_of
from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes, Floats


class VlmJudge:
    """``vlm-judge``: a vision-language model's rating of an image by a rubric, or its probability that the image shows the
    prompt; 0..1.

    The key is read from the environment variable ``LOTTS_JUDGE_KEY`` only, so that no record contains it. An image that was
    judged before in the same process is not sent again.
    """

    name = "vlm-judge"
    requirements: tuple[str, ...] = ()
    pad = False
    remote = True

    def __init__(self, judge: Judge, parallel: int):
        self.judge, self.batch = judge, parallel

    @classmethod
    def load(
        cls,
        *,
        base_url: str | None = None,
        model: str | None = None,
        mode: Literal["rubric", "yes-probability"] = "rubric",
        rubric: str | None = None,
        boxes: bool = True,
        timeout: float = 60.0,
        retries: int = 2,
        parallel: int = 8,
        side: int = 1024,
        image_format: Literal["png", "jpeg"] = "png",
        max_tokens: int = 1024,
    ) -> VlmJudge:
        """Load the verifier, and ask the endpoint for its models.

        Args:
            base_url: address of the endpoint; none = LOTTS_JUDGE_URL, or http://127.0.0.1:8000/v1.
            model: name of the model; none = LOTTS_JUDGE_MODEL, or the first model that the endpoint offers.
            mode: rubric = mean rating of the criteria; yes-probability = VQAScore, from log-probabilities.
            rubric: criteria, one 'name: description' per line, or a text file with them; none = the built-in ones.
            boxes: ask where something is wrong, for the mask source judged.
            timeout: seconds for all tries of a request together.
            retries: further tries after a refused or lost connection, a timeout or a temporary error status.
            parallel: concurrent requests.
            side: longer side in pixels to which larger images are scaled down.
            image_format: format in which images are sent.
            max_tokens: most tokens of a reply.

        Raises:
            BadInput: a setting is wrong.
            Failure: the endpoint cannot be reached.
        """
        if side < 1 or max_tokens < 1:
            raise BadInput(f"side and max_tokens of vlm-judge must be 1 or more, not {side} and {max_tokens}")
        address = base_url or os.environ.get("LOTTS_JUDGE_URL") or "http://127.0.0.1:8000/v1"
        criteria = criteria_of(RUBRIC if rubric is None else _text(rubric))
        client = Client(address, timeout, retries, parallel, os.environ.get("LOTTS_JUDGE_KEY", ""))
        model = model or os.environ.get("LOTTS_JUDGE_MODEL")
        try:
            if model is None:
                model = client.first_model(client.deadline())
            elif (answer := client.send("GET", "models", client.deadline())).status_code in (401, 403):
                checked(answer)
        except ValueError as error:
            raise Failure(str(error)) from error
        return cls(Judge(client, model, mode, criteria, boxes, side, image_format, max_tokens), parallel)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] in 0..1 of uint8 images [B, h, w, 3] for ``prompts`` [B], with parallel requests.

        Raises:
            BadInput: the endpoint gives no log-probabilities, which ``mode=yes-probability`` needs.
            Failure: the endpoint does not answer in time, or twice with something else than a judgement.
        """
        with ThreadPoolExecutor(self.batch) as threads:
            found = list(threads.map(self.judge.ask, prompts, images))
        return np.array([one.score for one in found], dtype=np.float32)


def _text(rubric: str) -> str:
    """Return a rubric, or the text of the file that it names."""
    if "\n" in rubric or ":" in rubric:
        return rubric
    try:
        return Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the rubric {rubric} is neither criteria 'name: description' nor a text file") from error
