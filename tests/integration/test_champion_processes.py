"""Processes that register models at the same time, each as if it were another host: they share only the store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import user_environment
from faulty_proxy import LOCALHOST, MlflowServer
from stores import Store, new_run

from runner.tracking.mlflow_server import tracking_server
from runner.tracking.model_registry import ModelInfo

REGISTER = """
import json, sys
from pathlib import Path
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.model_registry import ModelInfo, register_model
root, folder = sys.argv[1], Path(sys.argv[2])
client = tracking_server(root).connect()
print("ready", flush=True)
for line in sys.stdin:
    run_id, info = json.loads(line)
    print(register_model(client, run_id, folder, ModelInfo.from_dict(info)), flush=True)
"""
TIMEOUT = 240
ROUNDS = ((0.3, 0.8), (0.9, 0.85), (0.1, 0.9), (0.97, 0.96))
"""The scores of two runs that finish at once, one round after another."""


def model_info(top1: float) -> ModelInfo:
    return ModelInfo("crown", {"val/top1": top1}, "val/top1", "m", step=3, time=1_700_000_000_000)


@contextmanager
def registering(roots: list[Path], model: Path, uri: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes with a folder of records each, ready to register what they read from their input."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, str(root), str(model)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=user_environment(MLFLOW_TRACKING_URI=uri),
        )
        for root in roots
    ]
    try:
        assert [line(process) for process in processes] == ["ready"] * len(processes)
        yield processes
        for process in processes:
            process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def check_rounds(store: Store, processes: list[subprocess.Popen[str]]) -> None:
    """In each round all register at once, and the best model so far is the champion."""
    client: Any = store[1]
    best = 0.0
    for scores in ROUNDS:
        for process, score in zip(processes, scores, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps([new_run(store), model_info(score).to_dict()]) + "\n")
        for process in processes:
            assert process.stdin is not None
            process.stdin.flush()
        said = [line(process) for process in processes]
        best = max(best, *scores)
        for alias in ("champion", "champion-m"):
            found = client.get_model_version_by_alias("crown", alias)
            assert found.tags["runner.score"] == f"val/top1 {best}", said


@pytest.mark.slow
def test_two_that_finish_at_once_on_a_server(mlflow_server: MlflowServer, tiny: Path, tmp_path: Path) -> None:
    uri = f"http://{LOCALHOST}:{mlflow_server.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        server = tracking_server(str(tmp_path / "here"))
        store = server, server.connect()
        with registering([tmp_path / "one", tmp_path / "other"], tiny, uri) as processes:
            check_rounds(store, processes)
    versions = store[1].search_model_versions("name = 'crown'")
    assert sorted(int(version.version) for version in versions) == list(range(1, 2 * len(ROUNDS) + 1))
    assert {version.tags["runner.champion_decision"] for version in versions} == {"decided"}


@pytest.mark.slow
def test_two_that_finish_at_once_with_a_database(mlflow_store: Store, tiny: Path) -> None:
    root = mlflow_store[0].root
    with registering([root, root], tiny, "") as processes:
        check_rounds(mlflow_store, processes)
