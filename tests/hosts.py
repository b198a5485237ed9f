"""Several hosts inside this machine, as in benchmarks/support/hosts.py; tests are skipped where they cannot be made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from requirements import or_skip

from benchmarks.support import hosts


def unlabelled(text: str) -> str:
    """What was printed, without hosts and ranks at the beginning of lines."""
    return re.sub(r"(?m)^\[[^\]]*:\d+\] ", "", text)


def network_of_hosts(
    count: int, folder: Path, names: Sequence[str] = ()
) -> AbstractContextManager[list[hosts.Host]]:
    """Some hosts on one network, which this process can reach, too.

    Args:
        count: Number of hosts.
        folder: For their files.
        names: Of the hosts; default: host1, host2, …
    """
    return or_skip(hosts.network_of_hosts(count, folder, names))
