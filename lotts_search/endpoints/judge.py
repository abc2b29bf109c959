"""A vision-language model that judges images: its questions, its replies, and a memory of both.

A verifier and a mask source that ask the same about the same image share one reply.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from lotts_search.endpoints.client import Client, choice, user_message
from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes

RUBRIC = """\
objects: every object of the prompt is there, in the right number, and nothing contradicts the prompt
attributes: colours, materials, sizes and written words are those of the prompt
relations: positions and actions are those of the prompt
quality: nothing is deformed, blurred, broken or cut off"""
"""The default rubric: one criterion per line."""
SIDE = 1000
"""Boxes are in thousandths of the image's width and height."""
_KEPT = 4096
_replies: OrderedDict[str, Future[Judgement]] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Problem:
    """What is wrong in a part of an image.

    Attributes:
        box: left, top, right and bottom edge as shares of the image's width and height, 0..1.
        reason: in words.
    """

    box: tuple[float, float, float, float]
    reason: str


@dataclass(frozen=True)
class Judgement:
    """A judge's reply: the score 0..1, and the problems that it located."""

    score: float
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Judge:
    """Asks one model about images.

    Attributes:
        client: of the endpoint.
        model: its name there.
        mode: ``rubric`` or ``yes-probability``.
        criteria: description by name.
        boxes: ask where something is wrong.
        side: longer side in pixels to which larger images are scaled down.
        image_format: in which images are sent.
        max_tokens: most tokens of a reply.
    """

    client: Client
    model: str
    mode: Literal["rubric", "yes-probability"]
    criteria: dict[str, str]
    boxes: bool
    side: int
    image_format: Literal["png", "jpeg"]
    max_tokens: int

    def ask(self, prompt: str, image: Bytes) -> Judgement:
        """Return the judgement of an image [h, w, 3]; an image that is or was judged in this process is not sent again.

        Raises:
            BadInput: the endpoint gives no log-probabilities, which the mode needs.
            Failure: the endpoint does not answer in time, or twice with something else than a judgement.
        """
        asked = (self.client.base_url, self.model, self.mode, self.criteria, self.boxes, self.side, self.image_format)
        key = hashlib.sha256(json.dumps([*asked, prompt, image.shape]).encode() + image.tobytes()).hexdigest()
        with _lock:
            known = _replies.get(key)
            reply = _replies.setdefault(key, Future())
            _replies.move_to_end(key)
            while len(_replies) > _KEPT:
                _replies.popitem(last=False)
        if known is None:
            try:
                found = self._likely(prompt, image) if self.mode == "yes-probability" else self._judged(prompt, image)
                reply.set_result(found)
            except BaseException as error:
                with _lock:
                    _replies.pop(key, None)
                reply.set_exception(error)
        return reply.result()

    def _judged(self, prompt: str, image: Bytes) -> Judgement:
        until = self.client.deadline()
        messages = [user_message(self._question(prompt), image, self.side, self.image_format)]
        problem = ""
        for _ in range(2):
            text = choice(self._send(messages, until))["message"]["content"]
            try:
                return self._read(text)
            except ValueError as error:
                problem = str(error)
            messages += [
                {"role": "assistant", "content": str(text)},
                {"role": "user", "content": f"This is not what I asked for: {problem}. Reply with the JSON alone."},
            ]
        raise Failure(f"{self.client.base_url}: the judge {self.model} twice gave no judgement: {problem}")

    def _send(self, messages: list[dict[str, Any]], until: float) -> Any:
        body = {"model": self.model, "messages": messages, "temperature": 0, "seed": 0, "max_tokens": self.max_tokens}
        schema = {"name": "judgement", "strict": True, "schema": self._schema()}
        format = {"response_format": {"type": "json_schema", "json_schema": schema}}
        answer = self.client.send("POST", "chat/completions", until, body | format)
        if answer.status_code in (400, 422):  # an endpoint without schemas
            answer = self.client.send("POST", "chat/completions", until, body)
        return answer

    def _question(self, prompt: str) -> str:
        criteria = "\n".join(f"- {name}: {text}" for name, text in self.criteria.items())
        form = ", ".join(f'"{name}": 0-10' for name in self.criteria)
        text = (
            f"The prompt of this generated image: {prompt}\n\nRate the image by each criterion from 0 (fails) to 10 "
            f'(perfect); be strict.\n{criteria}\n\nReply with JSON alone: {{"scores": {{{form}}}'
        )
        if not self.boxes:
            return text + "}"
        return (
            f'{text}, "problems": [{{"box": [left, top, right, bottom], "reason": "…"}}]}}\nList every part of the image '
            f"that is wrong, as a tight box; edges are in thousandths of the image's width and height, 0 to {SIDE}. "
            "The list is empty where nothing is wrong."
        )

    def _schema(self) -> dict[str, Any]:
        def table(properties: dict[str, Any]) -> dict[str, Any]:
            required = list(properties)
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

        number = {"type": "number"}
        fields: dict[str, Any] = {"scores": table(dict.fromkeys(self.criteria, number))}
        if self.boxes:
            box = table({"box": {"type": "array", "items": number}, "reason": {"type": "string"}})
            fields["problems"] = {"type": "array", "items": box}
        return table(fields)

    def _read(self, text: object) -> Judgement:
        found = _first_table(text if isinstance(text, str) else "")
        scores = found.get("scores")
        if not isinstance(scores, dict) or set(scores) != set(self.criteria):
            raise ValueError(f"scores must have exactly the criteria {', '.join(self.criteria)}")
        rated = [_number(scores[name], f"the score of {name}", 10) for name in self.criteria]
        problems = found.get("problems", []) if self.boxes else []
        if isinstance(problems, list):
            return Judgement(sum(rated) / (10 * len(rated)), tuple(_problem(one) for one in problems))
        raise ValueError("problems must be a list")

    def _likely(self, prompt: str, image: Bytes) -> Judgement:
        """Return the probability of the answer yes: VQAScore (Lin et al. 2024, arXiv 2404.01291, Eq. 1)."""
        question = f'Does this image show "{prompt}"? Please answer yes or no.'
        body = {
            "model": self.model,
            "messages": [user_message(question, image, self.side, self.image_format)],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 20,
        }
        answer = self.client.send("POST", "chat/completions", self.client.deadline(), body)
        try:
            tokens = choice(answer)["logprobs"]["content"][0]["top_logprobs"]
            likely = [(str(one["token"]).strip().lower(), math.exp(float(one["logprob"]))) for one in tokens]
        except (KeyError, IndexError, TypeError) as error:
            raise BadInput(
                f"mode=yes-probability needs log-probabilities, which {self.client.base_url} does not give for "
                f"{self.model}; mode=rubric needs none"
            ) from error
        if not any(token in ("yes", "no") for token, _ in likely):
            raise Failure(f"{self.model} answered neither yes nor no but {likely[0][0] if likely else 'nothing'!r}")
        return Judgement(min(1.0, sum(chance for token, chance in likely if token == "yes")))


