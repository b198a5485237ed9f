"""An interrupted fit goes on as if nothing had happened: the same history and parameters, to the last bit."""

from __future__ import annotations

import errno
import functools
import gc
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, Make, Recorder, rows_and_labels, small_model
from interrupting import Fitted, Stop, part_of_a_fit, plain
from torch import Tensor

import runner.training.loop
from runner.config.schema import CheckpointsConfig
from runner.config.tree import as_tree
from runner.models.transfer_model import TransferModel
from runner.training import run, snapshot
from runner.training.resume import ResumePoint
from runner.training.snapshot import Snapshot
from runner.training.snapshot_policy import Keeping
from runner.utils.errors import DivergedError, UserError
from runner.utils.signals import Interrupted

EPOCHS, BATCHES = 3, 3
"""Of a small fit: batches of 8, 8 and 4."""
BASE = ("--train.epochs", str(EPOCHS), "--train.batch_size", "8", "--optim.lr", "0.01")
PLACES = [
    *(Stop("train", number) for number in range(1, EPOCHS * BATCHES + 1)),
    *(Stop(where, number) for where in ("val", "epoch") for number in range(1, EPOCHS + 1)),
]
"""Every place at which a small fit can be interrupted."""
FITS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "adam, report": (["--schedule.kind", "report", "--schedule.reductions", "9"], {}),
    "adamw, cosine, clipped": (
        [*("--optim.name", "adamw", "--schedule.kind", "cosine"), *("--train.clip", "0.5")],
        {},
    ),
    "sgd, onecycle": (["--optim.name", "sgd", "--schedule.kind", "onecycle"], {}),
    "sgd, constant, weighted, balanced": (
        [
            *("--optim.name", "sgd", "--schedule.kind", "constant", "--train.class_weights", "true"),
            *("--train.sampling", "balanced", "--train.label_smoothing", "0.1"),
        ],
        {},
    ),
    "accumulated, groups": (["--train.accumulate", "2", "--optim.groups", '{"classifier.4": 0.001}'], {}),
    "report head, skipping": (["--train.nonfinite", "skip"], {"head": "report"}),
    "stops early": (["--schedule.kind", "report", "--schedule.reductions", "1"], {}),
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Collecting garbage takes longer than a small fit; once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.gc.collect", lambda *_: 0)
        yield
    gc.collect()


@pytest.fixture
def data() -> tuple[list[Tensor], list[int]]:
    """Two views, which epochs see in turn, and labels that a line can tell."""
    values, labels = rows_and_labels()
    return [values, values + 0.1], labels


