"""What other launchers leave in the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from runner.utils import launch_environment
from runner.utils.launch_environment import STATUS_FILE, forget_other_launches, ignored_settings, provide_home

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
        "PMIX_MCA_gds",
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


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without entry in the system's list, as in a container; the folder for temporary files."""

    def missing(_: object = None) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", missing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_home_and_name_gets_temporary_ones(
    nobody: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        provide_home()
    home = Path.home()
    assert home.parent == nobody
    assert home.stat().st_mode & 0o777 == 0o700
    assert launch_environment.getpass.getuser() == str(os.getuid())
    assert capsys.readouterr().err.count("has no home folder") == 1


def test_the_home_of_somebody_else_is_not_used(nobody: Path) -> None:
    (nobody / "target").mkdir()
    (nobody / f"runner-home-{os.getuid()}").symlink_to("target")
    provide_home()
    assert Path.home().name not in ("target", f"runner-home-{os.getuid()}")


def test_home_and_name_of_a_user_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LOGNAME", "me")
    provide_home()
    assert (os.environ["HOME"], os.environ["LOGNAME"]) == ("/home/me", "me")
    assert capsys.readouterr().err == ""


def test_what_else_is_ignored_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert ignored_settings() == []
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").touch()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_NNODES", "2")
    configuration, job = ignored_settings()
    assert configuration.startswith(f"{tmp_path}/accelerate/default_config.yaml is ignored")
    assert job.startswith("SLURM's job 77 has 2 nodes, but this command runs on this host alone")
