"""Features in runs: each image and view goes through the convolutions once, and the store changes no bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, TEST, TRAIN, VAL, InBfloat16, Make, Recorder, comparable
from torch import Tensor

from runner import prefix, prepared, run
from runner.errors import UserError
from runner.experiment import Experiment
from runner.features import Features, _MappedRows
from runner.fit import Epoch
from runner.prefix import can_compile, worth_compiling
from runner.terminal import Terminal

Train = Callable[..., Any]
RUN = """
import json, os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from runner import prefix, prepared, store
from runner.settings import parse
from runner.terminal import Terminal

store.FILE_SECONDS = 0.0
left = int(os.environ.get("DIES_AFTER", "1000"))
through = prefix.Prefix.through

def dying(self, values, stage):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return through(self, values, stage)

prefix.Prefix.through = dying
features = prepared.prepare(parse(sys.argv[1:])[0], Accelerator(cpu=True), Terminal(speaks=False)).features
sums = [float(next(features.rows(split, view).batches([range(9)])).double().sum())
        for split, view in (("train", 0), ("train", 1), ("val", -1))]
print(json.dumps({"misses": features.account.misses, "sums": sums}))
"""


def start(words: list[str], dies_after: int = 1000) -> subprocess.Popen[str]:
    """A process that asks for the rows of two training views and of validation."""
    environment = os.environ | {"DIES_AFTER": str(dies_after)}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], env=environment, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return dict(json.loads(out))


def features_of(experiment: Experiment, accelerator: Accelerator, terminal: Terminal = QUIET) -> Features:
    return prepared.prepare(experiment, accelerator, terminal).features


def missing(experiment: Experiment, accelerator: Accelerator) -> tuple[int, int]:
    """Images that would have to go through the convolutions: of the first training view, and of validation."""
    features = features_of(experiment, accelerator)
    return features.demand([("train", 0)]).images, features.demand([("val", -1)]).images


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
        train(make("--views.train", views, "--schedule.kind", "constant"))
        assert sum(through_prefix) == shown * TRAIN + VAL + TEST

    def test_a_run_that_stops_early_wastes_no_view(
        self, make: Make, train: Train, through_prefix: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.fit.broadcast_object_list", lambda _: [(True, False)])
        train(make("--views.train", "fresh"))
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
        first, second = (next(features.rows("train", view).batches([range(TRAIN)])) for view in (0, 1))
        assert not torch.equal(first, second)
        seen: list[Tensor] = []

        def peek(*arguments: Any) -> list[Epoch]:
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
        first.rows("train", 0)
        first.rows("val", -1)
        for fits in (
            ("--seed.fit", "7"),
            ("--fit.batch_size", "4"),
            ("--network.width", "32"),
            ("--network.pool", "2"),
            ("--optim.lr", "0.5"),
            ("--views.train", "fresh"),
        ):
            assert missing(make(*fits), accelerator) == (0, 0), fits
        for another in (
            ("--features.chunk", "4"),
            ("--features.compile", "true"),
            ("--views.interpolation", "bicubic"),
            ("--views.resize", "40"),
            ("--network.normalise", "VGG11_Weights.DEFAULT"),
            ("--network.arch", "vgg13"),
            ("--network.pool", "2", "--views.crop", "64", "--views.resize", "64"),
        ):
            assert missing(make(*another), accelerator) == (TRAIN, VAL), another
        for other_training in (("--seed.views", "1"), ("--views.rotation", "3"), ("--views.flip", "0.9")):
            assert missing(make(*other_training), accelerator) == (TRAIN, 0), other_training
        in_bfloat16 = InBfloat16(accelerator)
        assert missing(make(), in_bfloat16) == (TRAIN, VAL)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "library",
        ["torch.__version__", "torchvision.__version__", "PIL.__version__", "runner.features.ROWS_VERSION"],
    )
    def test_another_library_s_rows_are_others(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        features_of(make(), accelerator).rows("val", -1)
        monkeypatch.setattr(library, "99.0")
        assert missing(make(), accelerator)[1] == VAL

    def test_another_head_takes_the_convolutions_rows(
        self, make: Make, train: Train, through_prefix: list[int]
    ) -> None:
        words = ("--views.crop", "64", "--views.resize", "64")
        train(make(*words))
        through_prefix.clear()
        shared, _ = train(make(*words, "--network.pool", "2"))
        assert sum(through_prefix) == 0
        alone, _ = train(make(*words, "--network.pool", "2", "--features.store", "false"))
        assert comparable(shared.history) == comparable(alone.history)

    def test_rows_follow_an_image_into_another_split(self, make: Make, accelerator: Accelerator) -> None:
        words = ("--network.normalise", "VGG11_Weights.DEFAULT")
        splits = [("train", -1), ("val", -1), ("test", -1)]
        features = features_of(make(*words), accelerator)
        for split, view in splits:
            features.rows(split, view)
        other = features_of(make(*words, "--seed.split", "5"), accelerator)
        assert other.manifest.digest != features.manifest.digest
        assert other.demand(splits).images == 0

    def test_another_image_behind_the_same_path(
        self, make: Make, accelerator: Accelerator, pictures: Path
    ) -> None:
        words = ("--network.normalise", "VGG11_Weights.DEFAULT")
        features = features_of(make(*words), accelerator)
        entry = features.manifest.select("val")[0]
        before = next(features.rows("val", -1).batches([[0]]))
        path = features.manifest.root / entry.path
        stamp = path.stat()
        content = bytearray(path.read_bytes())
        other = features.manifest.root / features.manifest.select("train")[0].path
        path.write_bytes(other.read_bytes()[: len(content)].ljust(len(content), b"\0"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        if path.stat().st_size != stamp.st_size:
            raise AssertionError("the picture should have kept its size")
        kept = ("--data.unreadable", "skip")
        again = features_of(make(*words, *kept), accelerator)
        digests = [each.digest for each in again.manifest.entries]
        assert entry.digest not in digests
        places = [place for place, each in enumerate(again.manifest.select("val")) if each.path == entry.path]
        for place in places:
            assert not torch.equal(next(again.rows("val", -1).batches([[place]])), before)


class TestHeldOrMapped:
    def test_map_gives_the_same_run(self, make: Make, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        held, _ = train(make())
        gathered: list[int] = []
        batches = _MappedRows.batches
        monkeypatch.setattr(
            _MappedRows, "batches", lambda self, wanted: gathered.append(1) or batches(self, wanted)
        )
        mapped, _ = train(make("--features.memory", "0.000001"))
        assert gathered
        assert comparable(held.history) == comparable(mapped.history)
        assert (held.best, held.last) == (mapped.best, mapped.last)

    def test_memory_is_bounded(self, make: Make, accelerator: Accelerator) -> None:
        row = 512 * 4 / 2**30
        features = features_of(make("--features.memory", str(row * (TRAIN + 1))), accelerator)
        for view in (0, 1, 2):
            features.rows("train", view)
            assert len(features._memory) == 1
        assert ("train", 2) in features._memory


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
        words = ("--views.train", "1", "--fit.epochs", "1")
        once, _ = train(make(*words))
        through_prefix.clear()
        for path in (tmp_path / "cache" / "features").rglob("*.safetensors"):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content[: int(len(content) * kept)])
        again = run.train(make(*words), accelerator, Recorder(tmp_path / "again"), Terminal())
        assert "is damaged; computing its rows again" in capsys.readouterr().out
        assert sum(through_prefix) == TRAIN + VAL + TEST
        assert comparable(once.history) == comparable(again.history)
        assert (once.best, once.last) == (again.best, again.last)

    def test_full_disk_and_cap_are_told_before_anything_is_computed(
        self, make: Make, train: Train, through_prefix: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"features need .*features\.cap is 1"):
            train(make("--features.cap", "0.0000001"))
        monkeypatch.setattr("runner.stores.free_bytes", lambda _: 1000)
        with pytest.raises(UserError, match=r"features need .*1000 B left.*features\.store"):
            train(make())
        assert not through_prefix

    def test_read_only_store_serves_and_says_what_it_lacks(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features_of(make(), accelerator).rows("val", -1)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", "features")

        monkeypatch.setattr(os, "utime", refuse)
        monkeypatch.setattr("runner.store.write_text", refuse)
        monkeypatch.setattr("runner.store.replacing", refuse)
        features = features_of(make(), accelerator)
        assert len(next(features.rows("val", -1).batches([range(VAL)]))) == VAL
        with pytest.raises(PermissionError):
            features.rows("train", 0)

    def test_killed_while_extracting(self, words: list[str]) -> None:
        killed = start(words, dies_after=2)
        killed.communicate(timeout=120)
        assert killed.returncode == -9
        whole = 2 * TRAIN + VAL
        assert said(start(words))["misses"] in (whole - 8, whole - 16)  # the second chunk was being written

    def test_two_at_once_share_the_work(self, words: list[str], tmp_path: Path) -> None:
        first, second = (said(process) for process in [start(words), start(words)])
        assert first["misses"] + second["misses"] == 2 * TRAIN + VAL
        assert first["sums"] == second["sums"]
        shutil.rmtree(tmp_path / "cache" / "features")
        assert said(start(words)) == {"misses": 2 * TRAIN + VAL, "sums": first["sums"]}

    def test_stopped_while_extracting_keeps_what_was_computed(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        through, calls = prefix.Prefix.through, []

        def stopping(self: prefix.Prefix, values: Tensor, stage: int) -> Tensor:
            calls.append(stage)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return through(self, values, stage)

        monkeypatch.setattr(prefix.Prefix, "through", stopping)
        with pytest.raises(KeyboardInterrupt):
            features_of(make(), accelerator).rows("train", 0)
        assert missing(make(), accelerator)[0] == TRAIN - 16


class TestCompiling:
    def test_is_decided_by_size_and_capability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr(prefix, "can_compile", lambda: True)
        assert worth_compiling(4000, 224, cpu)
        assert not worth_compiling(3999, 224, cpu)
        assert not worth_compiling(4000, 112, cpu)
        assert not worth_compiling(10**9, 224, torch.device("cuda"))
        monkeypatch.setattr(prefix, "can_compile", lambda: False)
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
        assert prepared.prepare(make(), accelerator, QUIET).experiment.features.compile is False
        monkeypatch.setattr("runner.devices.worth_compiling", lambda images, crop, device: images == 36)
        assert prepared.prepare(make(), accelerator, QUIET).experiment.features.compile is True
        by_count = ("--split.by", "count", "--split.train", "4", "--split.val", "2", "--split.test", "1")
        assert prepared.prepare(make(*by_count), accelerator, QUIET).experiment.features.compile is True

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
            features.rows("train", 0)

    @pytest.mark.slow
    @pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
    def test_compiled_store_changes_no_bit(self, make: Make, train: Train) -> None:
        on, _ = train(make("--features.compile", "true"))
        off, _ = train(make("--features.compile", "true", "--features.store", "false"))
        assert comparable(on.history) == comparable(off.history)
        assert (on.best, on.last) == (off.best, off.last)
        plain, _ = train(make())
        assert on.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=1e-3)
