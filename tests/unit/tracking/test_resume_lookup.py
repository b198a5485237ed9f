"""Which run `--resume` means, and why some cannot be resumed. No MLflow database is needed."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
from stores import dead_owner, resumable

from runner.config.parser import Options
from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree, from_tree, override
from runner.tracking import journal as journals
from runner.tracking.journal import Journal, Owner
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.resume_lookup import (
    changed_settings,
    find_interrupted_run,
    resume_candidates,
    runs_to_resume,
    wait_for_sign_of_life,
    with_experiment_of_resumed_run,
)
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.safe_yaml import read_yaml

pytestmark = pytest.mark.usefixtures("no_tracking_uri")
EXPERIMENT = from_tree({"data": {"kind": "digits"}})


@pytest.fixture
def server(tmp_path: Path) -> TrackingServer:
    return TrackingServer(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


def interrupted(
    server: TrackingServer, run_id: str, experiment: Experiment = EXPERIMENT, **record: object
) -> Journal:
    journal = Journal.create(server.journals, dead_owner(server.uri, run_id))
    return resumable(journal, as_tree(experiment), **record)


def refusal(server: TrackingServer, options: Options, experiment: Experiment = EXPERIMENT) -> str:
    with pytest.raises(UserError) as caught:
        runs_to_resume(server, experiment, options)
    return str(caught.value)


@pytest.mark.parametrize("reference", ["0123456789", "01234", "some run"])
def test_a_run_is_found_by_id_start_of_id_or_name(server: TrackingServer, reference: str) -> None:
    interrupted(server, "0123456789")
    assert find_interrupted_run(server, reference).run_id == "0123456789"


def test_a_reference_to_several_runs_is_refused(server: TrackingServer) -> None:
    for run_id in ("01234567", "01234589"):
        interrupted(server, run_id)
    with pytest.raises(UserError, match=r"more than one interrupted run \(2\) '0123'"):
        find_interrupted_run(server, "0123")


def test_a_reference_to_no_run_lists_those_that_exist(server: TrackingServer) -> None:
    interrupted(server, "0123456789")
    with pytest.raises(UserError, match=r"no interrupted run 'other'.*01234567 \(some run\)"):
        find_interrupted_run(server, "other")


def test_a_run_that_still_runs_is_refused(server: TrackingServer) -> None:
    resumable(Journal.create(server.journals, Owner.this_process(server.uri, "0123456789")))
    with pytest.raises(UserError, match="still runs: process"):
        find_interrupted_run(server, "0123456789")


def test_a_child_is_resumed_with_its_parent_only(server: TrackingServer) -> None:
    interrupted(server, "0123456789", parent_id="f" * 32)
    with pytest.raises(UserError, match="one of several of run ffffffff"):
        find_interrupted_run(server, "0123456789")


def test_a_damaged_record_is_the_reason(server: TrackingServer) -> None:
    journal = interrupted(server, "0123456789")
    (journal.folder / "state" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        find_interrupted_run(server, "01234567")


def test_settings_that_change_no_result_do_not_count(server: TrackingServer) -> None:
    interrupted(server, "0123456789")
    (run,) = resume_candidates(server, as_tree(EXPERIMENT))
    harmless = {
        "data.workers": 1,
        "cache": "elsewhere",
        "checkpoints.minutes": 3,
        "tracking.gallery": 3,
        "features.store": False,
        "features.memory": 1.0,
    }
    assert changed_settings(run, as_tree(override(EXPERIMENT, harmless))) == []
    other = override(EXPERIMENT, {**harmless, "optim.lr": 0.5, "train.epochs": 7, "seed.split": 3})
    assert sorted(changed_settings(run, as_tree(other))) == [
        f"optim.lr was {EXPERIMENT.optim.lr} and is 0.5 now",
        f"seed.split was {EXPERIMENT.seed.split} and is 3 now",
        f"train.epochs was {EXPERIMENT.train.epochs} and is 7 now",
    ]


def test_a_message_names_some_of_many_differences(server: TrackingServer) -> None:
    interrupted(server, "0123456789")
    (run,) = resume_candidates(server, as_tree(EXPERIMENT))
    numbers = ("train.epochs", "train.batch_size", "model.pool", "model.width", "seed.split", "seed.train")
    sizes = ("augment.resize", "augment.crop", "augment.rotation", "optim.lr", "optim.weight_decay")
    other = override(EXPERIMENT, dict.fromkeys(numbers, 3) | dict.fromkeys(sizes[2:], 0.5))
    other = override(other, {"augment.resize": 77, "augment.crop": 66})
    changes = changed_settings(run, as_tree(other))
    assert len(changes) == 9
    assert changes[-1].startswith("and ")


def test_auto_means_the_newest_run_of_this_experiment(server: TrackingServer) -> None:
    other = override(EXPERIMENT, {"optim.lr": 0.5})
    interrupted(server, "another experiment", other)
    interrupted(server, "diverged", diverged=True)
    interrupted(server, "several seeds", repeat=3)
    elsewhere = Journal.create(server.journals, dead_owner("sqlite:////elsewhere.db", "elsewhere"))
    resumable(elsewhere, as_tree(EXPERIMENT))
    assert runs_to_resume(server, EXPERIMENT, Options(resume="auto")) == []
    interrupted(server, "this")
    assert [run.run_id for run in runs_to_resume(server, EXPERIMENT, Options(resume="auto"))] == ["this"]
    running = Journal.create(server.journals, Owner.this_process(server.uri, "running"))
    resumable(running, as_tree(EXPERIMENT))
    assert [run.run_id for run in resume_candidates(server, as_tree(EXPERIMENT))] == ["this"]
    assert [run.run_id for run in resume_candidates(server, as_tree(EXPERIMENT), alive=True)] == ["running"]


def test_refusals_say_what_to_do(server: TrackingServer) -> None:
    run_id = "0123456789"
    interrupted(server, run_id)
    other = override(EXPERIMENT, {"optim.lr": 0.5})
    assert "--resume RUN, not auto" in refusal(server, Options(resume="auto", branch=True))
    assert "--repeat 1" in refusal(server, Options(resume=run_id, repeat=2))
    interrupted(server, "fedcba9876", repeat=2, repeat_over="split")
    over_splits = "was started with --repeat 2 --repeat-over split; give the same"
    assert over_splits in refusal(server, Options(resume="fedcba9876", repeat=2))
    assert "cannot be combined with --repeat" in refusal(
        server, Options(resume=run_id, repeat=2, branch=True)
    )
    assert "optim.lr was 0.01 and is 0.5 now" in refusal(server, Options(resume=run_id), other)
    (run,) = runs_to_resume(server, other, Options(resume=run_id, branch=True))
    assert run.run_id == run_id
    elsewhere = dataclasses.replace(server, uri="http://user:secret@host")
    message = refusal(elsewhere, Options(resume=run_id))
    assert "MLFLOW_TRACKING_URI" in message
    assert "secret" not in message
    interrupted(server, "diverged", diverged=True)
    assert "--branch" in refusal(server, Options(resume="diverged"))


def test_a_resumed_run_brings_its_experiment(server: TrackingServer) -> None:
    interrupted(server, "0123456789")
    root = ["--tracking.root", str(server.root)]
    option, path, *rest = with_experiment_of_resumed_run([*root, "--resume", "01234567"])
    assert option == "--config"
    assert read_yaml(Path(path)) == as_tree(EXPERIMENT)
    assert rest == [*root, "--resume", "01234567"]


@pytest.mark.parametrize(
    "argv",
    [[], ["--resume"], ["--resume", "auto"], ["--resume", "--branch"], ["--resume=x", "--config=file"]],
)
def test_other_command_lines_stay_as_they_are(argv: list[str]) -> None:
    assert with_experiment_of_resumed_run(argv) == argv


@pytest.mark.parametrize("lives", [True, False])
def test_a_run_of_another_host_is_given_time_for_a_sign_of_life(
    server: TrackingServer, lives: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two such runs, both live, or both hosts have died and their heartbeats become overdue."""
    for run_id in ("first", "second"):
        owner = dataclasses.replace(dead_owner(server.uri, run_id), host="pod-a")
        resumable(Journal.create(server.journals, owner), as_tree(EXPERIMENT))
    owners = [each / "owner.json" for each in server.journals.iterdir()]
    assert len(owners) == 2

    def pass_time(_seconds: float) -> None:
        if lives:
            for path in owners:
                os.utime(path, (time.time() + 5, time.time() + 5))
        else:
            monkeypatch.setattr(journals, "HEARTBEAT_TIMEOUT", -1.0)

    monkeypatch.setattr(time, "sleep", pass_time)
    wait_for_sign_of_life(server, EXPERIMENT, Repeat(), Terminal())
    assert capsys.readouterr().out.count("on pod-a; waiting up to 60 s for a sign of life") == 2
    assert [run.journal.alive for run in resume_candidates(server, as_tree(EXPERIMENT), alive=lives)] == [
        lives
    ] * 2
