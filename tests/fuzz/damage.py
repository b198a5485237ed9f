"""Random damage to bytes, to trees of plain values and to text: a pure function of the state of `random`."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBERS = (
    b"0", b"-1", b"1", b"9223372036854775808", b"-9223372036854775809", b"4294967296", b"1e999", b"-1e999", b"NaN",
    b".nan", b".inf", b"1e-400", b"0x10", b"1_000", b"0.1", b"-0.0", b"9" * 5000, "٣".encode(),
)  # fmt: skip
WORDS = (
    b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b"\x1b[31m",
    b"\xf0\x9f\x98\x80", b"..", b"../../../etc/passwd", b"/etc/passwd", b'"', b"'", b",", b":", b"{", b"[", b"]",
    b"}", b"null", b"true", b"&a", b"*a", b"<<: *a", b"!!python/name:os.system", b"%n%s", b"\xe2\x80\xa8", b"\x85",
    b"A" * 3000,
)  # fmt: skip
DEPTH, LONG = 100_000, 300_000
TYPES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.5, 1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "nan", "1", "..", "/", "a/b", "\0", "\n", "x\ny\rz", "\ud800",
    "\x1b[2J", "A" * LONG, [], [[]], {}, {"": 0}, [None], {"a": {"b": [1]}}, [0, 0, 0], ["a", "a"],
)  # fmt: skip
"""Values to put where another value is expected."""


def damaged(random: Random, content: bytes, other: bytes = b"") -> bytes:
    """Bytes with one to four kinds of damage; `other` is another valid file, to splice with."""
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice(_DAMAGES)(random, content, other)
    return content


def _flip(random: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _number in range(random.choice((1, 1, 3, 20)) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, content: bytes, _: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + random.randbytes(random.choice((1, 2, 8, 300))) + content[place:]


def _word(random: Random, content: bytes, _: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + random.choice(WORDS) + content[place + random.choice((0, 0, 1, 4)) :]


def _delete(random: Random, content: bytes, _: bytes) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + content[place + random.choice((1, 2, 8, 300)) :]


def _double(random: Random, content: bytes, _: bytes) -> bytes:
    begin = random.randint(0, len(content))
    end = begin + random.choice((1, 8, 60, 1000))
    return content[:end] + content[begin:end] * random.choice((1, 1, 3)) + content[end:]


def _cut(random: Random, content: bytes, _: bytes) -> bytes:
    return content[: random.choice((0, 1, random.randint(0, len(content)), random.randint(0, len(content))))]


def _splice(random: Random, content: bytes, other: bytes) -> bytes:
    return content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]


def _number(random: Random, content: bytes, _: bytes) -> bytes:
    if not (found := list(NUMBER.finditer(content))):
        return content
    one = random.choice(found)
    return content[: one.start()] + random.choice(NUMBERS) + content[one.end() :]


def _binary(random: Random, content: bytes, _: bytes) -> bytes:
    """Replace two, four or eight bytes by an extreme number."""
    form = random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    place = random.randint(0, max(0, min(len(content), random.choice((64, 10**9))) - size))
    value = random.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 40_000))
    return content[:place] + struct.pack(form, value) + content[place + size :]


def _lines(random: Random, content: bytes, other: bytes) -> bytes:
    """Swap, repeat, delete or insert lines."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return content
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        lines[one], lines[two] = lines[two], lines[one]
    elif kind == 1:
        lines.insert(one, lines[two])
    elif kind == 2:
        del lines[one]
    elif strange := other.splitlines(keepends=True):
        lines.insert(one, random.choice(strange))
    return b"".join(lines)


def _recode(random: Random, content: bytes, _: bytes) -> bytes:
    kind = random.randrange(6)
    if kind == 0:
        return content.decode("utf-8", "replace").encode("utf-16")
    if kind == 1:
        return content.decode("utf-8", "replace").encode("utf-32-be")
    if kind == 2:
        return b"\xef\xbb\xbf" + content
    if kind == 3:
        return content.replace(b"\n", b"\r\n")
    if kind == 4:
        return content.replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    return content + b"\0" * random.choice((1, 4096))


_DAMAGES: Sequence[Callable[[Random, bytes, bytes], bytes]] = (
    _flip, _flip, _insert, _word, _word, _delete, _double, _cut, _splice, _number, _number, _binary, _lines, _recode,
)  # fmt: skip


def mutated(random: Random, tree: Any) -> Any:
    """A copy of a tree with one to three changes: keys removed, types changed, values swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _positions(tree)
        if not places:
            return random.choice(TYPES)
        holder, key = random.choice(places)
        kind = random.randrange(10)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, place = random.choice(places)
            holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(holder[key])
        elif kind == 2 and isinstance(holder, dict):
            holder[random.choice((f"{key}x", str(key)[:-1], str(key).upper(), "", "\0", "__class__"))] = (
                holder.pop(key)
            )
        elif kind == 3 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 4:
            holder[key] = _similar(random, holder[key])
        elif kind == 5:
            holder[key] = [holder[key]]
        elif kind == 6:
            holder[key] = {"a": holder[key]}
        elif kind == 7:
            holder[key] = str(holder[key])
        else:
            holder[key] = copy.deepcopy(random.choice(TYPES))
    return tree


def _similar(random: Random, value: Any) -> Any:
    """Another value of the same type, which only a check of its meaning can detect."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return random.choice((value + 1, value - 1, -value, value * 2, value * 1_000_003, 0.5))
    if isinstance(value, str) and value:
        place = random.randrange(len(value))
        return value[:place] + random.choice("0aZ/ .\n,é\ud800") + value[place + random.randint(0, 1) :]
    return random.choice(TYPES)


def _positions(tree: Any) -> list[tuple[Any, Any]]:
    """Every position in a tree: the container and the key."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            pending.append(node[key])
    return found


def mutated_json(random: Random, tree: Any) -> str:
    """A mutated tree as JSON; sometimes too deep for the stack of a parser, or with a repeated name."""
    text = json.dumps(mutated(random, tree))
    kind = random.randrange(25)
    if kind == 0 and (numbers := list(re.finditer(r"\d+", text))):
        one = random.choice(numbers)
        return text[: one.start()] + "[" * DEPTH + "]" * DEPTH + text[one.end() :]
    if kind == 1:
        return "[" * DEPTH
    if kind == 2:
        return '{"a":' * DEPTH
    if kind == 3 and text.startswith("{"):
        return text[:-1] + ("," if len(text) > 2 else "") + text[1:]
    if kind == 4 and (numbers := list(re.finditer(r"\d+", text))):
        one = random.choice(numbers)
        return (
            text[: one.start()] + random.choice(("1e999", "-Infinity", "9" * 5000, "-0")) + text[one.end() :]
        )
    return text
