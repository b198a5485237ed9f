"""Clusters: images that have to stay in one split, and the order in which clusters are divided."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from runner.data.columns import Paths
from runner.data.images import DIGEST_BYTES

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PLAIN = bytes(code for code in range(ord(" "), ord("~") + 1) if chr(code) not in '"\\')
"""Characters that JSON does not escape."""


@dataclass(frozen=True, eq=False)
class SplitInput:
    """n images, sorted by path: what their split depends on."""

    paths: Paths
    classes: tuple[str, ...]
    labels: np.ndarray
    """n class indices, int32."""
    digests: np.ndarray
    """n × 20 bytes of content digests, uint8. Images with the same content are never divided."""
    given: np.ndarray | None = None
    """n indices into `SPLITS`, or `NO_SPLIT` where the data say none, int8."""
    groups: np.ndarray | None = None
    """n numbers of groups that are never divided, int32; a negative one stands for no group."""
    similar: np.ndarray | None = None
    """n numbers of clusters of near duplicates, as `groups`; but splits that the data give may divide them."""

    @cached_property
    def contents(self) -> np.ndarray:
        """The number of each image's content, int32, in the order of their first images."""
        return content_ids(self.digests)


@dataclass(frozen=True, eq=False)
class Clusters:
    """m clusters of images, in the order of their first images."""

    labels: np.ndarray
    """m classes: that of each cluster's first image."""
    sizes: np.ndarray
    """m numbers of images."""
    keys: np.ndarray
    """m × 2 random numbers, uint64: functions of the seed and the path of the first image."""
    counts: csr_array
    """m × classes: the number of images of each class."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Clusters:
        """Some of the clusters."""
        columns = (self.labels, self.sizes, self.keys, self.counts)
        return Clusters(*(column[indices] for column in columns))

    def order(self, strata: np.ndarray) -> Iterator[np.ndarray]:
        """Indices of the clusters of each stratum, by their random numbers."""
        order = np.lexsort((self.keys[:, 1], self.keys[:, 0], strata))
        yield from np.split(order, np.flatnonzero(np.diff(strata[order])) + 1) if len(order) else ()


def cluster_ids(contents: np.ndarray, *groups: np.ndarray | None) -> np.ndarray:
    """The cluster of each image, int32, numbered in the order of their first images.

    Images with the same content are in one cluster, and those that have a group in common, directly or through others.

    Args:
        contents: n numbers of contents.
        groups: Columns of n group numbers. A negative number stands for no group.
    """
    columns = [column for column in groups if column is not None and (column >= 0).any()]
    if not columns:
        return contents
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = int(contents.max()) + 1
    starts, ends = [], []
    for column in columns:
        in_group = np.flatnonzero(column >= 0)
        numbers = _by_first(column[in_group])
        starts.append(contents[in_group])
        ends.append(nodes + numbers)
        nodes += int(numbers.max()) + 1
    edges = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(nodes, nodes))
    return _by_first(connected_components(graph, directed=False)[1][contents])


def content_ids(digests: np.ndarray) -> np.ndarray:
    """The number of each image's content, int32, in the order of their first images. `digests`: n × 20 bytes."""
    import pyarrow as pa

    content = pa.py_buffer(np.ascontiguousarray(digests))
    column = pa.Array.from_buffers(pa.binary(DIGEST_BYTES), len(digests), [None, content])
    return column.dictionary_encode().indices.to_numpy()


def _by_first(numbers: np.ndarray) -> np.ndarray:
    """Numbers replaced by others, from 0 in the order in which they first occur: int32."""
    import pyarrow as pa

    return pa.array(numbers).dictionary_encode().indices.to_numpy()


def form_clusters(
    paths: Paths, labels: np.ndarray, ids: np.ndarray, seed: int
) -> tuple[Clusters, np.ndarray]:
    """The clusters of some images, and the index of each image's cluster.

    Args:
        paths: Their paths, sorted.
        labels: Their classes.
        ids: Numbers of their clusters.
        seed: Of the split.
    """
    from scipy.sparse import coo_array

    ids = _by_first(ids)
    firsts = np.unique(ids, return_index=True)[1]
    shape = (len(firsts), int(labels.max()) + 1 if len(labels) else 0)
    counts = coo_array((np.ones(len(ids), np.int32), (ids, labels)), shape=shape).tocsr()
    first_paths = paths if len(firsts) == len(paths) else paths.take(firsts)
    return Clusters(labels[firsts], np.bincount(ids), split_keys(first_paths, seed), counts), ids


def split_keys(paths: Paths, seed: int) -> np.ndarray:
    """The first 16 bytes of each path's `digest("split", seed, path)` as n × 2 uint64: they order like the digests."""
    start = json.dumps(["split", seed], separators=(",", ":"))[:-1].encode() + b","
    keys = np.empty((len(paths), 2), ">u8")
    for first in range(0, len(paths), 65536):
        block = list(paths[first : first + 65536].iter_bytes())
        if b"".join(block).translate(None, PLAIN):
            texts = [start + json.dumps(os.fsdecode(path)).encode() + b"]" for path in block]
        else:
            opening = start + b'"'
            texts = [opening + path + b'"]' for path in block]
        digests = b"".join([blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts])
        words = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)[:, :16]
        keys[first : first + len(block)] = np.ascontiguousarray(words).view(">u8")
    return keys.astype(np.uint64)