def images(count: int = 12) -> tuple[list[Tensor], list[int]]:
    """Pictures, for networks that train as a whole."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return [values, values.flip(3)], [place % 3 for place in range(count)]


Again = Callable[..., Fitted]
"""`again(folder=…, stop=…)`: the fit of a test, from the beginning or from what is in a folder."""


def again_of(
    make: Make,
    accelerator: Accelerator,
    data: tuple[list[Tensor], list[int]],
    words: Sequence[str],
    network: dict[str, Any],
) -> Again:
    built = small_model(**network)
    first = {name: value.clone() for name, value in built.trainable_state().items()}
    parsed = functools.cache(make)

    def again(*more: str, **given: Any) -> Fitted:
        built.load_state_dict(first, strict=False)  # building it takes longer than a fit
        built.zero_grad()
        return part_of_a_fit(parsed(*BASE, *words, *more), built, *data, accelerator, **given)

    return again


@pytest.fixture
def again(make: Make, accelerator: Accelerator, data: tuple[list[Tensor], list[int]]) -> Again:
    return again_of(make, accelerator, data, [], {})


# Every place, every kind of fit


@pytest.mark.parametrize("name", FITS)
def test_goes_on_from_every_place(
    make: Make, accelerator: Accelerator, data: tuple[list[Tensor], list[int]], tmp_path: Path, name: str
) -> None:
    words, network = FITS[name]
    if network:  # the report's head begins with layers of 4096 numbers
        data = [values.repeat(1, 8) for values in data[0]], data[1]
    again = again_of(make, accelerator, data, words, network)
    whole = again()
    if name == "adam, report":
        assert whole.history[1].reduced, "the schedule's state matters"
    reached, parts = 0, 2 if name.startswith("accumulated") else 1
    for number, stop in enumerate(PLACES):
        folder = tmp_path / str(number)
        part = again(folder=folder, stop=stop)
        if part.raised is None:  # it had stopped early
            assert name == "stops early"
            part.agrees(whole)
            continue
        assert isinstance(part.raised, Interrupted)
        reached += 1
        kept, _ = snapshot.newest(folder)
        assert kept is not None
        epoch, batch = divmod((stop.number - 1) // parts, BATCHES)
        places = {
            "train": (epoch, batch + 1),  # the step is done
            "val": (stop.number - 1, BATCHES),
            "epoch": (stop.number, 0),
        }
        assert (kept.epoch, kept.batch) == places[stop.where], stop
        going_on = again(folder=folder)
        assert going_on.raised is None
        going_on.agrees(whole)
    assert reached >= (3 if name == "stops early" else len(PLACES))


def test_a_network_that_trains_as_a_whole_goes_on(
    make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    again = again_of(make, accelerator, images(), ["--train.epochs", "2"], {"trainable": "all"})
    whole = again()
    for number, stop in enumerate([Stop("train", 1), Stop("val", 1), Stop("epoch", 1), Stop("train", 4)]):
        folder = tmp_path / str(number)
        assert isinstance(again(folder=folder, stop=stop).raised, Interrupted)
        again(folder=folder).agrees(whole)


def test_goes_on_after_every_step(again: Again, tmp_path: Path) -> None:
    whole, parts = again(), 0
    while isinstance((part := again(folder=tmp_path, stop=Stop("train", 1))).raised, Interrupted):
        parts += 1
    assert parts == EPOCHS * BATCHES
    part.agrees(whole)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 9])
def test_goes_on_after_an_unreadable_image(
    again: Again, tmp_path: Path, accumulate: int, number: int
) -> None:
    words = ("--train.accumulate", str(accumulate))
    every = CheckpointsConfig(minutes=0)
    stopped = again(*words, folder=tmp_path, stop=Stop("train", number, "error"), settings=every)
    assert isinstance(stopped.raised, UserError)
    kept, _ = snapshot.newest(tmp_path)
    steps = (number - 1) // accumulate  # an image is fetched before its part of a batch is computed
    assert (kept.step if kept else 0) == steps
    again(*words, folder=tmp_path).agrees(again(*words))


@pytest.mark.parametrize("how", ["signal", "error"])
@pytest.mark.parametrize("number", range(1, EPOCHS + 1))
def test_goes_on_after_an_error_of_who_hears_of_epochs(
    again: Again, tmp_path: Path, how: str, number: int
) -> None:
    stopped = again(folder=tmp_path, stop=Stop("epoch", number, how))
    assert isinstance(stopped.raised, Interrupted if how == "signal" else UserError)
    again(folder=tmp_path).agrees(again())


def test_taking_snapshots_changes_nothing(again: Again, tmp_path: Path) -> None:
    again(folder=tmp_path, settings=CheckpointsConfig(minutes=0)).agrees(again())


def test_a_fit_that_is_over_stays_over(again: Again, tmp_path: Path) -> None:
    whole = again(folder=tmp_path)
    again(folder=tmp_path, stop=Stop("train", 1)).agrees(whole)


# What is there


@pytest.mark.parametrize(
    ("settings", "there"),
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
    again: Again, tmp_path: Path, settings: CheckpointsConfig, there: list[str]
) -> None:
    again(folder=tmp_path, settings=settings)
    assert [path.stem for path in snapshot.paths(tmp_path)] == there
    assert len(list(tmp_path.glob("[!p]*"))) == len(there), "nothing half written stays"


def test_time_decides_which_snapshots_there_are(
    again: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes a second; a snapshot is taken ten seconds and more after the last one."""
    clock, taken = iter(range(10**6)), []
    monkeypatch.setattr("runner.training.snapshot_policy.time.monotonic", lambda: float(next(clock)))
    keep = Keeping.keep

    def noted(self: Keeping, kept: Snapshot) -> None:
        keep(self, kept)
        taken.append((kept.epoch, kept.batch, self._wait))

    monkeypatch.setattr(Keeping, "keep", noted)
    again("--train.epochs", "60", folder=tmp_path, settings=CheckpointsConfig())
    assert 2 < len(taken) < 60 * BATCHES / 2
    assert all(wait >= 100 for _, _, wait in taken), "a second and more each: a hundredth of the time"


