"""Which disk a file lies on, and the addresses of SQLite databases."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import psutil

SQLITE = "sqlite:///"
NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "gpfs", "ceph", "beegfs", "glusterfs"),
        *("orangefs", "pvfs2", "panfs", "wekafs", "gfs2", "ocfs2", "vboxsf"),
    }
)
LOCAL_FUSE = frozenset(
    f"fuse.{name}" for name in ("fuse-overlayfs", "mergerfs", "bindfs", "gocryptfs", "encfs", "lxcfs")
)
"""File systems in user space that keep their files on a local disk; of all others we cannot know."""


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that holds `path`; None on a local disk."""
    path = path.absolute()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    # Of two on one folder the later lies on top: an automounter's comes first.
    kind = max(reversed(mounts), key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    is_fuse = kind == "fuse" or kind.startswith("fuse.")
    is_network = kind in NETWORK_FILE_SYSTEMS or (is_fuse and kind not in LOCAL_FUSE)
    return kind if is_network else None


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite database: SQLAlchemy decodes %20, ends the path at ?, and shows # as %23."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    # With `sqlite:///` MLflow takes the encoded path for a path, and makes its folder.
    return (SQLITE if quoted == str(path) else "sqlite+pysqlite:///") + quoted


def is_sqlite(uri: str) -> bool:
    """Whether an address is that of a SQLite database."""
    scheme, found, _ = uri.partition(":///")
    return bool(found) and scheme.partition("+")[0] == "sqlite"


def absolute_uri(uri: str) -> str:
    """The address of a store; the file of a SQLite database is looked for from the working folder."""
    if not is_sqlite(uri) or sqlite_path(uri).is_absolute():
        return uri
    return f"{sqlite_uri(Path.cwd())}/{uri.partition(':///')[2]}"


def sqlite_path(uri: str) -> Path:
    """The file of a SQLite database with this address, whose options (`?timeout=60`) are left out."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))