def criteria_of(rubric: str) -> dict[str, str]:
    """Return the criteria of a rubric, one ``name: description`` per line.

    Raises:
        BadInput: there is none, a line has another form, or a name is there twice.
    """
    found: dict[str, str] = {}
    for line in filter(None, (line.strip().removeprefix("- ") for line in rubric.splitlines())):
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not (name and colon and text) or name in found:
            raise BadInput(f"a rubric has one 'name: description' per line, each name once; not {line!r}")
        found[name] = text
    if not found:
        raise BadInput("the rubric has no criteria: write one 'name: description' per line")
    return found


def _first_table(text: str) -> dict[str, Any]:
    """Return the first JSON object with ``scores``, possibly within other text."""
    for place in (place for place, character in enumerate(text) if character == "{"):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, place)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and "scores" in found:
            return found
    raise ValueError("there is no JSON object with scores")


def _number(value: object, what: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{what} must be a number 0 to {most:g}, not {value!r}")
    return float(value)


def _problem(found: object) -> Problem:
    if not isinstance(found, dict) or not isinstance(found.get("box"), list) or len(found["box"]) != 4:
        raise ValueError("a problem must have a box of four numbers")
    left, top, right, bottom = (_number(edge, "an edge of a box", SIDE) / SIDE for edge in found["box"])
    if not (left < right and top < bottom):
        raise ValueError(f"a box must be [left, top, right, bottom], not {found['box']}")
    return Problem((left, top, right, bottom), str(found.get("reason", "")))
