"""What is wrong with S3's settings is said at once, and outages of S3 lose nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import one_sentence, runs_of, user_environment
from s3_server import (
    BUCKET,
    PASSWORD,
    READER,
    READER_SECRET,
    SECRETS,
    TOKEN,
    S3Server,
    assert_no_secret,
    database_content,
)
from stores import RecordingTerminal, copy_store, dead_owner, points, set_owner, wait_for

from runner import train
from runner.cli import main
from runner.tracking import uploader
from runner.tracking.artifact_store import ROOT_VARIABLE
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.exit_status import run_main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("plain_environment")]


MOST_WAITED = 90
"""Seconds that a process may take to end while S3 does not answer."""


def train_here(words: list[str]) -> None:
    """Train in this process, as a launched one does."""
    train.main(words)


NO_ANSWER = f"http://me:{PASSWORD}@127.0.0.1:1"


MISTAKES: dict[str, tuple[dict[str, str | None], str]] = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses the credentials (SignatureDoesNotMatch"),
    "session token": ({"AWS_SESSION_TOKEN": TOKEN}, "refuses the credentials (InvalidAccessKeyId"),
    "read only": (
        {"AWS_ACCESS_KEY_ID": READER, "AWS_SECRET_ACCESS_KEY": READER_SECRET},
        "refuses the credentials (AccessDenied",
    ),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "half of them": ({"AWS_SECRET_ACCESS_KEY": None}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "no such profile": (
        {"AWS_PROFILE": "nosuch"},
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    "no answer": ({"MLFLOW_S3_ENDPOINT_URL": NO_ANSWER}, "http://me:…@127.0.0.1:1 does not answer"),
    "no scheme": ({"MLFLOW_S3_ENDPOINT_URL": "127.0.0.1:1"}, "correct MLFLOW_S3_ENDPOINT_URL"),
    "no bucket": ({ROOT_VARIABLE: "s3://nosuch/x"}, "has no such bucket (NoSuchBucket"),
    "impossible bucket": ({ROOT_VARIABLE: "s3://No Bucket!/x"}, "Invalid bucket name"),
    "a login": ({ROOT_VARIABLE: f"s3://me:{PASSWORD}@bucket/x"}, f"{ROOT_VARIABLE} holds a login"),
    "a folder": ({ROOT_VARIABLE: "/data/x"}, "not an address such as s3://bucket/folder"),
    "another address": ({ROOT_VARIABLE: "nosuch://x"}, "not an address such as s3://bucket/folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_said_before_anything_is_computed(
    mistake: str,
    login: Callable[..., None],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    changes, expected = MISTAKES[mistake]
    login(**({ROOT_VARIABLE: f"s3://{BUCKET}/embedded"} | changes))
    monkeypatch.setattr("runner.training.run.train", lambda *_: pytest.fail("it trains"))
    assert run_main(lambda: train_here(small)) == 2
    errors = capfd.readouterr().err
    assert expected in one_sentence(errors)
    assert not [secret for secret in SECRETS if secret in errors]
    assert runs_of(tracking_server(str(tmp_path / "mlruns")).connect()) == []
    assert b"nosuch" not in database_content(tmp_path / "mlruns")  # a wrong address is not kept
    assert_no_secret(tmp_path)


def test_a_missing_boto3_is_named(
    login: Callable[..., None],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    login(**{ROOT_VARIABLE: f"s3://{BUCKET}/embedded"})
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert run_main(lambda: train_here(small)) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert (
        f"s3://{BUCKET}/embedded/small: S3 needs the package boto3; pip install 'vgg-runner[s3]'" in sentence
    )


def test_a_server_that_cannot_store_artifacts_is_named(
    start_server: Callable[..., tuple[str, Path]],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, _ = start_server("--serve-artifacts", "--artifacts-destination", "s3://nosuch/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert run_main(lambda: train_here(small)) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert f"The tracking server {address} cannot store artifacts" in sentence
    assert "The specified bucket does not exist" in sentence


def test_an_experiment_that_exists_keeps_its_place(
    login: Callable[..., None], tmp_path: Path, mlflow_template: Path
) -> None:
    server = tracking_server(str(copy_store(mlflow_template, tmp_path / "mlruns")))
    client = server.connect()
    server.get_or_create_experiment(client, "old")
    login(**{ROOT_VARIABLE: f"s3://{BUCKET}/embedded"})
    assert server.other_location(client, "old").startswith(
        "the artifacts of the experiment 'old' stay in file://"
    )
    assert server.other_location(client, "new") == ""
    new = client.get_experiment(server.get_or_create_experiment(client, "new: a/b #1?"))
    assert new.artifact_location == f"s3://{BUCKET}/embedded/new%3A%20a-b%20%231%3F"
    assert server.other_location(client, "new: a/b #1?") == ""


def test_an_outage_of_s3_loses_no_record(
    s3: S3Server,
    login: Callable[..., None],
    tmp_path: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not when the server is away, and not when `sync` finds no bucket or no credentials."""
    monkeypatch.setattr(uploader, "UPLOAD_TIMEOUT", 2.0)
    login(**{ROOT_VARIABLE: f"s3://{BUCKET}/outage"})
    server = tracking_server(str(copy_store(mlflow_template, tmp_path / "mlruns")))
    client = server.connect()
    terminal = RecordingTerminal()
    with track_run(server, client, RunRequest("outage", "away at the end"), terminal) as tracker:
        tracker.log_text("1.txt", "first")
        wait_for(lambda: not tracker.journal.pending())
        s3.stop()
        tracker.log_text("2.txt", "second")
        wait_for(lambda: tracker.uploader.error is not None)
        tracker.log_metrics({"loss": 0.5}, 1)
    assert f"the artifact store does not take files: {s3.address} does not answer" in terminal.warnings[0]
    assert "for the artifact store to take the last records" in "".join(terminal.lines)
    assert "./launch.sh sync" in terminal.warnings[-1]
    assert tracker.uploader.stop()  # as the end of its process does
    set_owner(tracker.journal, dead_owner(server.uri, tracker.run_id))
    options = ["sync", "--tracking.root", str(server.root)]
    capfd.readouterr()
    assert main.main(options) == 2
    output = capfd.readouterr()
    assert "does not answer" in output.out
    assert "are still not delivered" in one_sentence(output.err)
    s3.start()
    files = list(tracker.journal.folder.rglob("*.txt"))
    for changes in (
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
    ):
        login(**changes)
        assert main.main(options) == 2
    login()
    client_of_s3 = s3.client()
    for key in s3.file_names():
        client_of_s3.delete_object(Bucket=BUCKET, Key=key)
    client_of_s3.delete_bucket(Bucket=BUCKET)
    assert main.main(options) == 2
    assert "has no such bucket" in capfd.readouterr().out
    assert list(tracker.journal.folder.rglob("*.txt")) == files
    client_of_s3.create_bucket(Bucket=BUCKET)
    assert main.main(options) == 0
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "runner.refused" not in run.data.tags
    assert points(client, tracker.run_id, "loss") == [(1, 0.5)]
    assert Path(client.download_artifacts(tracker.run_id, "2.txt", str(tmp_path))).read_text() == "second"
    assert list(server.journals.glob("*/")) == []
    assert_no_secret(tmp_path, server.root)


