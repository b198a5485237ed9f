"""Which processes of a launch see the same cache: those of one host, and those of other hosts that share its folder."""

from __future__ import annotations

import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object

from runner.tracking.process_identity import this_host
from runner.utils.atomic_files import make_folder
from runner.utils.errors import UserError

MARKER_PREFIX = ".host-"
"""Start of the names of the files by which the hosts of a launch look for each other."""


@dataclass(frozen=True)
class CacheHosts:
    """The processes that see this process's cache."""

    ranks: list[int]
    """Sorted; also this process's."""
    count: int
    """Hosts that they run on."""
    launch_caches: int
    """Caches of the whole launch. Hosts that compute other features count as if they had another one."""
    without_first_cache: list[str]
    """Names of the hosts that do not see the cache of rank 0."""
    with_other_features: list[str]
    """Names of the hosts that compute other features than rank 0: their processors or libraries differ."""

    def require_one_cache(self, root: Path) -> None:
        """Raises `UserError`, the same on every process, if some host does not see the cache of rank 0."""
        if self.without_first_cache:
            raise UserError(
                f"features.shared is true, but {' and '.join(self.without_first_cache)} cannot see what the first"
                f" host writes to {root}; set cache to a folder that all hosts share, or features.shared to auto."
            )


def find_cache_hosts(root: Path, rank: int, recipe: str = "") -> CacheHosts:
    """Let the hosts of a launch look for each other in the folder of all stores. A collective operation.

    Args:
        root: The folder.
        rank: Of this process.
        recipe: Digest of what computes this process's features. Those who compute others cannot share the work.
    """
    hosts = gather_object([(this_host(), socket.gethostname(), recipe)])
    boots = [boot for boot, _, _ in hosts]
    firsts = [boots.index(boot) for boot in dict.fromkeys(boots)]
    if len(firsts) == 1:
        return CacheHosts([*range(len(hosts))], 1, 1, [], [])
    marker = root / f"{MARKER_PREFIX}{uuid.uuid4().hex}"
    if rank in firsts:
        with suppress(OSError):  # a read-only cache: it shares nothing
            make_folder(root)
            marker.touch()
    markers = gather_object([marker.name])
    # Nobody has looked for these names before, so that no file system remembers that they are missing.
    visible = {first for first in firsts if _exists(root / markers[first])} if rank in firsts else set()
    seen = gather_object([visible])
    if rank in firsts:
        with suppress(OSError):
            marker.unlink(missing_ok=True)
    mutual = {first: [first, *(other for other in seen[first] if first in seen[other])] for first in firsts}
    """The hosts that see the cache of each."""
    caches = {
        first: min(other for other in mutual[first] if hosts[other][2] == hosts[first][2]) for first in firsts
    }
    """The first host that shares the cache and the features of each."""
    own = caches[boots.index(boots[rank])]
    return CacheHosts(
        [other for other, boot in enumerate(boots) if caches[boots.index(boot)] == own],
        sum(cache == own for cache in caches.values()),
        len(set(caches.values())),
        [hosts[first][1] for first in firsts if firsts[0] not in mutual[first]],
        [hosts[first][1] for first in firsts if hosts[first][2] != hosts[0][2]],
    )


def _exists(path: Path) -> bool:
    """Whether this process sees a file: not if it may not look, or if its file system fails."""
    try:
        return path.exists()
    except OSError:
        return False
