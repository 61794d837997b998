"""Changing an input: bytes of any file, and values of a JSON file or of a safetensors header."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = (0, 1, -1, 2, 255, 256, 65_536, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30,
           0.5, -0.0, 1e308, 1e-320)  # fmt: skip
TEXTS = (
    "", ".", "..", "/", "../../etc/passwd", "a/b", "c:\\x", "\0", "\ud800", "\x1b[2J", "é" * 300,
    "__class__", "{{7*7}}", "<script>", "lowrank", "linear", "F32", "float32", "nan",
)  # fmt: skip
BYTES = (b"\0", b"\xff" * 8, b"\n", b"\r\n", b'"', b",", b"{", b"[", b"\x80\x02", b"PK\x03\x04",
         b"NaN", b"Infinity", b"1e999", b"9" * 400, b"[" * 2000, b"\xef\xbb\xbf")  # fmt: skip


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return a changed input.

    Args:
        data: One of the corpus.
        rng: Draws the changes.
        others: The corpus, to cross with.
    """
    if rng.random() < 0.5:
        changed = structured(data, rng)
        if changed is not None:
            return changed
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        content = bytearray(_by_bytes(content, rng, others))
    return bytes(content[: 1 << 20])


def structured(data: bytes, rng: random.Random) -> bytes | None:
    """Return the input with some values of its JSON changed; None where it holds none."""
    if data[:1] in (b"{", b"["):
        parsed = _parsed(data)
        return None if parsed is None else _dumped(_changed(parsed, rng))
    if len(data) > 9 and data[8:9] == b"{":
        (length,) = struct.unpack("<Q", data[:8])
        parsed = _parsed(data[8 : 8 + min(length, len(data))])
        if parsed is None:
            return None
        header = _dumped(_changed(parsed, rng))
        claimed = len(header) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**63, 100 << 20))
        return struct.pack("<Q", claimed) + header + data[8 + length :]
    return None


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    """Return the value with one thing changed somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        choice = rng.random()
        if choice < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if choice < 0.2:
            return value | {rng.choice(TEXTS): value[key]}
        return value | {key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value * rng.choice((0, 2, 50))
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    odd: tuple[Any, ...] = (None, True, [], {}, [value], {"a": value}, [[]] * 3)
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(odd)))


def _by_bytes(content: bytearray, rng: random.Random, others: list[bytes]) -> bytes:
    place = rng.randrange(len(content) + 1)
    end = min(len(content), place + rng.choice((1, 1, 4, 32, 4096)))
    choice = rng.randrange(6)
    if choice == 0 and content:
        content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)
        return bytes(content)
    if choice == 1:
        return bytes(content[:place] + rng.choice(BYTES) + content[place:])
    if choice == 2:
        return bytes(content[:place] + content[end:])
    if choice == 3:
        return bytes(content[:place] + rng.randbytes(end - place) + content[end:])
    if choice == 4:
        return bytes(content[:place])
    other = rng.choice(others)
    return bytes(content[:place]) + other[rng.randrange(len(other) + 1) :]