HANG = """
import os, signal, sys, time
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal
from runner.utils.exit_status import run_script

def main(words):
    server = tracking_server(words[0])
    with track_run(server, server.connect(), RunRequest("hang", "run"), Terminal()) as tracker:
        os.kill(int(words[1]), signal.SIGSTOP)
        tracker.log_text("1.txt", "first")
        print("hanging", flush=True)
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

sys.exit(run_script(main))
"""


def test_a_process_that_is_stopped_while_s3_hangs_ends(
    s3: S3Server, login: Callable[..., None], tmp_path: Path, mlflow_template: Path
) -> None:
    """The threads of boto3 keep a process until their requests end."""
    root = copy_store(mlflow_template, tmp_path / "mlruns")
    environment = user_environment(**s3.environment, **{ROOT_VARIABLE: f"s3://{BUCKET}/hang"})
    words = [sys.executable, "-c", HANG, str(root), str(s3.process.pid)]
    try:
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "hanging\n", first + process.stdout.read()
        started = time.monotonic()
        rest = process.communicate()[0]
        assert time.monotonic() - started < MOST_WAITED, rest
    finally:
        s3.process.send_signal(signal.SIGCONT)
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert main.main(["sync", "--tracking.root", str(root)]) == 0
    (run,) = runs_of(tracking_server(str(root)).connect(), "hang")
    assert run.info.status == "KILLED"
    assert s3.file_names(f"hang/hang/{run.info.run_id}/artifacts/1.txt")
