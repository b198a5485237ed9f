"""Files are written completely or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.utils import atomic_files


def test_a_file_is_replaced_at_the_end_and_no_other_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    atomic_files.write_text(path, "one")
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
        assert temporary.parent == path.parent
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, old: str | None, failure: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)

    def write_half() -> None:
        with atomic_files.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert [each.read_text() for each in tmp_path.iterdir()] == ([old] if old is not None else [])


def test_a_replaced_file_has_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    atomic_files.write_text(tmp_path / "replaced", "text")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "replaced")]
    assert modes[0] == modes[1]


def test_free_bytes_of_a_missing_folder_are_those_of_its_disk(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = atomic_files.free_bytes(tmp_path / "not" / "yet")
    assert abs(free - status.f_bavail * status.f_frsize) < 2**30
    assert free > 0


def test_tensors_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    """A group shares records and cached features."""
    with atomic_files.atomic_write(tmp_path / "weights.safetensors") as temporary:
        save_file({"weight": torch.ones(1)}, temporary)
    (tmp_path / "ordinary").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
