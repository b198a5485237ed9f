"""Digests and seeds: both are functions of a key.

Keys are hashed with BLAKE2b (RFC 7693). A value does not depend on the process, Python's `hash` or earlier draws.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*parts: Any) -> str:
    """40 hexadecimal digits for a sequence of JSON-like values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def digest_bytes(content: bytes | memoryview) -> str:
    """40 hexadecimal digits for the content of a file."""
    return raw_digest(content).hex()


def raw_digest(content: bytes | memoryview) -> bytes:
    """The 20 bytes that `digest_bytes` writes in digits."""
    return hashlib.blake2b(content, digest_size=20).digest()


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed for a random generator from the key of a draw: `derive_seed("order", train_seed, epoch)`."""
    return int(digest(*parts)[:16], 16) >> 1
