"""The frames between a pool and a verifier in another process: a JSON header and raw bytes, nothing else.

A frame is ``LSVF``, the length of the header (4 bytes), the length of the body (8 bytes, both big-endian), the header
in UTF-8 and the body. Each image of a call has an identity, a hash of the call, the row, the prompt and the pixels as
they arrived, and scores return with the identities of their images: a score cannot be given to another image.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

MAGIC = b"LSVF"
_LENGTHS = struct.Struct(">4sIQ")
HEADER_LIMIT = 1 << 26
"""Most bytes of a header: 64 MiB."""
BODY_LIMIT = 1 << 34
"""Most bytes of a body: 16 GiB."""


class BrokenFrame(Exception):
    """What arrived is not a frame, or ended in the middle of one."""


def send(connection: socket.socket, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Send a frame; raises OSError, and TimeoutError after the socket's timeout."""
    head = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(MAGIC, len(head), len(body)) + head)
    if len(body):
        connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Return the header and the body of the next frame.

    Raises:
        EOFError: the other side has closed the connection.
        BrokenFrame: what arrived is not a frame.
        OSError, TimeoutError: as of ``recv``.
    """
    magic, head, body = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if magic != MAGIC or head > HEADER_LIMIT or body > BODY_LIMIT:
        raise BrokenFrame("the answer is not a frame")
    try:
        header = json.loads(_exactly(connection, head))
    except ValueError as error:
        raise BrokenFrame("the header of a frame is not JSON") from error
    if not isinstance(header, dict):
        raise BrokenFrame("the header of a frame is not an object")
    return header, _exactly(connection, body)


def _exactly(connection: socket.socket, length: int) -> bytearray:
    buffer = bytearray(length)
    view, got = memoryview(buffer), 0
    while got < length:
        count = connection.recv_into(view[got:])
        if not count:
            raise EOFError("the connection was closed")
        got += count
    return buffer


def identities(call: int, prompts: Sequence[str], images: memoryview) -> list[str]:
    """Return the identities of the images of a call, from the bytes of all of them, one after the other."""
    size = len(images) // max(1, len(prompts))
    return [identity(call, row, prompt, images[row * size : (row + 1) * size]) for row, prompt in enumerate(prompts)]


def identity(call: int, row: int, prompt: str, image: memoryview) -> str:
    """Return the identity of an image in a call, from its bytes."""
    digest = blake2b(f"{call} {row} {prompt}\0".encode(), digest_size=16)
    digest.update(image)
    return digest.hexdigest()
