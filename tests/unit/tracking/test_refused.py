"""Which errors mean that a store never takes a record, and what is set aside then."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from requests import ConnectionError as NoConnection
from requests import HTTPError, Response
from stores import RecordingClient, end, metric

from runner.tracking.journal import Journal, Owner
from runner.tracking.refused import is_permanent, read_refused, refused_folder
from runner.tracking.uploader import deliver


def http_error(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} error", response=response)


def mlflow_error(code: int, message: str = "no", cause: Exception | None = None) -> MlflowException:
    error = MlflowException(message, error_code=code)
    error.__cause__ = cause
    return error


class ObjectStoreError(Exception):
    """As botocore's errors."""

    def __init__(self, status: int | None) -> None:
        super().__init__("no")
        if status:
            self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


UNICODE = UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (mlflow_error(codes.INVALID_PARAMETER_VALUE), True),
        (mlflow_error(codes.INTERNAL_ERROR, cause=UNICODE), True),
        (OSError(errno.ENAMETOOLONG, "too long"), True),
        (http_error(413), True),
        (ObjectStoreError(404), True),
        (mlflow_error(codes.TEMPORARILY_UNAVAILABLE), False),
        (mlflow_error(codes.INTERNAL_ERROR, "failed", NoConnection("refused")), False),
        (mlflow_error(codes.INTERNAL_ERROR, "too many 500 error responses"), False),
        (mlflow_error(codes.INTERNAL_ERROR, "API request to http://a failed with exception x"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (http_error(503), False),
        (http_error(401), False),
        (ObjectStoreError(403), False),
        (mlflow_error(codes.PERMISSION_DENIED), False),
        (http_error(429), False),
        (ObjectStoreError(503), False),
        (ObjectStoreError(None), False),
        (ConnectionError("away"), False),
        (RuntimeError("who knows"), False),
        (mlflow_error(codes.INTERNAL_ERROR, "configure your login"), None),
        (TypeError("not a number"), None),
    ],
)
def test_which_errors_last(error: Exception, permanent: bool | None) -> None:
    assert is_permanent(error) is permanent


class RefusingClient(RecordingClient):
    """A client that answers with an error to artifacts, as often as `failures` says."""

    def __init__(self, error: Exception, failures: int = 10**9) -> None:
        super().__init__()
        self.error = error
        self.failures = failures
        self.tags: dict[str, str] = {}

    def log_artifact(self, run: str, path: str, folder: str | None) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise self.error
        super().log_artifact(run, path, folder)

    def get_run(self, _run: str) -> Any:
        info = SimpleNamespace(lifecycle_stage="active", artifact_uri="")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=self.tags))

    def set_tag(self, _run: str, name: str, value: str) -> None:
        self.tags[name] = value


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal with a metric, a file, another metric and the end."""
    journal = Journal.create(tmp_path / "journals", Owner.this_process("nowhere", "run"))
    journal.artifact_path("figures/loss.png").write_text("x")
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "artifact", "file": "figures/loss.png", "folder": "figures"})
    journal.append(metric("loss", 1.0, 2))
    journal.append(end())
    return journal


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.tracking.uploader.FIRST_RETRY", 0.0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENAMETOOLONG, "too long"), mlflow_error(codes.INTERNAL_ERROR)]
)
def test_a_record_that_is_never_taken_is_set_aside_and_the_rest_delivered(
    journal: Journal, error: Exception
) -> None:
    client: Any = RefusingClient(error)
    assert deliver(journal, client) is True
    assert client.calls == ["metric loss 1", "metric loss 2", "end FINISHED"]
    assert journal.pending() == []
    folder = refused_folder(journal)
    assert folder == journal.folder.parent.parent / "refused" / "run"
    assert (folder / "files" / "figures" / "loss.png").read_text() == "x"
    assert [entry["file"] for entry in read_refused(folder)] == ["figures/loss.png"]
    assert "figures/loss.png" in client.tags["runner.refused"]
    (message,) = journal.messages
    assert "figures/loss.png" in message
    assert str(folder) in message


def test_an_error_of_unknown_meaning_may_pass(journal: Journal) -> None:
    client: Any = RefusingClient(mlflow_error(codes.INTERNAL_ERROR), failures=2)
    assert deliver(journal, client) is True
    assert "artifact figures/loss.png" in client.calls
    assert client.tags == {}
    assert not refused_folder(journal).exists()


def test_a_store_that_is_away_refuses_nothing(journal: Journal) -> None:
    client: Any = RefusingClient(OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        deliver(journal, client)
    assert len(journal.pending()) == 3
    assert not refused_folder(journal).exists()


def test_nothing_is_set_aside_unless_the_run_can_say_so(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = RefusingClient(OSError(errno.ENAMETOOLONG, "too long"))

    def away(*_: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(client, "set_tag", away)
    with pytest.raises(ConnectionError):
        deliver(journal, client)
    assert journal.artifact_path("figures/loss.png").exists()
    assert not refused_folder(journal).exists()


def test_bytes_of_a_file_name_that_is_not_utf8_are_readable(journal: Journal) -> None:
    client: Any = RefusingClient(OSError(), 0)
    sent: list[Any] = []
    client.log_batch = lambda run, metrics, params, tags: sent.extend((*params, *tags))
    client.log_inputs = lambda run, inputs: sent.append(inputs[0].dataset.source)
    journal.append({"kind": "params", "values": {"data.root": "/caf\udce9"}})
    journal.append({"kind": "tags", "values": {"note": "\udce9"}})
    journal.append({"kind": "input", "name": "a", "digest": "d", "source": "/caf\udce9", "profile": "{}"})
    deliver(journal, client)
    assert [getattr(each, "value", each) for each in sent] == ["/caf\\xe9", "\\xe9", "/caf\\xe9"]
