"""Runs that are asked to stop by a signal, or whose launcher is killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest
from commands import (
    accelerate,
    client_of,
    one_sentence,
    runs_of,
    started,
)

LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")
"""Settings of a run that has to be stopped."""
CURVES = (
    *("train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/balanced_accuracy"),
    *("lr", "images_per_second", "epoch_seconds"),
)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_keeps_what_it_learned(small: list[str], tmp_path: Path) -> None:
    process = started([sys.executable, "-m", "runner.cli.main", "train", *small, *LONG], "\n    3 ", tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert one_sentence((tmp_path / "errors.txt").read_text()) == "stopped by SIGTERM"
    client = client_of(tmp_path)
    (run,) = runs_of(client)
    assert run.info.status == "KILLED"
    assert run.data.tags["runner.reason"] == "stopped by SIGTERM"
    from runner.models import checkpoint

    kept = Path(client.download_artifacts(run.info.run_id, "checkpoints", str(tmp_path)))
    best = checkpoint.load(kept / "best.safetensors")
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert best.epoch in [each.step for each in history if each.value == best.val["top1"]]
    assert best.val["top1"] == max(each.value for each in history)


@pytest.mark.slow
def test_a_run_whose_launcher_is_killed_does_not_go_on(small: list[str], tmp_path: Path) -> None:
    launcher = started(accelerate([*small, *LONG]), "\n    2 ", tmp_path)
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait(10)
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "KILLED"
