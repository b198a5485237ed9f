"""Runs whose artifacts lie on S3: with the embedded store, behind a proxying server, and written past a server."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import one_sentence, runs_of, user_environment
from helpers import listening
from s3_server import BUCKET, KEY_SECRET, READER, READER_SECRET, S3Server
from stores import RecordingTerminal, artifacts, copy_store, dead_owner, points, set_owner, wait_for

from runner import train
from runner.cli import main
from runner.tracking import artifact_store, uploader
from runner.tracking.artifact_store import CHECK_FILE, ROOT_VARIABLE
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.training.callbacks.console import ConsoleCallback
from runner.training.results import EpochResult
from runner.utils.exit_status import run_main
from runner.utils.signals import Interrupted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("plain_environment")]
PASSWORD = "s3cret-endpoint-word"
TOKEN = "s3cret-session-token"
SECRETS = (KEY_SECRET, READER_SECRET, PASSWORD, TOKEN)
ARRANGEMENTS = (
    "embedded",
    pytest.param("proxied", marks=pytest.mark.long),
    pytest.param("direct", marks=pytest.mark.long),
)
MOST_WAITED = 90
"""Seconds that a process may take to end while S3 does not answer."""
LARGE = 500 * 1024**2
MOST_MEMORY = 64 * 1024**2
"""Bytes that our process may need more while it handles a file of `LARGE` bytes."""


@pytest.fixture
def login(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`login(AWS_SECRET_ACCESS_KEY="wrong")`: the variables of the S3 server, some changed; None removes one."""

    def forget() -> None:
        if (boto3 := sys.modules.get("boto3")) is not None:
            boto3.DEFAULT_SESSION = None
        from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client

        _cached_get_s3_client.cache_clear()
        artifact_store.check_takes_files.cache_clear()

    def set_variables(**changes: str | None) -> None:
        for name, value in (s3.environment | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        forget()

    set_variables()
    yield set_variables
    forget()


@dataclass(frozen=True)
class Arranged:
    """Where a run's records and artifacts go."""

    prefix: str
    """Of the names of its files in the bucket."""
    folder: Path | None = None
    """Of the MLflow server, if there is one."""


@pytest.fixture(scope="module")
def start_server(
    s3: S3Server, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., tuple[str, Path]]]:
    """`start_server("--artifacts-destination", …)`: the address of an MLflow server with these options; its folder."""
    with ExitStack() as stack:

        def start(*options: str) -> tuple[str, Path]:
            folder = tmp_path_factory.mktemp("server")
            database = copy_store(mlflow_template, folder) / "mlflow.db"
            words = [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{database}", *options),
            ]
            quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            environment = user_environment(**quiet, **s3.environment)
            ready = "/api/2.0/mlflow/experiments/search?max_results=1"
            address = stack.enter_context(listening(words, ready, folder / "server.txt", environment))
            return address, folder

        yield start


@pytest.fixture(scope="module")
def proxying(start_server: Callable[..., tuple[str, Path]]) -> tuple[str, Path]:
    return start_server("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/proxied")


@pytest.fixture
def arranged(
    request: pytest.FixtureRequest, login: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Arranged:
    """The arrangement that the parameter names. Behind a proxying server the client knows nothing of S3."""
    if request.param == "embedded":
        monkeypatch.setenv(ROOT_VARIABLE, f"s3://{BUCKET}/embedded/")
        return Arranged("embedded/small/")
    if request.param == "proxied":
        address, folder = request.getfixturevalue("proxying")
        login(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, MLFLOW_S3_ENDPOINT_URL=None)
    else:
        start = request.getfixturevalue("start_server")
        address, folder = start("--no-serve-artifacts", "--default-artifact-root", f"s3://{BUCKET}/direct")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return Arranged(f"{request.param}/", folder)


def train_here(words: list[str]) -> None:
    """Train in this process, as a launched one does."""
    train.main(words)


def database_content(folder: Path) -> bytes:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump()).encode()


def assert_no_secret(*folders: Path) -> None:
    """No file and no database of records holds a secret."""
    for folder in folders:
        contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if (folder / "mlflow.db").exists():
            contents[folder] = database_content(folder)
        for path, content in contents.items():
            for secret in SECRETS:
                assert secret.encode() not in content, (secret, path)


