"""Runs whose artifacts lie on S3: with the embedded store, behind a proxying server, and written past a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import runs_of, user_environment
from s3_server import BUCKET, SECRETS, S3Server, assert_no_secret
from stores import artifacts, points

from runner import train
from runner.cli import main
from runner.tracking.artifact_store import CHECK_FILE, ROOT_VARIABLE
from runner.tracking.mlflow_server import tracking_server
from runner.training.callbacks.console import ConsoleCallback
from runner.training.results import EpochResult
from runner.utils.signals import Interrupted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("plain_environment")]
ARRANGEMENTS = (
    "embedded",
    pytest.param("proxied", marks=pytest.mark.long),
    pytest.param("direct", marks=pytest.mark.long),
)
LARGE = 500 * 1024**2
MOST_MEMORY = 64 * 1024**2
"""Bytes that our process may need more while it handles a file of `LARGE` bytes."""


@dataclass(frozen=True)
class Arranged:
    """Where a run's records and artifacts go."""

    prefix: str
    """Of the names of its files in the bucket."""
    folder: Path | None = None
    """Of the MLflow server, if there is one."""


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
