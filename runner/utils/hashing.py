"""What is random here is a function of a key; what is stored bears a digest of what made it.

Keys are hashed with BLAKE2b (RFC 7693), so that a value never depends on the process, the platform's `hash`
or the order of earlier draws.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*parts: Any) -> str:
    """40 hexadecimal digits for a sequence of JSON-like values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def digest_bytes(content: bytes) -> str:
    """40 hexadecimal digits for the content of a file."""
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def seed(*parts: Any) -> int:
    """A 63-bit seed for a random generator, from what names its draw: `seed(fit_seed, "order", epoch)`."""
    return int(digest(*parts)[:16], 16) >> 1