@pytest.mark.parametrize("arranged", ARRANGEMENTS, indirect=True)
def test_a_run_on_s3_is_trained_resumed_evaluated_and_used(
    arranged: Arranged,
    s3: S3Server,
    small: list[str],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: ConsoleCallback, __: object, result: EpochResult) -> None:
        if result.number == 2:
            raise Interrupted(15)

    words = [*small, "--tracking.model", "true", "--checkpoints.minutes", "0"]
    root = str(tmp_path / "mlruns")
    with monkeypatch.context() as patch:
        patch.setattr(ConsoleCallback, "on_epoch_end", interrupt)
        with pytest.raises(Interrupted):
            train_here(words)
    server = tracking_server(root)
    client = server.connect()
    (interrupted,) = runs_of(client)
    assert interrupted.info.status == "KILLED"
    train_here(["--resume", interrupted.info.run_id[:8], "--tracking.root", root])
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == interrupted.info.run_id
    assert [step for step, _ in points(client, run.info.run_id, "val/loss")] == [1, 2, 3]
    checkpoints = artifacts(client, run.info.run_id, "checkpoints")
    assert [Path(path).stem for path in checkpoints] == ["best", "frozen", "last"]
    version = client.get_model_version_by_alias("small", "champion")
    assert version.run_id == run.info.run_id

    keys = s3.file_names(arranged.prefix)
    assert any(key.endswith("checkpoints/best.safetensors") for key in keys)
    assert any(key.endswith("classifier/model.json") for key in keys)
    assert not [key for key in keys if CHECK_FILE in key]
    assert not (tmp_path / "mlruns" / "artifacts").exists()

    picture = str(next((images / "red").iterdir()))
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    for reference in ("small@champion", run.info.run_id):
        assert main.main(["predict", picture, "--model", reference, "--json", "--tracking.root", root]) == 0
        assert '"red"' in capfd.readouterr().out
    assert main.main(["evaluate", run.info.run_id, "--tracking.root", root]) == 0
    assert "evaluation/test/report.html" in artifacts(client, run.info.run_id, "evaluation/test")
    assert list((tmp_path / "mlruns" / "journals").glob("*/")) == []
    out, err = capfd.readouterr()
    assert not [secret for secret in SECRETS if secret in out + err]
    assert_no_secret(tmp_path, tmp_path / "mlruns", *([arranged.folder] if arranged.folder else []))
    for key in keys:
        content = s3.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert not [secret for secret in SECRETS if secret.encode() in content], key


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


MEMORY = """
import hashlib, resource, sys
from pathlib import Path
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal

def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder, size = Path(sys.argv[1]), int(sys.argv[2])
server = tracking_server(str(folder / "mlruns"))
client = server.connect()
with track_run(server, client, RunRequest("large", "small"), Terminal(enabled=False)) as tracker:
    tracker.log_text("small.txt", "loads what every upload needs")
client.download_artifacts(tracker.run_id, "small.txt", str(folder))
before = peak()
with track_run(server, client, RunRequest("large", "large"), Terminal(enabled=False)) as tracker:
    path = tracker.artifact_path("checkpoints/large.bin")
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8, "big") + block[8:])
    stored = digest(path)
    tracker.log_artifact(path, "checkpoints")
assert tracker.delivered
uploaded = peak()
found = Path(client.download_artifacts(tracker.run_id, "checkpoints/large.bin", str(folder)))
assert found.stat().st_size == size and digest(found) == stored
print(uploaded - before, peak() - before)
"""


@pytest.mark.long
def test_a_file_of_500_mb_passes_a_proxying_server_in_little_memory(
    proxying: tuple[str, Path], tmp_path: Path
) -> None:
    environment = user_environment(MLFLOW_TRACKING_URI=proxying[0])
    words = [sys.executable, "-c", MEMORY, str(tmp_path), str(LARGE)]
    process = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    most: Any = max(map(int, process.stdout.split()))
    assert most < MOST_MEMORY, process.stdout
