"""Damage to .safetensors files: to the length in front, to the header, to the numbers, and to what seals them."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from fuzz.damage import bent, bent_json, damaged

KINDS = ("F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X9", "", "f32")


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a valid file, and the bytes behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: str | dict[str, Any], numbers: bytes, length: int | None = None) -> bytes:
    """A file of a header and numbers; `length` in place of what the header has."""
    text = header if isinstance(header, str) else json.dumps(header)
    coded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(coded) if length is None else length) + coded + numbers


def hostile(random: Random, content: bytes, other: bytes) -> bytes:
    """A damaged file: anywhere, in its length, in a tensor's place, type or shape, or in its metadata."""
    header, numbers = parts(content)
    kind = random.random()
    if kind < 0.3:
        return damaged(random, content, other)
    if kind < 0.4:
        return joined(header, numbers, random.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, 100_000_001)))
    if kind < 0.6:
        return joined(_moved(random, header), numbers)
    if kind < 0.8:
        return joined(_about(random, header), numbers)
    if kind < 0.9:
        return joined(bent_json(random, header), numbers)
    return joined(header, damaged(random, numbers, numbers))


def _moved(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """A tensor lies elsewhere, is of another type or shape, or takes another's name."""
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header
    name = random.choice(names)
    told, twin = header[name], header[random.choice(names)]
    kind = random.randrange(6)
    if kind == 0:
        told["data_offsets"] = [
            random.choice((0, 4, 2**40, 2**64 - 1)),
            random.choice((0, 4, 2**40, 2**64 - 1)),
        ]
    elif kind == 1:
        told["data_offsets"] = twin["data_offsets"]
    elif kind == 2:
        told["dtype"] = random.choice(KINDS)
    elif kind == 3:
        told["shape"] = random.choice(
            ([], [0], [2**40, 2**40], [1] * 70, list(reversed(told["shape"])), [-1], [2**64])
        )
    elif kind == 4:
        header[f"{name}x"] = header.pop(name)
    else:
        header[name] = bent(random, told)
    return header


def _about(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """The metadata says other things; where they are JSON, in that too."""
    told = header.get("__metadata__", {})
    if not told:
        return header
    name = random.choice(sorted(told))
    try:
        inner = json.loads(told[name])
    except ValueError:
        inner = None
    if isinstance(inner, (dict, list)) and random.random() < 0.8:
        told[name] = bent_json(random, inner)
    elif random.random() < 0.3:
        del told[name]
    else:
        told[name] = damaged(random, told[name].encode(), b"").decode("utf-8", "replace")
    return header
