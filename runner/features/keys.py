"""Keys of features: the contents of images, in one view. They do not depend on an image's path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runner.data.images import DIGEST_BYTES


@dataclass(frozen=True, eq=False)
class FeatureKeys:
    """The keys of n images in a view."""

    digests: np.ndarray
    """n × 20 bytes of content digests, uint8; not changed after it is given."""
    view: int

    def __len__(self) -> int:
        return len(self.digests)

    def take(self, indices: np.ndarray | Sequence[int]) -> FeatureKeys:
        """The keys at these indices, in their order."""
        return FeatureKeys(self.digests[np.asarray(indices, np.int64)], self.view)

    def to_json(self) -> str:
        """A list of texts "digest:view", as a shard states its keys."""
        end = np.frombuffer(f':{self.view}", "'.encode(), np.uint8)
        digits = np.frombuffer(self.digests.tobytes().hex().encode(), np.uint8).reshape(len(self), -1)
        text = np.hstack([digits, np.broadcast_to(end, (len(self), len(end)))]).tobytes().decode()
        return '["' + text.removesuffix(', "') + "]"

    @classmethod
    def from_json(cls, text: str) -> FeatureKeys:
        """What `to_json` wrote, of at least one key. Raises ValueError for anything else."""
        match = re.search(r':(-?[0-9]{1,18})"\]$', text)
        if not match:
            raise ValueError("no list of keys")
        end = f':{match[1]}"'
        digits = text.removeprefix('["').removesuffix(f"{end}]").replace(f'{end}, "', "")
        digests = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, DIGEST_BYTES)
        keys = cls(digests, int(match[1]))
        if keys.to_json() != text:
            raise ValueError("no list of keys")
        return keys
