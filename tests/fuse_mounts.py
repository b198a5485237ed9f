"""One folder as several clients of a network file system see it: mounts with caches and locks of their own.

As on NFS without locks, a client remembers for a while which files do not exist, their dates and, with mergerfs, the
list of a folder's files; a lock on one client does not reach the others. Needs root, /dev/fuse, and bindfs or mergerfs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMANDS = {
    "bindfs": ("bindfs", "-o", "attr_timeout=10,entry_timeout=60,negative_timeout=60"),
    "mergerfs": (
        *("mergerfs", "-o"),
        "cache.attr=10,cache.entry=60,cache.negative_entry=60,cache.readdir=true,inodecalc=path-hash,minfreespace=0",
    ),
}
"""Seconds that a client remembers dates, names, and that a name does not exist."""


@contextmanager
def clients_of(folder: Path, count: int, program: str = "") -> Iterator[list[Path]]:
    """Mounts of a folder beside it. Skips the test where there can be none.

    Args:
        folder: Holds the files; made here.
        count: Number of mounts.
        program: bindfs or mergerfs; empty: one that is installed.
    """
    found = [name for name in ([program] if program else COMMANDS) if shutil.which(name)]
    if not found:
        pytest.skip(f"{program or 'bindfs or mergerfs'} is not installed")
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("file systems in user space need root and /dev/fuse")
    folder.mkdir(parents=True)
    mounted: list[Path] = []
    try:
        for number in range(count):
            client = folder.with_name(f"{folder.name} of client {number + 1}")
            client.mkdir()
            done = subprocess.run([*COMMANDS[found[-1]], folder, client], capture_output=True, text=True)
            if done.returncode or not os.path.ismount(client):
                pytest.skip(f"{found[-1]} cannot mount here: {done.stderr.strip()}")
            mounted.append(client)
        yield mounted
    finally:
        for client in mounted:
            subprocess.run(["umount", "-l", client], check=True)
