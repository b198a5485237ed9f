"""A local run in an environment that other launchers have left their marks in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commands import COMMAND_TIMEOUT, client_of, environment, runner, runs_of

RANKS = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2", "PMI_RANK": "0"}
PLUGINS = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
OPERATOR = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "10.0.0.1"}
CONFIGURATION = """
distributed_type: DEEPSPEED
gpu_ids: '0'
machine_rank: 1
main_process_ip: 10.0.0.1
num_machines: 2
num_processes: 8
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_in_the_environment_are_named_and_ignored(
    processes: int, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(CONFIGURATION)
    outcome = subprocess.run(
        runner("train", "-n", str(processes), *words, "--train.epochs", "1"),
        env={**environment(), **RANKS, **MPI, **PLUGINS, **OPERATOR, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert [run.info.status for run in runs_of(client_of(tmp_path))] == ["FINISHED"]
    assert outcome.stderr.startswith("note: the environment has the ranks or plugins of another launch")
    for name in (*RANKS, *MPI, *PLUGINS, *OPERATOR):
        assert outcome.stderr.count(name) >= 1
