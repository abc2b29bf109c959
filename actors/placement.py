"""Where the actors of a pool run, and what each takes of its node. No Ray here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from lotts_search.errors import BadInput, unknown
from lotts_search.verifiers.spec import VerifierSpec

_DEVICE = re.compile(r"cuda(?::(\d+))?")
LABEL, VERIFIER_LABEL = "label.", "verifier-label."


@dataclass(frozen=True)
class Placement:
    """What the actors of a pool take, and on which nodes.

    Each actor works for itself, so the actors need not be near each other, and no placement groups are used.

    Attributes:
        gpus: GPUs of each generator, or a share of one, such as 0.5; None = 1 if its device is a CUDA device, else 0, and as many as
            its model is spread over.
        verifiers: actors of each verifier. Its work goes to the least loaded.
        verifier_gpus: GPUs of each verifier actor; None = 1 if its setting ``device`` is a CUDA device, else 0.
        rewriter_gpus: GPUs of each rewriter actor.
        labels: of the nodes of generators, in the form of Ray's label selectors, e.g. ``{"pool": "gpu"}`` or
            ``{"ray.io/accelerator-type": "in(H100,H200)"}``.
        verifier_labels: the same for verifiers and rewriters.
        object_store_mb: shared memory of a private Ray, 80 MB or more.

    Raises:
        BadInput: a number is out of range.
    """

    gpus: float | None = None
    verifiers: int = 1
    verifier_gpus: float | None = None
    rewriter_gpus: float = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    verifier_labels: Mapping[str, str] = field(default_factory=dict)
    object_store_mb: int = 256

    def __post_init__(self) -> None:
        for name in ("gpus", "verifier_gpus", "rewriter_gpus"):
            number = getattr(self, name)
            if number is not None and not (0 <= number <= 1 or number == int(number) > 1):
                raise BadInput(f"{name} must be a share of a GPU, 0..1, or a whole number of GPUs, not {number:g}")
        if self.verifiers < 1:
            raise BadInput(f"verifiers must be 1 or more, not {self.verifiers}")

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> Self:
        """Return a placement from texts such as ``gpus=0.5``, ``label.pool=gpu`` and ``verifier-label.pool=cpu``.

        Raises:
            BadInput: a text has another form, its name is unknown, or its value is wrong.
        """
        numbers = {
            each.name.replace("_", "-"): int if each.type == "int" else float
            for each in fields(cls)
            if each.name not in ("labels", "verifier_labels")
        }
        given: dict[str, Any] = {"labels": {}, "verifier_labels": {}}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not value:
                raise BadInput(f"a placement is NAME=VALUE, not {pair!r}")
            for start, labels in ((VERIFIER_LABEL, "verifier_labels"), (LABEL, "labels")):
                if name.startswith(start) and len(name) > len(start):
                    given[labels][name.removeprefix(start)] = value
                    break
            else:
                if name not in numbers:
                    raise unknown("placement", name, [*numbers, f"{LABEL}KEY", f"{VERIFIER_LABEL}KEY"])
                try:
                    given[name.replace("-", "_")] = numbers[name](value)
                except ValueError as error:
                    raise BadInput(f"the placement {name} must be a number, not {value!r}") from error
        return cls(**given)

    def generator(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return Ray's options of a generator whose model has these options.

        Raises:
            BadInput: its device is a GPU that it will not have, or it has more or fewer GPUs than its model is spread over.
        """
        spread = options.get("spread") or 1
        found = _options(options.get("device"), self.gpus, self.labels, spread)
        number = found["num_gpus"]
        if number > 1 and spread == 1:
            raise BadInput(
                f"gpus={number:g}: a generator uses one GPU, unless its model is spread over several: --spread {number:g}, in Python "
                f"and YAML the model's option spread={number:g}"
            )
        if spread > 1 and number != spread:
            raise BadInput(
                f"gpus={number:g}: a model that is spread over {spread} GPUs needs a generator with as many, which it gets by itself"
            )
        return found

    def check_device(self, device: str) -> None:
        """Refuse a device of generators.

        Raises:
            BadInput: it is a GPU that they will not have.
        """
        _options(device, self.gpus, {})

    def verifier(self, text: str) -> dict[str, Any]:
        """Return Ray's options of an actor of a verifier.

        Raises:
            BadInput: its device is a GPU that it will not have.
        """
        return _options(VerifierSpec.parse(text).settings.get("device"), self.verifier_gpus, self.verifier_labels)

    def rewriter(self) -> dict[str, Any]:
        """Return Ray's options of the actor of a rewriter."""
        return _options(None, self.rewriter_gpus, self.verifier_labels)

    def resources(
        self, options: Mapping[str, Any], verifiers: Sequence[str], rewriters: int, *, generators: int, threads: int
    ) -> dict[str, float]:
        """Return the CPUs and GPUs of all actors of a pool; for the arguments see :class:`~lotts_search.actors.ray_pool.RayPool`.

        Args:
            options: the pool's ``backbone_options``.
            rewriters: number of rewriters.
        """
        scoring = sum(self.verifiers * self.verifier(name)["num_gpus"] for name in verifiers)
        return {
            "CPU": threads * (generators + self.verifiers * len(verifiers) + rewriters),
            "GPU": self.generator(options)["num_gpus"] * generators + scoring + self.rewriter_gpus * rewriters,
        }


def _options(device: object, gpus: float | None, labels: Mapping[str, str], spread: int = 1) -> dict[str, Any]:
    found = _DEVICE.fullmatch(str(device))
    number = (float(spread) if found or spread > 1 else 0.0) if gpus is None else gpus
    if found and found[1] and int(found[1]) + spread > max(1.0, number):
        raise BadInput(
            f"on Ray an actor sees only its own GPUs, counted from 0: device cuda instead of {device}. Ray chooses among the GPUs "
            "that CUDA_VISIBLE_DEVICES names when it starts; without Ray (--local) any device can be named"
        )
    return {"num_gpus": number, **({"label_selector": dict(labels)} if labels else {})}
