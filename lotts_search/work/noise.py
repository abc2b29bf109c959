"""All randomness of generation: pure functions of (search seed, lineage, purpose, step), computed on the CPU.

Noise never depends on batch, actor, node or completion order, so any actor can run any trial.
"""

from __future__ import annotations

import json
import threading
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np

from lotts_search.errors import BadInput
from lotts_search.work.frequencies import with_low
from lotts_search.work.requests import Floats, Fresh, Lineage, Low, Mix, Near, Noise

Purpose: TypeAlias = Literal["start", "step", "inside", "outside", "locate", "near", "mix"]
"""The use of noise: the start, the solver's step, ε1 (inside) and ε2 (outside) of a refinement, re-noising for a
localization, and the directions of :class:`Near` and :class:`Mix`."""


class _Source(threading.local):
    """A generator per thread; setting its key takes a tenth of the time of making a generator."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)


_source = _Source()
_ZEROS = np.zeros(4, np.uint64)


def draw(
    search_seed: int,
    lineage: Lineage,
    purpose: Purpose,
    step: int,
    shape: tuple[int, ...],
    out: Floats | None = None,
) -> Floats:
    """Draw standard normal float32 numbers of ``shape``; equal arguments give equal numbers on any machine.

    The arguments are hashed (BLAKE2b) to the 128-bit key of a counter-based generator (Philox). Threads may draw at
    the same time, and numpy releases Python's lock while it draws.

    A lineage that ends in ``vary@i β s`` has at step i a mutation ``√(1−β²)·n + β·ε`` of the noise n that the lineage
    without this end has there; at later steps its noise is new.

    Args:
        out: contiguous array of ``shape`` to fill and return.
    """
    if purpose == "step" and lineage and lineage[-1].startswith(f"vary@{step} "):
        share = np.float32(lineage[-1].split()[1])
        varied = _drawn(search_seed, lineage, purpose, step, shape, out)
        varied *= share
        varied += np.sqrt(1 - share**2) * draw(search_seed, lineage[:-1], purpose, step, shape)
        return varied
    return _drawn(search_seed, lineage, purpose, step, shape, out)


def _drawn(
    search_seed: int, lineage: Lineage, purpose: Purpose, step: int, shape: tuple[int, ...], out: Floats | None
) -> Floats:
    text = json.dumps([search_seed, lineage, purpose, step])
    key = np.frombuffer(blake2b(text.encode(), digest_size=16).digest(), "<u8")
    source = _source
    source.bits.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": 4,  # nothing is left in the buffer
        "has_uint32": 0,
        "uinteger": 0,
    }
    return source.generator.standard_normal(shape, dtype=np.float32, out=out)


def lineage_of(noise: Noise) -> Lineage:
    """Return the lineage of a candidate that starts from ``noise``, e.g. ``("seed 3", "near 0.95 1")``."""
    match noise:
        case Fresh(seed):
            return (f"seed {seed}",)
        case Near(base, tau, seed):
            return (*lineage_of(base), f"near {tau:g} {seed}")
        case Mix(base, beta, seed):
            return (*lineage_of(base), f"mix {beta:g} {seed}")
        case Low(base, (rows, columns), values):
            digest = blake2b(np.array(values).tobytes(), digest_size=6).hexdigest()
            return (*lineage_of(base), f"low {rows}x{columns} {digest}")


def start_noise(search_seed: int, noise: Noise, shape: tuple[int, ...]) -> Floats:
    """Draw the start noise that a symbol stands for, float32 of ``shape``.

    Fresh is standard normal. Near is ``‖n‖(τ·u + √(1−τ²)·w⊥)``, where ``u`` is the unit vector of the base ``n`` and
    ``w⊥`` a random unit vector perpendicular to it, so the norm is kept and the cosine to the base is exactly τ. Mix is
    ``√(1−β²)·n + β·ε``. Low has the high frequencies of its base and its own low ones. The random direction depends on the base and the seed, not on τ or β.

    Raises:
        BadInput: τ is outside -1..1 or β outside 0..1, or a grid of low frequencies does not fit ``shape``.
    """
    match noise:
        case Fresh():
            return draw(search_seed, lineage_of(noise), "start", 0, shape)
        case Near(base, tau, seed):
            if not -1 <= tau <= 1:
                raise BadInput(f"tau must be within -1..1, got {tau}")
            n = start_noise(search_seed, base, shape).astype(np.float64)
            w = draw(search_seed, lineage_of(base), "near", seed, shape).astype(np.float64)
            norm = np.linalg.norm(n)
            u = n / norm
            w -= np.sum(w * u) * u
            w /= np.linalg.norm(w)
            near: Floats = (norm * (tau * u + np.sqrt(1 - tau**2) * w)).astype(np.float32)
            return near
        case Mix(base, beta, seed):
            if not 0 <= beta <= 1:
                raise BadInput(f"beta must be within 0..1, got {beta}")
            n = start_noise(search_seed, base, shape).astype(np.float64)
            fresh = draw(search_seed, lineage_of(base), "mix", seed, shape).astype(np.float64)
            mixed: Floats = (np.sqrt(1 - beta**2) * n + beta * fresh).astype(np.float32)
            return mixed
        case Low(base, size, values):
            kept = start_noise(search_seed, base, shape)
            replaced: Floats = with_low(kept, np.reshape(values, (-1, *size))).astype(np.float32)
            return replaced
