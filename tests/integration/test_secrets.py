"""No password or token is printed, recorded or stored, whatever fails."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import ROOT
from http_servers import SECRET, answering, assert_holds_no_secret, unused_address
from pictures import draw
from stores import Store

from runner import train
from runner.cli import main
from runner.study.session import _check_same_store
from runner.tracking.journal import Journal, Owner
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.training import environment
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main
from runner.utils.launch_environment import COMMAND, STATUS_FILE

pytestmark = pytest.mark.usefixtures("plain_environment")

SPACE = "train.batch_size: [8, 16]\n"
"""A small search space."""

SERVERS: dict[str, Callable[[], Any]] = {
    "nobody": unused_address,
    "hangs up": lambda: answering(0),
    "login": lambda: answering(401, b"Unauthorized: Basic realm"),
    "fault": lambda: answering(500, b'{"error_code": "INTERNAL_ERROR", "message": "it broke"}'),
    "no mlflow": lambda: answering(200, b"<html>hello</html>"),
    "not found": lambda: answering(404, b"nothing here"),
}


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`logged_in(uri)` puts the address of a server and all kinds of secrets into the environment."""

    def name(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}-header")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}-word")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    return name


@pytest.mark.parametrize("kind", SERVERS)
def test_no_verb_prints_a_password_if_the_server_fails(
    kind: str,
    logged_in: Callable[[str], None],
    words: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    picture, space = tmp_path / "picture.png", tmp_path / "space.yaml"
    draw("red", 0).save(picture)
    space.write_text(SPACE)
    root = ("--tracking.root", str(tmp_path / "mlruns"))
    verbs: dict[str, Callable[[], int]] = {
        "train": lambda: run_main(lambda: train.main(words)),
        "predict": lambda: main.main(["predict", str(picture), *root]),
        "explain": lambda: main.main(["explain", str(picture), "--out", str(tmp_path / "out"), *root]),
        "compare": lambda: main.main(["compare", "aaaa", "bbbb", *root]),
        "export": lambda: main.main(["export", "--onnx", str(tmp_path / "x.onnx"), *root]),
        "reproduce": lambda: main.main(["reproduce", "latest", *root]),
        "search": lambda: main.main(["search", "--study", "s", "--space", str(space), *words]),
        "ui": lambda: main.main(["ui", *root]),
    }
    with SERVERS[kind]() as uri:
        logged_in(uri)
        for verb, call in verbs.items():
            status = call()
            out, err = capfd.readouterr()
            assert SECRET not in out + err, verb
            assert status == 2, (verb, err)
            assert err.count("runner: ") == 1, (verb, err)
            assert "Traceback" not in err, verb
            assert "127.0.0.1" in err, verb
    assert_holds_no_secret(tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        f"user:{SECRET}@host:5000",
        f"nosuch://user:{SECRET}@host/db",
        f"mysql+nodriver://user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}@127.0.0.1:1/db?connect_timeout=1",
        f"http://user:{SECRET}@127.0.0.1:nan",
        f"http://user:pass/{SECRET}@127.0.0.1:1",
        f"https://{SECRET}@127.0.0.1:1",
    ],
)
def test_unusable_addresses_are_reported_without_their_password(
    uri: str, logged_in: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    logged_in(uri)
    with pytest.raises(UserError) as refused:
        tracking_server(str(tmp_path)).connect()
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_with_a_line_break_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `export MLFLOW_TRACKING_TOKEN="$(tail -2 file)"` leaves it: the request is refused with its header."""
    with answering(200) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}\nmore")
        assert main.main(["predict", str(ROOT / "docs" / "accuracy.png")]) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "verb",
    [
        ["search", "--study", "s", "--storage", f"nosuch://me:{SECRET}@host/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:1/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:port/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:a/{SECRET}@127.0.0.1:1/db"],
        ["search", "--study", f"postgresql://me:{SECRET}@host/db"],
        ["train", f"postgresql://me:{SECRET}@host/db"],
        ["train", f"--storage=postgresql://me:{SECRET}@host/db"],
        ["predict", f"http://user:{SECRET}@host/picture.png"],
        ["predict", "x", "--model", f"http://user:{SECRET}@host/model"],
        ["compare", f"http://user:{SECRET}@host/run"],
        ["evaluate", "latest", f"--storage=http://user:{SECRET}@host/run"],
        [f"http://user:{SECRET}@host"],
    ],
    ids=lambda words: " ".join(words[:3])[:24],
)
def test_no_message_repeats_a_password(
    verb: list[str], words: list[str], mlflow_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    space = ["--space", str(tmp_path / "space.yaml")] if verb[0] == "search" else []
    more = (
        [*space, *words] if verb[0] in ("search", "train") else ["--tracking.root", str(tmp_path / "mlruns")]
    )
    assert main.main([*verb, *more]) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.startswith("runner: ")
    assert_holds_no_secret(tmp_path)


def test_tracebacks_hold_no_password(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setenv(STATUS_FILE, str(status))

    def fail() -> None:
        raise RuntimeError(f"API request to http://user:{SECRET}@host/api failed")

    assert run_main(fail) == 1
    assert "Traceback" in status.read_text()
    assert SECRET not in status.read_text() + capfd.readouterr().err


def test_the_recorded_command_has_no_password(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        COMMAND, f"runner search --study s --storage postgresql://me:{SECRET}@host/db --trials 3"
    )
    recorded = environment.describe_environment(accelerator)
    assert recorded["command"] == "runner search --study s --storage postgresql://me:…@host/db --trials 3"
    monkeypatch.delenv(COMMAND)
    monkeypatch.setattr(sys, "argv", ["/x/train.py", "--a", f"http://user:{SECRET}@host"])
    assert environment.describe_environment(accelerator)["command"] == "train.py --a http://user:…@host"


def test_a_run_records_no_password(
    mlflow_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its failure, a tag and a parameter hold one."""
    server, client = mlflow_store
    address = f"http://user:{SECRET}@host/api"
    started: list[str] = []

    def fail() -> None:
        with track_run(server, client, RunRequest("small", "run"), Terminal()) as tracker:
            started.append(tracker.run_id)
            tracker.log_params({"address": address})
            tracker.set_tags({"address": address})
            raise RuntimeError(f"API request to {address} failed")

    with pytest.raises(RuntimeError):
        fail()
    data = client.get_run(started[0]).data
    assert data.params["address"] == data.tags["address"] == "http://user:…@host/api"
    assert data.tags["runner.reason"] == "RuntimeError: API request to http://user:…@host/api failed"
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert_holds_no_secret(tmp_path)


def test_the_report_of_an_outage_holds_no_password(
    mlflow_store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    server, client = mlflow_store
    monkeypatch.setattr("runner.tracking.uploader.UPLOAD_TIMEOUT", 0.2)

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException(f"API request to http://user:{SECRET}@host/api failed with exception x")

    with track_run(server, client, RunRequest("small", "run"), Terminal()) as tracker:
        monkeypatch.setattr(client, "log_batch", refuse)
        tracker.log_metrics({"loss": 1.0})
    out, err = capfd.readouterr()
    assert "not all records could be delivered" in out
    assert SECRET not in out + err


def test_only_the_user_can_read_the_address_in_a_journal(tmp_path: Path) -> None:
    """owner.json holds the whole address: it is needed to deliver the journal after the run has died."""
    owner = Owner.this_process(f"http://user:{SECRET}@host", "run")
    journal = Journal.create(tmp_path, owner)
    assert stat.S_IMODE((journal.folder / "owner.json").stat().st_mode) == 0o600
    journal.append({"kind": "tags", "values": {}})
    journal.mark_sent(1)
    (found,) = Journal.find_all(tmp_path)
    assert found.owner == owner
    assert_holds_no_secret(tmp_path)


def test_addresses_of_a_study_are_compared_without_passwords() -> None:
    study: Any = SimpleNamespace(plan=SimpleNamespace(name="s", storage="studies.journal"))

    def server(address: str) -> Any:
        return SimpleNamespace(uri=address, embedded=False)

    stored = [f"http://user:{SECRET}@host", "here"]
    _check_same_store(study, stored, server("http://user:other@host"))
    with pytest.raises(UserError, match="are in http://user:…@host, not in http://user:…@other") as refused:
        _check_same_store(study, stored, server(f"http://user:{SECRET}@other"))
    assert SECRET not in str(refused.value)
