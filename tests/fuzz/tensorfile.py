"""Random damage to .safetensors files: to the length field, the header, the values and the metadata."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from fuzz.damage import damaged, mutated, mutated_json

KINDS = ("F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X9", "", "f32")


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a valid file, and the bytes after it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assemble(header: str | dict[str, Any], numbers: bytes, length: int | None = None) -> bytes:
    """A file made of a header and values; `length` overrides the length field."""
    text = header if isinstance(header, str) else json.dumps(header)
    coded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(coded) if length is None else length) + coded + numbers


def hostile(random: Random, content: bytes, other: bytes) -> bytes:
    """A damaged file: anywhere, or in its length field, a tensor's offsets, type or shape, or the metadata."""
    header, numbers = parts(content)
    kind = random.random()
    if kind < 0.3:
        return damaged(random, content, other)
    if kind < 0.4:
        return assemble(header, numbers, random.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, 100_000_001)))
    if kind < 0.6:
        return assemble(_mutate_tensor(random, header), numbers)
    if kind < 0.8:
        return assemble(_mutate_metadata(random, header), numbers)
    if kind < 0.9:
        return assemble(mutated_json(random, header), numbers)
    return assemble(header, damaged(random, numbers, numbers))


def _mutate_tensor(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Change a tensor's offsets, type, shape or name."""
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header
    name = random.choice(names)
    entry, twin = header[name], header[random.choice(names)]
    kind = random.randrange(6)
    if kind == 0:
        entry["data_offsets"] = [
            random.choice((0, 4, 2**40, 2**64 - 1)),
            random.choice((0, 4, 2**40, 2**64 - 1)),
        ]
    elif kind == 1:
        entry["data_offsets"] = twin["data_offsets"]
    elif kind == 2:
        entry["dtype"] = random.choice(KINDS)
    elif kind == 3:
        entry["shape"] = random.choice(
            ([], [0], [2**40, 2**40], [1] * 70, list(reversed(entry["shape"])), [-1], [2**64])
        )
    elif kind == 4:
        header[f"{name}x"] = header.pop(name)
    else:
        header[name] = mutated(random, entry)
    return header


def _mutate_metadata(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Change the metadata; also inside values that are JSON."""
    metadata = header.get("__metadata__", {})
    if not metadata:
        return header
    name = random.choice(sorted(metadata))
    try:
        inner = json.loads(metadata[name])
    except ValueError:
        inner = None
    if isinstance(inner, (dict, list)) and random.random() < 0.8:
        metadata[name] = mutated_json(random, inner)
    elif random.random() < 0.3:
        del metadata[name]
    else:
        metadata[name] = damaged(random, metadata[name].encode(), b"").decode("utf-8", "replace")
    return header
