"""`runner slurm`: the script that it writes, as a shell reads it, what it refuses, and what it gives to sbatch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli import main, slurm, slurm_options

AWKWARD = ("--name", "a 'b' $HOME; exit 1", "--data.root", "two\nlines", "--lr", "0.01")
STUDY = ("search", "--study", "first")
SHARED = ("--storage", "postgresql://me@db/studies", "--array", "3")
Refuse = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """`program(name, script)`: the first program of that name on the PATH; the file that the script knows as $calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, script: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        (folder / name).write_text(f"#!/bin/bash\ncalls={calls}\n{script}\n")
        (folder / name).chmod(0o755)
        return calls

    return write


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`printed("train", …)`: the script of a job."""

    def run(*words: str) -> str:
        assert slurm.main([*words, "--dry-run"]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """`refused("train", …)`: the sentence with which a job is refused."""

    def run(*words: str) -> str:
        assert main.main(["slurm", *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("runner: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


def options(script: str) -> list[str]:
    """What a script asks SLURM for, as sbatch reads it: up to the first command."""
    head = script[: script.index("\ntrap ")]
    return [line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH ")]


def test_the_options_of_a_training_on_several_nodes(printed: Callable[..., str]) -> None:
    words = ("--nodes", "2", "--gpus-per-node", "8", "--time", "4:00:00", "--partition", "gpu")
    script = printed("train", *words, "--sbatch", "--account=x", "--sbatch", "mem=0", "--signal", "USR2@60")
    assert options(script) == [
        "--job-name=quickstart",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=32",
        "--time=4:00:00",
        "--partition=gpu",
        "--requeue",
        "--open-mode=append",
        "--output=mlruns/slurm/quickstart-%j.out",
        "--signal=USR2@60",
        "--account=x",
        "--mem=0",
    ]
    assert "launch.sh train -n 8 \\\n    --resume auto || status=$?" in script
    assert "--kill-on-bad-exit=0 --wait=0" in script


def test_the_options_of_the_smallest_job(printed: Callable[..., str]) -> None:
    script = printed("train", "--tracking.root", "100% mine")
    assert options(script) == [
        "--job-name=quickstart",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--requeue",
        "--open-mode=append",
        "--output='100%% mine/slurm/quickstart-%j.out'",
        "--signal=USR1@180",
    ]


def test_an_array_of_workers(printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    script = printed(*STUDY, *SHARED[:-1], "50%8", "--gpus-per-node", "2", "--job-name", "my study")
    asked = options(script)
    assert "--array=0-49%8" in asked
    assert "--job-name=my-study" in asked
    assert "--output=mlruns/slurm/my-study-%A_%a.out" in asked
    assert "--workers 2" in script
    assert "--resume" not in script
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script
    assert "--workers 1" in printed(*STUDY, *SHARED, "--gpus-per-node", "2", "--workers", "1")


@pytest.mark.parametrize(
    ("status", "requeued"), [(0, False), (1, False), (2, False), (138, True), (140, False), (143, False)]
)
def test_only_what_stopped_for_the_signal_is_queued_again(
    status: int,
    requeued: bool,
    printed: Callable[..., str],
    program: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    started = program("srun", f'printf "%s\\0" "$@" >$calls; exit {status}')
    asked = program("scontrol", 'echo "$@" >$calls')
    script = printed("train", *AWKWARD, "-n", "2")
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash"], input=script, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == status
    words = started.read_text().split("\0")[:-1]
    assert words == ["--cpus-per-task=8", *slurm.launcher(), "train", "-n", "2", *AWKWARD, "--resume", "auto"]
    assert asked.exists() == requeued
    assert not requeued or asked.read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "arguments are required: VERB"),
        (("evaluate",), "invalid choice: 'evaluate'"),
        (("train", "--lrr", "1"), "There is no setting 'lrr'"),
        (("train", "--nodes", "0"), "--nodes: must be a whole number of at least 1"),
        (("train", "--time", "soon"), "'soon' is no time"),
        (("train", "--time", "0:00"), "'0:00' is no time"),
        (("train", "--time", "3"), "--time 3 is no longer than the 180 seconds"),
        (("train", "--signal", "TERM@60"), "'TERM@60' is not as USR1@180"),
        (("train", "--signal", "USR1"), "'USR1' is not as USR1@180"),
        (("train", "--sbatch", "--account=a\nb"), "must be one line"),
        (("train", "--partition", " "), "must be one line"),
        (("train", "--array", "3"), "--array starts workers of one study"),
        (("train", "--resume", "--branch"), "--branch would start another run"),
        (("train", "-n", "4", "--gpus-per-node", "2"), "-n is 4, but --gpus-per-node is 2"),
        (("train", "--workers", "2"), "trains several runs side by side, but there is one"),
        ((*STUDY, "--nodes", "2"), "--nodes is for train"),
        ((*STUDY, "--array", "few"), "'few' is not a number of workers"),
        ((*STUDY, "--array", "3"), "--storage postgresql://USER@HOST/NAME"),
        ((*STUDY, "--array", "3", "--storage", "sqlite:///x.db"), "cannot share a file"),
        ((*STUDY, *SHARED), "start an MLflow server"),
        ((*STUDY, "--storage", "postgresql://me:word@db/x"), "put it into ~/.pgpass"),
        (("search",), "required: --study"),
    ],
)
def test_what_cannot_work_is_refused(
    words: tuple[str, ...], sentence: str, refused: Refuse, no_tracking_uri: None
) -> None:
    printed = refused(*words, "--dry-run")
    assert sentence in printed
    assert ":word@" not in printed


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("4:00:00", 14400),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("0-0:0:9", 9),
        ("1:2:3:4", 0),
        ("-1", 0),
        ("", 0),
    ],
)
def test_times_are_read_as_slurm_reads_them(word: str, seconds: int) -> None:
    assert slurm_options.seconds_in(word) == seconds


def test_without_slurm_a_job_is_refused(refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "There is no sbatch here" in refused("train")


def test_a_job_is_submitted_and_its_script_stored(
    words: list[str],
    program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # of an interactive allocation
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    calls = program("sbatch", 'cat >$calls; env | grep ^SLURM >$calls.env; echo "17;main"')
    assert slurm.main(["train", *words]) == 0
    script = tmp_path / "mlruns" / "slurm" / "small-17.sh"
    assert script.read_text() == calls.read_text()
    assert Path(f"{calls}.env").read_text() == "SLURM_CONF=/etc/slurm.conf\n"
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"job 17 is queued; its script: {script}"
    assert second == f"its output: {script.with_suffix('.out')}"


def test_what_slurm_refuses_is_said_and_nothing_is_stored(
    words: list[str], program: Callable[[str, str], Path], refused: Refuse, tmp_path: Path
) -> None:
    program("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    assert "SLURM refused the job: invalid partition specified: gpu; correct that" in refused("train", *words)
    assert list((tmp_path / "mlruns" / "slurm").iterdir()) == []


def test_images_are_looked_for_before_a_job_is_queued(
    words: list[str], program: Callable[[str, str], Path], refused: Refuse, tmp_path: Path
) -> None:
    calls = program("sbatch", "echo 17 | tee $calls")
    missing = ("--data.root", str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in refused("train", *words, *missing)
    assert not calls.exists()
    assert slurm.main(["train", *words, *missing, "--skip-checks"]) == 0
    assert calls.exists()


def test_an_environment_that_cannot_use_gpus_is_refused(
    words: list[str],
    program: Callable[[str, str], Path],
    refused: Refuse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program("sbatch", "echo 17")
    monkeypatch.setattr(slurm, "version", lambda _: "2.15.0+cpu")
    assert "which cannot use a GPU" in refused("train", *words, "--gpus-per-node", "1")


@pytest.mark.parametrize("flag", ["--skip-checks", "--dry-run"])
def test_images_that_only_nodes_have_may_be_named_by_their_path(
    flag: str, program: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "script"
    program("sbatch", f"cat > {script}; echo 7")
    words = ["train", "/no/such/images", "--tracking.root", str(tmp_path / "mlruns")]
    assert slurm.main([*words, flag]) == 0
    text = capsys.readouterr().out if flag == "--dry-run" else script.read_text()
    assert "--data.root /no/such/images" in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--partiton", "gpu"), "There is no option --partiton; did you mean --partition?"),
        (("--gpus", "2"), "There is no option --gpus; did you mean --gpus-per-node?"),
        (("--sbatch", "--nodes=3"), "'--nodes=3' would contradict the script"),
        (("--sbatch", "-N 3"), "'-N 3' would contradict the script"),
        (("--sbatch", "--dry-run"), "expected one argument"),
        (("--tracking.root", "a\nb"), "choose a folder without control characters"),
    ],
)
def test_options_that_are_misspelled_or_contradict_others(
    words: tuple[str, ...], reason: str, refused: Refuse
) -> None:
    assert reason in refused("train", "--config", "quickstart", *words)


def test_a_machine_of_no_cluster_is_said(program: Callable[[str, str], Path], refused: Refuse) -> None:
    program("sbatch", "echo 'sbatch: fatal: Could not establish a configuration source' >&2; exit 1")
    assert "SLURM cannot be reached from this machine" in refused(
        "train", "--config", "quickstart", "--skip-checks"
    )