def test_frozen_layers_are_not_in_a_snapshot(again: Again, tmp_path: Path) -> None:
    again(folder=tmp_path)
    kept, _ = snapshot.newest(tmp_path)
    assert kept is not None
    learned, frozen = small_model().parts()
    assert kept.part("learned").keys() == learned.keys()
    assert not any(name.split("/", 1)[1] in frozen for name in kept.tensors if "/" in name)
    size = sum(value.nbytes for value in learned.values())
    assert snapshot.paths(tmp_path)[0].stat().st_size < 3 * size + 20_000, "Adam has two moments"


# Damage


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
def test_a_damaged_snapshot_has_a_predecessor(again: Again, tmp_path: Path, how: str) -> None:
    every = CheckpointsConfig(minutes=0)
    again(folder=tmp_path, stop=Stop("train", 5), settings=every)
    newest, before = snapshot.paths(tmp_path)
    damage(newest, how)
    kept, (fault,) = snapshot.newest(tmp_path)
    assert kept is not None
    assert (kept.epoch, kept.batch) == (1, 1)
    assert str(newest) in fault
    assert "damaged" in fault
    newest.unlink()
    again(folder=tmp_path).agrees(again())
    damage(before, how)
    assert snapshot.newest(before.parent)[0] is not None, "the fit that went on wrote others"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_snapshot_takes_nobodys_place(again: Again, tmp_path: Path, keep: int) -> None:
    """It lies further than all that the fit that goes on writes for a while."""
    again(folder=tmp_path, stop=Stop("train", 8), settings=CheckpointsConfig(minutes=0, keep=9))
    for path in snapshot.paths(tmp_path)[:3]:
        damage(path, "cut")
    every = CheckpointsConfig(minutes=0, keep=keep)
    for step in (7, 8):
        part = again(folder=tmp_path, stop=Stop("train", 1), settings=every, damaged=step == 7)
        assert isinstance(part.raised, Interrupted)
        kept, faults = snapshot.newest(tmp_path)
        assert kept is not None
        assert (kept.step, faults) == (step, [])
        assert len(snapshot.paths(tmp_path)) <= keep
    again(folder=tmp_path).agrees(again())


