"""Environments for tests, made without a network: packages are wheels written here, numpy is this interpreter's."""

from __future__ import annotations

import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lotts_search.verifiers.environments.prepare import Environment, prepare
from lotts_search.verifiers.environments.recipe import recipe_of

JUDGES = '''\
"""Two judges that need different versions of one package."""

import numpy as np


class Old:
    """The brightness by tinyshade 1."""

    name = "old"
    requirements = ()
    environment = "old.toml"
    scale = 1

    @classmethod
    def load(cls):
        """Load it."""
        import tinyshade

        assert tinyshade.VERSION == cls.scale, tinyshade.VERSION
        return cls()

    def score(self, prompts, images):
        """Score images."""
        import tinyshade

        return np.float32(tinyshade.VERSION * images.mean(axis=(1, 2, 3)))


class New(Old):
    """Twice the brightness, by tinyshade 2."""

    name = "new"
    environment = "new.toml"
    scale = 2
'''


def prepare_for(verifier: type[Any], folder: Path) -> Environment:
    """Prepare the environment of a verifier in a folder of environments; it also sees numpy."""
    recipe = recipe_of(verifier)
    assert recipe is not None
    environment = Environment.of(recipe, folder)
    prepare(environment)
    (packages,) = environment.path.glob("lib/python*/site-packages")
    (packages / "numpy.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def wheel(folder: Path, version: int) -> Path:
    """Write a wheel of the package ``tinyshade``, whose ``VERSION`` is its version."""
    path, info = folder / f"tinyshade-{version}-py3-none-any.whl", f"tinyshade-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinyshade.py", f"VERSION = {version}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinyshade\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


ROGUE = """\
import random, socket, sys
from lotts_search.verifiers.environments import frames

connection, fault = socket.socket(fileno=0), sys.argv[1]
while True:
    header, body = frames.receive(connection)
    answer, scores = {"call": header["call"]}, b""
    if "load" not in header:
        size = len(body) // len(header["prompts"])
        images = [memoryview(body)[i * size :][:size] for i in range(len(header["prompts"]))]
        rows = [frames.identity(header["call"], i, p, images[i]) for i, p in enumerate(header["prompts"])]
        pairs = [(row, image[0]) for row, image in zip(rows, images)]
        if fault == "shuffled":
            random.shuffle(pairs)
        elif fault == "few":
            pairs.pop()
        elif fault == "double":
            pairs.append(pairs[0])
        elif fault == "confused":
            pairs[0] = (frames.identity(header["call"], 0, header["prompts"][0], images[1]), images[0][0])
        elif fault == "late":  # an answer to an earlier call comes first
            frames.send(connection, {"call": header["call"] - 1, "rows": rows}, b"\\0" * 4 * len(rows))
        elif fault == "noise":
            connection.sendall(b"loading weights, please wait ...")
        import numpy
        answer["rows"] = [row for row, _ in pairs]
        scores = numpy.array([score for _, score in pairs], "<f4").tobytes()
    frames.send(connection, answer, scores)
"""
"""A process that answers as a verifier's does, with a fault; the score is the first byte of an image."""


def write_judges(folder: Path, versions: Sequence[int] = (1, 2)) -> None:
    """Write the module ``conflicting_judges`` and the recipes of its two judges, which install two versions."""
    (folder / "conflicting_judges.py").write_text(JUDGES)
    for name, version in zip(("old", "new"), versions, strict=True):
        (folder / f"{name}.toml").write_text(
            f"[[steps]]\ninstall = ['{wheel(folder, version)}']\n"
            f"[[files]]\nto = 'numpy.pth'\ntext = '{sysconfig.get_path('purelib')}'\n"
        )
