"""A real SLURM cluster, as in benchmarks/support/slurm_cluster.py; tests are skipped where it cannot be made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from requirements import or_skip

from benchmarks.support import slurm_cluster as clusters


def slurm_cluster(
    nodes: int, folder: Path, others: Sequence[str] = ()
) -> AbstractContextManager[clusters.SlurmCluster]:
    """A cluster.

    Args:
        nodes: Number of nodes, which are named node1, node2, …
        folder: For its files.
        others: Names of further hosts on its network.
    """
    return or_skip(clusters.slurm_cluster(nodes, folder, others))