def test_every_byte_counts(again: Again, tmp_path: Path) -> None:
    again("--train.epochs", "1", folder=tmp_path)
    (path,) = snapshot.paths(tmp_path)
    whole = path.read_bytes()
    for place in [*range(60), *range(60, len(whole), len(whole) // 200)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        kept, faults = snapshot.newest(tmp_path)
        assert (kept is None) == bool(faults), place
        if kept is not None:  # a byte of padding, or of the format's own table
            assert kept.tensors.keys() == snapshot.load(path).tensors.keys()
    path.write_bytes(whole)
    assert snapshot.newest(tmp_path)[1] == []


def test_a_snapshot_of_another_version_is_refused_in_a_sentence(again: Again, tmp_path: Path) -> None:
    again("--train.epochs", "1", folder=tmp_path)
    kept, _ = snapshot.newest(tmp_path)
    assert kept is not None
    for name in ("optimizer", "rule", "shares", "history", "seconds", "over", "skipped"):
        about = {key: value for key, value in kept.about.items() if key != name}
        Snapshot(kept.epoch, kept.batch, kept.step, kept.tensors, about).save(tmp_path, 1)
        part = again(folder=tmp_path)
        assert isinstance(part.raised, UserError), name
        assert "begin a new run" in str(part.raised)


def test_other_layers_are_refused(
    make: Make, accelerator: Accelerator, data: tuple[list[Tensor], list[int]], again: Again, tmp_path: Path
) -> None:
    again("--train.epochs", "1", folder=tmp_path)
    other = again_of(make, accelerator, data, [], {"width": 8})(folder=tmp_path)
    assert isinstance(other.raised, UserError)
    assert "layers that train" in str(other.raised)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_last_snapshot(
    again: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write, count = snapshot.write, iter(range(100))

    def refusing(tensors: Any, aside: Path, *given: Any) -> None:
        if next(count) >= 4:
            aside.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        write(tensors, aside, *given)

    monkeypatch.setattr(snapshot, "write", refusing)
    stopped = again(folder=tmp_path, settings=CheckpointsConfig(minutes=0))
    assert isinstance(stopped.raised, OSError)
    assert stopped.raised.errno == number
    assert [path.name for path in sorted(tmp_path.glob("[!p]*"), reverse=True)] == [
        "000001-00000000.safetensors",
        "000000-00000003.safetensors",
    ], "the last ones, and nothing half written"
    monkeypatch.undo()
    again(folder=tmp_path).agrees(again())


# What is no number


def poisoned(data: tuple[list[Tensor], list[int]], place: int, value: float) -> list[Tensor]:
    """One image's row is no number, in the first view."""
    first, *others = data[0]
    first = first.clone()
    first[place, 0] = value
    return [first, *others]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_found_at_its_step(
    again: Again,
    make: Make,
    accelerator: Accelerator,
    data: tuple[list[Tensor], list[int]],
    tmp_path: Path,
    value: float,
) -> None:
    from runner.training.step import epoch_batches

    order = list(epoch_batches(torch.tensor(data[1]), 8, "shuffled", 0, 0))
    bad = int(order[1][0])
    other = again_of(make, accelerator, (poisoned(data, bad, value), data[1]), [], {})
    stopped = other(folder=tmp_path, settings=CheckpointsConfig(minutes=0))
    assert isinstance(stopped.raised, DivergedError)
    assert "at step 1 (epoch 1, batch 2 of 3)" in str(stopped.raised)
    assert "optim.lr" in str(stopped.raised)
    kept, _ = snapshot.newest(tmp_path)
    assert kept is not None
    assert (kept.step, kept.finite) == (1, True)


def test_an_epoch_of_which_nothing_is_left_is_no_epoch(
    make: Make, accelerator: Accelerator, data: tuple[list[Tensor], list[int]]
) -> None:
    values = [torch.full_like(each, math.nan) for each in data[0]]
    stopped = again_of(make, accelerator, (values, data[1]), ["--train.nonfinite", "skip"], {})()
    assert isinstance(stopped.raised, DivergedError)
    assert "Every step of epoch 1 was left out" in str(stopped.raised)


def test_steps_that_are_no_numbers_can_be_left_out(
    make: Make, accelerator: Accelerator, data: tuple[list[Tensor], list[int]], tmp_path: Path
) -> None:
    values = poisoned(data, 3, math.nan)
    words = ["--train.nonfinite", "skip"]
    again = again_of(make, accelerator, ([data[0][1], values[0]], data[1]), words, {})

    whole = again()
    assert whole.raised is None
    assert [epoch.skipped for epoch in whole.history] == [0, 1, 1]
    assert [epoch.metrics().get("train/skipped") for epoch in whole.history] == [None, 1, 1]
    assert all(bool(torch.isfinite(value).all()) for value in whole.learned.values())
    assert all(math.isfinite(epoch.train_loss) for epoch in whole.history)
    for number in range(4, 8):
        folder = tmp_path / str(number)
        again(folder=folder, stop=Stop("train", number))
        again(folder=folder).agrees(whole)


# Whole runs, their records in a folder


def test_a_run_goes_on_to_the_same_result(
    make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.training.curves.curves", lambda *_: None)
    experiment = make("--tracking.gallery", "2", "--checkpoints.minutes", "0")
    first = Recorder(tmp_path / "whole")
    whole = run.train(experiment, accelerator, first, QUIET)
    for step in (1, 4, 9):
        place = Recorder(tmp_path / f"stopped {step}")
        count, between = iter(range(1, 100)), runner.training.loop._Fitting._between

        def stopping(
            self: Any, *given: Any, count: Any = count, step: int = step, between: Any = between
        ) -> None:
            between(self, *given)
            if next(count) == step:
                raise Interrupted(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(runner.training.loop._Fitting, "_between", stopping)
            with pytest.raises(Interrupted):
                run.train(experiment, accelerator, place, QUIET)
        kept, _ = snapshot.newest(place.folder / "state")
        assert kept is not None
        assert kept.step == step
        told = json.loads((place.folder / "state" / "run.json").read_text())
        assert told["requested"] == json.loads(json.dumps(as_tree(experiment)))
        start = ResumePoint(as_tree(experiment), "0123456789", "small", kept)
        result = run.train(experiment, accelerator, place, QUIET, start)
        assert plain(result.history) == plain(whole.history)
        assert (result.best, result.last) == (whole.best, whole.last)
        loose = ("epoch_seconds", "images_per_second", "features/", "checkpoints/")
        steady = [point for point in first.points if not point[0].startswith(loose)]
        # A recorder does not know what was recorded before; a tracker leaves that out.
        assert sorted({point for point in place.points if not point[0].startswith(loose)}) == sorted(steady)


def _out_of_memory_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("want", "said"),
    [
        (lambda: np.ones(10**15), "Unable to allocate"),
        (lambda: torch.ones(10**14), "DefaultCPUAllocator"),
        (_out_of_memory_on_a_gpu, "2.00 GiB"),
    ],
    ids=["of numpy", "of torch", "of CUDA"],
)
def test_want_of_memory_is_told_in_a_sentence(
    make: Make,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    want: Callable[[], object],
    said: str,
) -> None:
    monkeypatch.setattr("runner.training.step.Trainer._part", lambda *_: want())
    with pytest.raises(UserError) as told:
        run.train(make(), accelerator, Recorder(tmp_path / "records"), QUIET)
    assert said in str(told.value)
    assert "lower train.batch_size (8)" in str(told.value)
    assert "train.accumulate (1)" in str(told.value)


def test_another_fault_stays_what_it_is(
    make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("runner.training.step.Trainer._part", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run.train(make(), accelerator, Recorder(tmp_path / "records"), QUIET)


# A branch


def test_a_branch_begins_its_epoch_again_with_its_own_settings(again: Again, tmp_path: Path) -> None:
    constant = ("--schedule.kind", "constant")
    whole = again(*constant)
    again(*constant, folder=tmp_path, stop=Stop("train", 5))
    same = again(*constant, folder=tmp_path, settings=CheckpointsConfig(keep=9), changed=True)
    assert same.raised is None
    assert plain(same.history)[:1] == plain(whole.history)[:1]
    assert len(same.history) == EPOCHS
    assert plain(same.history)[1] != plain(whole.history)[1], "two batches count twice"


@pytest.mark.parametrize("kind", ["report", "cosine", "onecycle", "constant"])
def test_a_branch_takes_its_own_learning_rate(again: Again, tmp_path: Path, kind: str) -> None:
    again("--schedule.kind", "constant", folder=tmp_path, stop=Stop("epoch", 1))
    words = ("--schedule.kind", kind, "--optim.lr", "0.002", "--optim.name", "sgd")
    branch, whole = again(*words, folder=tmp_path, changed=True), again(*words)
    assert branch.raised is None
    assert branch.history[1].lr == pytest.approx(whole.history[1].lr)



def test_a_network_is_not_needed_to_look_for_runs() -> None:
    """What refuses is asked before torch is there: it takes seconds to load."""
    import subprocess
    import sys

    code = "import sys, runner.unfinished; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_networks_are_alike(again: Again) -> None:
    """The tests here compare bits: two fits of the same settings must have the same."""
    again().agrees(again())
    assert isinstance(small_model(), TransferModel)
