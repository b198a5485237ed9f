"""Snapshots: when they are written, what they hold, and what happens to damaged ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import small_model
from interrupted_fits import BATCHES, EVERY_STEP, NewTraining, Stop, Training

from runner.config.schema import CheckpointsConfig
from runner.training import snapshot
from runner.training.callbacks.snapshot import SnapshotCallback
from runner.training.fit_state import FitState
from runner.training.snapshot import Snapshot, load_newest, paths
from runner.utils.errors import UserError
from runner.utils.signals import Interrupted


def newest(folder: Path) -> Snapshot:
    """The newest snapshot; the test fails if any is damaged."""
    found, problems = load_newest(folder)
    assert problems == []
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (CheckpointsConfig(minutes="never"), ["000003-00000000"]),
        (CheckpointsConfig(minutes="never", epochs=1, keep=5), [f"{n:06}-00000000" for n in (3, 2, 1)]),
        (CheckpointsConfig(minutes="never", epochs=2, keep=5), ["000003-00000000", "000002-00000000"]),
        (CheckpointsConfig(minutes=0, keep=1), ["000003-00000000"]),
        (CheckpointsConfig(minutes=0, keep=3), ["000003-00000000", "000002-00000003", "000002-00000002"]),
        (CheckpointsConfig(minutes=60, keep=3), ["000003-00000000"]),
        (CheckpointsConfig(keep=3), ["000003-00000000"]),
    ],
    ids=str,
)
def test_settings_decide_which_snapshots_there_are(
    training: Training, tmp_path: Path, settings: CheckpointsConfig, expected: list[str]
) -> None:
    training.run(tmp_path, settings=settings)
    assert [path.stem for path in paths(tmp_path)] == expected
    assert len(list(tmp_path.glob("[!p]*"))) == len(expected), "no partial file is left"


def test_time_decides_which_snapshots_there_are(
    new_training: NewTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes a second; the next snapshot is due after ten seconds or more."""
    clock, intervals = iter(range(10**6)), []
    monkeypatch.setattr("runner.training.callbacks.snapshot.time.monotonic", lambda: float(next(clock)))
    write = SnapshotCallback.write

    def noted(self: SnapshotCallback, state: FitState) -> None:
        write(self, state)
        intervals.append(self._auto_interval)

    monkeypatch.setattr(SnapshotCallback, "write", noted)
    new_training("--train.epochs", "60").run(tmp_path, settings=CheckpointsConfig())
    assert 2 < len(intervals) < 60 * BATCHES / 2
    assert all(seconds >= 100 for seconds in intervals), "writing takes a second: a hundredth of the time"


def test_frozen_layers_are_not_in_a_snapshot(training: Training, tmp_path: Path) -> None:
    training.run(tmp_path)
    saved, model = newest(tmp_path), small_model()
    trainable, frozen = model.trainable_state(), model.frozen_state()
    assert saved.tensors_under("trainable").keys() == trainable.keys()
    assert not any(name.split("/", 1)[1] in frozen for name in saved.tensors if "/" in name)
    size = sum(value.nbytes for value in trainable.values())
    assert paths(tmp_path)[0].stat().st_size < 3 * size + 20_000, "Adam has two moments per parameter"


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        content[-1 if how == "last byte" else len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "middle", "last byte"])
def test_the_snapshot_before_a_damaged_one_is_used(training: Training, tmp_path: Path, how: str) -> None:
    training.run(tmp_path, Stop("train", 5), EVERY_STEP)
    last, before = paths(tmp_path)
    damage(last, how)
    found, (problem,) = load_newest(tmp_path)
    assert found is not None
    assert (found.epoch, found.batch) == (1, 1)
    assert f"{last} is damaged" in problem
    last.unlink()
    training.run(tmp_path).assert_equal(training.run())
    damage(before, how)
    assert load_newest(tmp_path)[0] is not None, "the resumed training wrote others"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_snapshot_does_not_count(training: Training, tmp_path: Path, keep: int) -> None:
    """Damaged snapshots are of later steps than those that the resumed training writes at first."""
    training.run(tmp_path, Stop("train", 8), CheckpointsConfig(minutes=0, keep=9))
    for path in paths(tmp_path)[:3]:
        damage(path, "cut")
    settings = CheckpointsConfig(minutes=0, keep=keep)
    for step in (7, 8):
        part = training.run(tmp_path, Stop("train", 1), settings, damaged=step == 7)
        assert isinstance(part.error, Interrupted)
        assert newest(tmp_path).step == step
        assert len(paths(tmp_path)) <= keep
    training.run(tmp_path).assert_equal(training.run())


def test_a_changed_byte_is_noticed(new_training: NewTraining, tmp_path: Path) -> None:
    new_training("--train.epochs", "1").run(tmp_path)
    (path,) = paths(tmp_path)
    content = path.read_bytes()
    for place in [*range(60), *range(60, len(content), len(content) // 200)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found, problems = load_newest(tmp_path)
        assert (found is None) == bool(problems), place
        if found is not None:  # a byte of padding, or of the format's own header
            assert found.tensors.keys() == snapshot.load(path).tensors.keys()
    path.write_bytes(content)
    assert load_newest(tmp_path)[1] == []


def test_a_snapshot_of_another_version_is_refused(new_training: NewTraining, tmp_path: Path) -> None:
    training = new_training("--train.epochs", "1")
    training.run(tmp_path)
    saved = newest(tmp_path)
    for name in (
        *("optimizer", "schedule", "sums", "history"),
        *("epoch_seconds", "stopped_early", "skipped_steps"),
    ):
        values = {key: value for key, value in saved.values.items() if key != name}
        Snapshot(saved.epoch, saved.batch, saved.step, saved.tensors, values).save(tmp_path, 1)
        error = training.run(tmp_path).error
        assert isinstance(error, UserError), name
        assert "start a new run" in str(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_last_snapshots(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save_tensors, count = snapshot.save_tensors, iter(range(100))

    def refusing(tensors: Any, path: Path, *args: Any) -> None:
        if next(count) >= 4:
            path.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        save_tensors(tensors, path, *args)

    monkeypatch.setattr(snapshot, "save_tensors", refusing)
    error = training.run(tmp_path, settings=EVERY_STEP).error
    assert isinstance(error, OSError)
    assert error.errno == number
    assert [path.name for path in sorted(tmp_path.glob("[!p]*"), reverse=True)] == [
        "000001-00000000.safetensors",
        "000000-00000003.safetensors",
    ], "the last ones, and no partial file"
    monkeypatch.undo()
    training.run(tmp_path).assert_equal(training.run())
