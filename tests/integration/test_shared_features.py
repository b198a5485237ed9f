"""Processes that share a feature store: one waits for the other, and one that was killed leaves a whole store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from helpers import TEST, TRAIN, VAL, Make, comparable

from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.features.work_sharing import SharedWork
from runner.training import run

Train = Callable[..., Any]
IMAGES = 2 * TRAIN + VAL + TEST
"""Images and views of the small experiment."""
RUN = """
import json, os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from helpers import QUIET, Recorder, comparable
from runner.config.parser import parse
from runner.features import shard_store
from runner.features.extractor import FeatureExtractor
from runner.training import curves, run

shard_store.SHARD_SECONDS = 0.0
curves.draw_curves = lambda *_: None
left = int(os.environ["DIES_AFTER"])
run_stage = FeatureExtractor.run_stage

def dying(self, values, stage):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return run_stage(self, values, stage)

FeatureExtractor.run_stage = dying
records = Recorder(Path(os.environ["RECORDS"]))
result = run.train(parse(sys.argv[1:])[0], Accelerator(cpu=True), records, QUIET)
misses = [value for name, _, value in records.points if name == "system/features/misses"]
print(json.dumps({"misses": misses, "history": comparable(result.history), "test": result.best.to_dict()}))
"""
ZEROS = FeatureKeys(np.zeros((1, 20), np.uint8), -1)
"""The key that such a process writes."""
HOLD = """
import sys, time
from pathlib import Path
from runner.features.shard_store import ShardStore
from runner.features.keys import FeatureKeys
from runner.features.work_sharing import SharedWork
import numpy, torch
store, keys = ShardStore(Path(sys.argv[1]), {}), FeatureKeys(numpy.zeros((1, 20), "uint8"), -1)
with SharedWork(store, keys, None, print) as work:
    assert len(work.next()) == 1
    print("computing", flush=True)
    time.sleep(float(sys.argv[2]))
    store.write(keys, torch.ones(1, 4))
"""


def start(words: list[str], records: Path, dies_after: int = 1000) -> subprocess.Popen[str]:
    """A process that runs an experiment and writes a shard per batch. It is killed after so many batches."""
    environment = os.environ | {
        "DIES_AFTER": str(dies_after),
        "RECORDS": str(records),
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tests"])),
    }
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], env=environment, stdout=subprocess.PIPE, text=True
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Images that a run computed, and its results."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    results = json.loads(output)
    (misses,) = results.pop("misses")
    return misses, results


def as_json(result: run.RunResult) -> dict[str, Any]:
    """A result as such a process prints it."""
    return dict(
        json.loads(json.dumps({"history": comparable(result.history), "test": result.best.to_dict()}))
    )


def hold(root: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that computes features of a store for some seconds, then writes one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    return process


@pytest.mark.slow
def test_a_run_killed_while_computing(words: list[str], make: Make, train: Train, tmp_path: Path) -> None:
    killed = start(words, tmp_path / "killed", dies_after=2)
    killed.communicate(timeout=120)
    assert killed.returncode == -9
    misses, results = outcome(start(words, tmp_path / "next"))
    assert misses in (IMAGES - 8, IMAGES - 16)  # the second batch was being written
    assert results == as_json(train(make("--features.store", "false"))[0])


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(words: list[str], make: Make, train: Train, tmp_path: Path) -> None:
    both = [start(words, tmp_path / name) for name in ("first", "second")]
    (one, first), (other, second) = map(outcome, both)
    assert one + other == IMAGES
    assert first == second == as_json(train(make("--features.store", "false"))[0])


def has_to_compute(root: Path, waited: list[str]) -> bool:
    """Whether this process has to compute the same feature, after it has waited for others."""
    with SharedWork(ShardStore(root, {}), ZEROS, None, waited.append) as work:
        while (taken := work.next()) is not None:
            if len(taken):
                return True
    return False


def test_a_process_waits_for_another_and_uses_its_features(tmp_path: Path) -> None:
    other = hold(tmp_path, 0.5)
    waited: list[str] = []
    assert not has_to_compute(tmp_path, waited)
    assert waited == [socket.gethostname()]
    assert other.wait() == 0


def test_a_killed_process_keeps_nobody_waiting(tmp_path: Path) -> None:
    other = hold(tmp_path, 60)
    waited: list[str] = []
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert has_to_compute(tmp_path, waited)
    assert waited == []
