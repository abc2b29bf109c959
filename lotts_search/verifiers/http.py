"""Scores from any server that speaks the small JSON protocol of docs/verifiers.md."""

from __future__ import annotations

import math
import os
import uuid
from typing import Any

import numpy as np

from lotts_search.endpoints.client import Client, checked, encoded
from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes, Floats


class HttpVerifier:
    """``http``: scores that a server returns for prompts and PNG images; their range is the server's.

    The key is read from the environment variable ``LOTTS_VERIFIER_KEY`` only, so that no record contains it. A request is
    ``POST url`` with ``{"images": [{"id": …, "prompt": …, "png": base64}]}``, its answer ``{"scores": [{"id": …, "score": …}]}``.
    Every image has a new id, and a score is accepted only with the id of its image.
    """

    name = "http"
    requirements: tuple[str, ...] = ()
    pad = False
    remote = True

    def __init__(self, client: Client, batch: int):
        self.client, self.batch = client, batch

    @classmethod
    def load(cls, *, url: str, timeout: float = 60.0, retries: int = 2, batch: int = 16) -> HttpVerifier:
        """Load the verifier, and send the server a request without images.

        Args:
            url: address of the scoring endpoint, e.g. http://127.0.0.1:8000/score.
            timeout: seconds for all tries of a request together.
            retries: further tries after a refused or lost connection, a timeout or a temporary error status.
            batch: most images in one request.

        Raises:
            BadInput: a setting is wrong.
            Failure: the server cannot be reached, or does not speak the protocol.
        """
        if batch < 1:
            raise BadInput(f"batch of http must be 1 or more, not {batch}")
        made = cls(Client(url, timeout, retries, key=os.environ.get("LOTTS_VERIFIER_KEY", "")), batch)
        made._ask([])
        return made

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B].

        Raises:
            Failure: the server cannot be reached, or an image has no score, several, or one that is not a finite number.
        """
        rows = [
            {"id": uuid.uuid4().hex, "prompt": prompt, "png": encoded(image)}
            for prompt, image in zip(prompts, images, strict=True)
        ]
        return np.array(self._ask(rows), dtype=np.float32)

    def _ask(self, rows: list[dict[str, str]]) -> list[float]:
        answer = checked(self.client.send("POST", "", self.client.deadline(), {"images": rows}))
        where = self.client.base_url
        try:
            entries = answer.json()["scores"]
            found = [(entry["id"], entry["score"]) for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(
                f'{where} must answer {{"scores": [{{"id": …, "score": …}}]}}, not {answer.text[:200]}'
            ) from error
        expected = [row["id"] for row in rows]
        if foreign := {str(id) for id, _ in found} - set(expected):
            raise Failure(f"{where} returned a score for an image that it was not sent: id {min(foreign)}")
        return [_only([score for id, score in found if id == one], where) for one in expected]


def _only(scores: list[Any], where: str) -> float:
    """Return the one score of an image."""
    if len(scores) != 1:
        raise Failure(f"{where} returned {len(scores) or 'no'} scores for an image")
    score = scores[0]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise Failure(f"{where} returned the score {score!r}, which is not a finite number")
    return float(score)
