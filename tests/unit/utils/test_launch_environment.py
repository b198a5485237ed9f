"""What other launchers leave in the environment."""

from __future__ import annotations

import os

import pytest

from runner.utils.launch_environment import STATUS_FILE, forget_other_launches

FOREIGN = [
    *(
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ),
    *(
        "TORCHELASTIC_RUN_ID",
        "PET_NNODES",
        "OMPI_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "PMI_SIZE",
        "PMIX_RANK",
    ),
    *("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_FSDP"),
]


@pytest.mark.parametrize("name", FOREIGN)
def test_ranks_of_another_launch_are_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    assert name in forget_other_launches()
    assert name not in os.environ


@pytest.mark.parametrize(
    "name",
    [
        "ACCELERATE_USE_CPU",
        "ACCELERATE_TORCH_DEVICE",
        "CUDA_VISIBLE_DEVICES",
        "SLURM_PROCID",
        "MY_RANK",
        "RANKS",
    ],
)
def test_what_a_user_sets_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    assert name not in forget_other_launches()
    assert os.environ[name] == "2"


def test_an_outer_launch_of_ours_is_forgotten_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_FILE, "/nowhere/status")
    assert STATUS_FILE not in forget_other_launches()
    assert STATUS_FILE not in os.environ
