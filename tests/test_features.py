"""Features in runs: each image and view goes through the convolutions once, and the store changes no bit."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, TEST, TRAIN, VAL, InBfloat16, Make, Recorder, comparable
from torch import Tensor

from runner.config.schema import Experiment
from runner.features import extractor
from runner.features.cache import FeatureCache, _MappedFeatures
from runner.features.extractor import can_compile, worth_compiling
from runner.training import run, setup
from runner.training.loop import EpochResult
from runner.utils.console import Terminal
from runner.utils.errors import UserError, user_message

Train = Callable[..., Any]
TESTS = Path(__file__).resolve().parent
RUN = """
import json, os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from helpers import QUIET, Recorder, comparable
from runner import figures, prefix, run, store
from runner.settings import parse

store.FILE_SECONDS = 0.0
figures.curves = lambda *_: None
left = int(os.environ["DIES_AFTER"])
through = prefix.Prefix.through

def dying(self, values, stage):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return through(self, values, stage)

prefix.Prefix.through = dying
records = Recorder(Path(os.environ["RECORDS"]))
result = run.train(parse(sys.argv[1:])[0], Accelerator(cpu=True), records, QUIET)
misses = [value for name, _, value in records.points if name == "features/misses"]
print(json.dumps({"misses": misses, "history": comparable(result.history), "test": result.best.as_dict()}))
"""


def start(words: list[str], records: Path, dies_after: int = 1000) -> subprocess.Popen[str]:
    """A process that runs an experiment whole, and writes every chunk of rows at once."""
    environment = os.environ | {
        "DIES_AFTER": str(dies_after),
        "RECORDS": str(records),
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS])),
    }
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], env=environment, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Images that a run sent through the convolutions, and what came of it."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    told = json.loads(out)
    (misses,) = told.pop("misses")
    return misses, told


def told(result: run.RunResult) -> dict[str, Any]:
    """A result as such a process tells it."""
    return dict(
        json.loads(json.dumps({"history": comparable(result.history), "test": result.best.as_dict()}))
    )


def flip_a_bit(root: Path) -> None:
    """Damage the rows of every file of every store."""
    paths = list(root.rglob("*.safetensors"))
    assert paths
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


@contextmanager
def read_only(folder: Path, view: Path) -> Iterator[None]:
    """Mount `folder` at `view`, where nobody can write; skips where that takes more rights."""
    view.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "--bind", folder, view]).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", view], check=True)


def features_of(experiment: Experiment, accelerator: Accelerator, terminal: Terminal = QUIET) -> FeatureCache:
    return setup.prepare(experiment, accelerator, terminal).features


def missing(experiment: Experiment, accelerator: Accelerator) -> tuple[int, int]:
    """Images that would have to go through the convolutions: of the first training view, and of validation."""
    features = features_of(experiment, accelerator)
    return features.missing([("train", 0)]).images, features.missing([("val", -1)]).images


class TestOnce:
    def test_second_run_computes_nothing(self, make: Make, train: Train, through_prefix: list[int]) -> None:
        once, _ = train(make())
        assert sum(through_prefix) == 2 * TRAIN + VAL + TEST
        through_prefix.clear()
        again, records = train(make())
        assert sum(through_prefix) == 0
        assert comparable(once.history) == comparable(again.history)
        points = {name: value for name, _, value in records.points}
        assert points["features/hits"] == 3 * (TRAIN + VAL) + TEST
        assert points["features/misses"] == 0
        assert points["features/saved_seconds"] > 0
        assert points["features/store_mib"] > 0

    @pytest.mark.parametrize(("views", "shown"), [("clean", 1), ("2", 2), ("fresh", 3)])
    def test_views_are_computed_once_each(
        self, make: Make, train: Train, through_prefix: list[int], views: str, shown: int
    ) -> None:
        train(make("--augment.views", views, "--schedule.kind", "constant"))
        assert sum(through_prefix) == shown * TRAIN + VAL + TEST

    def test_a_run_that_stops_early_wastes_no_view(
        self, make: Make, train: Train, through_prefix: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.training.step.broadcast_object_list", lambda _: [(True, False)])
        train(make("--augment.views", "fresh"))
        assert sum(through_prefix) == TRAIN + VAL + TEST

    def test_without_the_store_every_epoch_computes(
        self, make: Make, train: Train, through_prefix: list[int], tmp_path: Path
    ) -> None:
        train(make("--features.store", "false", "--schedule.kind", "constant"))
        assert sum(through_prefix) == 3 * (TRAIN + VAL) + 2 * TEST
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    def test_epochs_show_their_views_in_turn(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features = features_of(make(), accelerator)
        first, second = (next(features.get("train", view).batches([range(TRAIN)])) for view in (0, 1))
        assert not torch.equal(first, second)
        seen: list[Tensor] = []

        def peek(*arguments: Any) -> list[EpochResult]:
            inputs = arguments[2]
            seen.extend(next(inputs.rows(epoch).batches([range(TRAIN)])) for epoch in range(4))
            raise UserError("seen enough")

        monkeypatch.setattr(run, "fit", peek)
        with pytest.raises(UserError, match="seen enough"):
            run.train(make(), accelerator, Recorder(Path(make().cache) / "records"), QUIET)
        assert [torch.equal(rows, first) for rows in seen] == [True, False, True, False]
        assert [torch.equal(rows, second) for rows in seen] == [False, True, False, True]

    def test_rows_serve_what_they_fit_and_nothing_else(self, make: Make, accelerator: Accelerator) -> None:
        first = features_of(make(), accelerator)
        first.get("train", 0)
        first.get("val", -1)
        for fits in (
            ("--seed.train", "7"),
            ("--train.batch_size", "4"),
            ("--model.width", "32"),
            ("--model.pool", "2"),
            ("--optim.lr", "0.5"),
            ("--augment.views", "fresh"),
        ):
            assert missing(make(*fits), accelerator) == (0, 0), fits
        for another in (
            ("--features.batch_size", "4"),
            ("--features.compile", "true"),
            ("--augment.interpolation", "bicubic"),
            ("--augment.resize", "40"),
            ("--model.normalize", "VGG11_Weights.DEFAULT"),
            ("--model.arch", "vgg13"),
            ("--model.pool", "2", "--augment.crop", "64", "--augment.resize", "64"),
        ):
            assert missing(make(*another), accelerator) == (TRAIN, VAL), another
        for other_training in (
            ("--seed.augment", "1"),
            ("--augment.rotation", "3"),
            ("--augment.flip", "0.9"),
        ):
            assert missing(make(*other_training), accelerator) == (TRAIN, 0), other_training
        in_bfloat16 = InBfloat16(accelerator)
        assert missing(make(), in_bfloat16) == (TRAIN, VAL)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "library",
        [
            "torch.__version__",
            "torchvision.__version__",
            "PIL.__version__",
            "runner.features.cache.FEATURES_VERSION",
        ],
    )
    def test_another_library_s_rows_are_others(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        features_of(make(), accelerator).get("val", -1)
        monkeypatch.setattr(library, "99.0")
        assert missing(make(), accelerator)[1] == VAL

    def test_another_weight_s_rows_are_others(self, make: Make, accelerator: Accelerator) -> None:
        features_of(make(), accelerator).get("val", -1)
        features = features_of(make(), accelerator)
        assert features.missing([("val", -1)]).features == 0
        nudged = features_of(make(), accelerator)
        bias = nudged.extractor.model.get_parameter("features.18.bias")
        bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(1.0))
        assert nudged.missing([("val", -1)]).images == VAL

    def test_another_head_takes_the_convolutions_rows(
        self, make: Make, train: Train, through_prefix: list[int]
    ) -> None:
        words = ("--augment.crop", "64", "--augment.resize", "64")
        train(make(*words))
        through_prefix.clear()
        shared, _ = train(make(*words, "--model.pool", "2"))
        assert sum(through_prefix) == 0
        alone, _ = train(make(*words, "--model.pool", "2", "--features.store", "false"))
        assert comparable(shared.history) == comparable(alone.history)

    def test_rows_follow_an_image_into_another_split(self, make: Make, accelerator: Accelerator) -> None:
        words = ("--model.normalize", "VGG11_Weights.DEFAULT")
        splits = [("train", -1), ("val", -1), ("test", -1)]
        features = features_of(make(*words), accelerator)
        for split, view in splits:
            features.get(split, view)
        other = features_of(make(*words, "--seed.split", "5"), accelerator)
        assert other.manifest.digest != features.manifest.digest
        assert other.missing(splits).images == 0

    def test_another_image_behind_the_same_path(
        self, make: Make, accelerator: Accelerator, pictures: Path
    ) -> None:
        words = ("--model.normalize", "VGG11_Weights.DEFAULT")
        features = features_of(make(*words), accelerator)
        entries = sorted(features.manifest.entries, key=lambda each: (each.label, each.size))
        other, entry = next(
            (smaller, larger)
            for smaller, larger in itertools.pairwise(entries)
            if smaller.label == larger.label and larger.split == "val"
        )
        place = features.manifest.select("val").index(entry)
        before = next(features.get("val", -1).batches([[place]]))
        path = features.manifest.root / entry.path
        stamp = path.stat()
        path.write_bytes((features.manifest.root / other.path).read_bytes().ljust(entry.size, b"\0"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
        again = features_of(make(*words), accelerator)
        assert again.manifest.select("val")[place].path == entry.path
        assert again.missing([("val", -1)]).images == 1
        after = next(again.get("val", -1).batches([[place]]))
        assert not torch.equal(after, before)
        alone = features_of(make(*words, "--features.store", "false"), accelerator)
        assert torch.equal(after, next(alone.get("val", -1).batches([[place]])))

    def test_image_replaced_since_it_was_verified_is_told(self, make: Make, accelerator: Accelerator) -> None:
        features = features_of(make(), accelerator)
        first, second, *_ = (features.manifest.root / each.path for each in features.manifest.select("val"))
        second.write_bytes(first.read_bytes())
        with pytest.raises(UserError, match=f"{second} has changed since it was verified"):
            features.get("val", -1)
        assert features.missing([("val", -1)]).images == VAL


class TestHeldOrMapped:
    def test_map_gives_the_same_run(self, make: Make, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        held, _ = train(make())
        gathered: list[int] = []
        batches = _MappedFeatures.batches
        monkeypatch.setattr(
            _MappedFeatures, "batches", lambda self, wanted: gathered.append(1) or batches(self, wanted)
        )
        mapped, _ = train(make("--features.memory", "0.000001"))
        assert gathered
        assert comparable(held.history) == comparable(mapped.history)
        assert (held.best, held.last) == (mapped.best, mapped.last)

    def test_memory_is_bounded(self, make: Make, accelerator: Accelerator) -> None:
        row = 512 * 4 / 2**30
        features = features_of(make("--features.memory", str(row * (TRAIN + 1))), accelerator)
        for view in (0, 1, 2):
            features.get("train", view)
            assert len(features._memory) == 1
        assert [place[1:] for place in features._memory] == [("train", 2)]


class TestFaults:
    @pytest.mark.parametrize("kept", [0.5, 1.0])
    def test_damaged_file_is_computed_again(
        self,
        make: Make,
        train: Train,
        through_prefix: list[int],
        tmp_path: Path,
        kept: float,
        monkeypatch: pytest.MonkeyPatch,
        accelerator: Accelerator,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = ("--augment.views", "1", "--train.epochs", "1")
        once, _ = train(make(*words))
        through_prefix.clear()
        flip_a_bit(tmp_path / "cache" / "features")
        for path in (tmp_path / "cache" / "features").rglob("*.safetensors"):
            os.truncate(path, int(path.stat().st_size * kept))
        again = run.train(make(*words), accelerator, Recorder(tmp_path / "again"), Terminal())
        assert "is damaged; computing its rows again" in capsys.readouterr().out
        assert sum(through_prefix) == TRAIN + VAL + TEST
        assert comparable(once.history) == comparable(again.history)
        assert (once.best, once.last) == (again.best, again.last)

    def test_damaged_file_that_cannot_be_removed_is_passed_over(
        self, make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features = features_of(make(), accelerator)
        whole = next(features.get("val", -1).batches([range(VAL)]))
        flip_a_bit(tmp_path / "cache" / "features")
        unlink, notes = Path.unlink, []

        def refuse(self: Path, missing_ok: bool = False) -> None:
            if self.suffix == ".safetensors":
                raise PermissionError(13, "Permission denied", str(self))
            unlink(self, missing_ok)

        def note(_: Terminal, text: str) -> None:
            notes.append(text)
            assert len(notes) < 10, "endless"

        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(Terminal, "warn", note)
        again = features_of(make(), accelerator)
        assert torch.equal(next(again.get("val", -1).batches([range(VAL)])), whole)
        assert again.stats.misses == VAL

    def test_full_disk_and_cap_are_told_before_anything_is_computed(
        self, make: Make, train: Train, through_prefix: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"features need .*features\.cap is 1"):
            train(make("--features.cap", "0.0000001"))
        monkeypatch.setattr("runner.features.eviction.free_bytes", lambda _: 1000)
        with pytest.raises(UserError, match=r"features need .*1000 B left.*features\.store"):
            train(make())
        assert not through_prefix

    def test_read_only_store_serves_and_says_what_it_lacks(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features_of(make(), accelerator).get("val", -1)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", "features")

        monkeypatch.setattr(os, "utime", refuse)
        monkeypatch.setattr("runner.features.shard_store.write_text", refuse)
        monkeypatch.setattr("runner.features.shard_store.replacing", refuse)
        features = features_of(make(), accelerator)
        assert len(next(features.get("val", -1).batches([range(VAL)]))) == VAL
        with pytest.raises(PermissionError):
            features.get("train", 0)

    def test_read_only_file_system(self, make: Make, train: Train, tmp_path: Path) -> None:
        words = ("--train.epochs", "1")
        once, _ = train(make(*words))
        with read_only(tmp_path / "cache", tmp_path / "read-only"):
            elsewhere = ("--cache", str(tmp_path / "read-only"))
            again, _ = train(make(*words, *elsewhere))
            assert told(again) == told(once)
            for more in (("--augment.views", "2", "--train.epochs", "2"), ("--features.batch_size", "4")):
                with pytest.raises(OSError, match="Read-only file system") as refused:
                    train(make(*words, *elsewhere, *more))
                assert f"{tmp_path}/read-only/features" in str(user_message(refused.value))

    @pytest.mark.slow
    def test_killed_while_extracting(
        self, words: list[str], make: Make, train: Train, tmp_path: Path
    ) -> None:
        killed = start(words, tmp_path / "killed", dies_after=2)
        killed.communicate(timeout=120)
        assert killed.returncode == -9
        misses, result = said(start(words, tmp_path / "next"))
        whole = 2 * TRAIN + VAL + TEST
        assert misses in (whole - 8, whole - 16)  # the second chunk was being written
        assert result == told(train(make("--features.store", "false"))[0])

    @pytest.mark.slow
    def test_two_at_once_share_the_work(
        self, words: list[str], make: Make, train: Train, tmp_path: Path
    ) -> None:
        both = [start(words, tmp_path / name) for name in ("first", "second")]
        (one, first), (other, second) = map(said, both)
        assert one + other == 2 * TRAIN + VAL + TEST
        assert first == second == told(train(make("--features.store", "false"))[0])

    def test_stopped_while_extracting_keeps_what_was_computed(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        through, calls = extractor.FeatureExtractor.run_stage, []

        def stopping(self: extractor.FeatureExtractor, values: Tensor, stage: int) -> Tensor:
            calls.append(stage)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return through(self, values, stage)

        monkeypatch.setattr(extractor.FeatureExtractor, "run_stage", stopping)
        with pytest.raises(KeyboardInterrupt):
            features_of(make(), accelerator).get("train", 0)
        assert missing(make(), accelerator)[0] == TRAIN - 16


class TestCompiling:
    def test_is_decided_by_size_and_capability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr(extractor, "can_compile", lambda: True)
        assert worth_compiling(4000, 224, cpu)
        assert not worth_compiling(3999, 224, cpu)
        assert not worth_compiling(4000, 112, cpu)
        assert not worth_compiling(10**9, 224, torch.device("cuda"))
        monkeypatch.setattr(extractor, "can_compile", lambda: False)
        assert not worth_compiling(4000, 224, cpu)

    def test_needs_a_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert not can_compile()
        broken = tmp_path / "g++"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        assert not can_compile()

    def test_is_decided_once_and_recorded(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert setup.prepare(make(), accelerator, QUIET).experiment.features.compile is False
        monkeypatch.setattr(
            "runner.training.devices.worth_compiling", lambda images, crop, device: images == 36
        )
        assert setup.prepare(make(), accelerator, QUIET).experiment.features.compile is True
        by_count = ("--split.by", "count", "--split.train", "4", "--split.val", "2", "--split.test", "1")
        assert setup.prepare(make(*by_count), accelerator, QUIET).experiment.features.compile is True

    def test_failure_is_a_sentence(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
            def compiled(_: Tensor) -> Tensor:
                raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

            return compiled

        monkeypatch.setattr(torch, "compile", fail)
        features = features_of(make("--features.compile", "true"), accelerator)
        with pytest.raises(UserError, match=r"failed .*no compiler\); set features\.compile=false"):
            features.get("train", 0)

    @pytest.mark.slow
    @pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
    def test_compiled_store_changes_no_bit(self, make: Make, train: Train) -> None:
        on, _ = train(make("--features.compile", "true"))
        off, _ = train(make("--features.compile", "true", "--features.store", "false"))
        assert comparable(on.history) == comparable(off.history)
        assert (on.best, on.last) == (off.best, off.last)
        plain, _ = train(make())
        assert on.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=1e-3)
