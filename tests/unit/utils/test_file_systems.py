"""Which file systems are shared by hosts, and addresses of SQLite databases in folders of any name."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from runner.utils.file_systems import network_file_system, sqlite_path, sqlite_uri

Mount = namedtuple("Mount", "mountpoint fstype")


@pytest.mark.parametrize(
    "folder", ["plain", "two words", "what?", "a#b?c", "run%20a", "100%", "a&b=c;d", "é"]
)
def test_the_address_of_a_database_leads_to_its_file(folder: str) -> None:
    path = Path("/data") / folder / "mlflow.db"
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    assert (make_url(uri).database, make_url(uri).query) == (str(path), {}), "what SQLAlchemy opens"


def test_options_of_an_address_are_no_part_of_the_path() -> None:
    assert sqlite_path("sqlite:///x.db?timeout=60") == Path("x.db")
    assert sqlite_path("sqlite:////data/x.db?timeout=60&uri=true") == Path("/data/x.db")


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph")),
        *((kind, True) for kind in ("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "fuseblk", "zfs")),
        ("fuse.fuse-overlayfs", False),  # the root of a container without root rights
    ],
)
def test_network_file_systems_are_recognized(
    monkeypatch: pytest.MonkeyPatch, kind: str, is_network: bool
) -> None:
    mounts = [Mount("/", "ext4"), Mount("/home", kind), Mount("/home/me/local", "ext4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert network_file_system(Path("/home/me/mlruns")) == (kind if is_network else None)
    assert network_file_system(Path("/home/me/local/mlruns")) is None
    assert network_file_system(Path("/homework")) is None


def test_what_an_automounter_mounted_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [Mount("/", "ext4"), Mount("/home", "autofs"), Mount("/home", "nfs4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert network_file_system(Path("/home/me/mlruns")) == "nfs4"
