"""Uploads a journal to MLflow: in batches, in order, each event once, and again after an outage."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking import artifact_store
from runner.tracking.journal import Event, Journal
from runner.tracking.mlflow_server import MLFLOW_DEFAULTS
from runner.tracking.model_registry import MODEL_TAG, ModelInfo, register_model
from runner.tracking.refused import SERVER_ERRORS, UNREACHABLE, is_permanent, set_aside, wants_login
from runner.utils.atomic_files import sync_tree
from runner.utils.file_systems import is_sqlite
from runner.utils.hard_links import link_instead_of_copy
from runner.utils.paths import local_path
from runner.utils.redaction import redact
from runner.utils.text import valid_unicode

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH_SIZE = 90
"""Events per request. Each has few values; MLflow takes up to 1,000 metrics or 100 tags at a time."""
BATCHED = ("metrics", "params", "tags")
"""Kinds of events that go into one request together."""
UPLOAD_TIMEOUT = 60.0
"""Seconds that the end of a run waits for a server that does not answer."""
STOPPED_UPLOAD_TIMEOUT = 15.0
"""The same for a run that was stopped: launchers kill what has not exited 30 s after the signal."""
STOP_TIMEOUT = 5.0
"""Seconds that an uploader which is to stop gets for its present request."""
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds between two attempts; doubled after each."""
EXITED_UNEXPECTEDLY = "the process exited unexpectedly"
"""The reason of a run that was KILLED and could not log one."""
REQUEST_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
SLOWEST_STORE = 1e6
"""Bytes per second that the store behind a server takes at least."""
ATTEMPTS = 3
"""How often a record is sent that the store answers with an error of unknown meaning, before it is set aside."""
NOT_ANSWERING = "the tracking server does not answer"
LONGEST_REASON = 200
"""Characters of an error message that are shown."""


def deliver(
    journal: Journal, client: MlflowClient, stop_requested: Callable[[], bool] = lambda: False
) -> bool:
    """Upload the pending events. Returns whether the run's end was the last of them.

    `stop_requested` is called before each request: whether to leave the rest for later.

    Uploading an event twice is harmless: MLflow stores one point for the same metric, step, time and value, and
    everything else is set, not added.

    Raises whatever MLflow raises when the server does not answer.
    """
    ended = False
    pending = journal.pending()
    while pending and not stop_requested():
        kind = pending[0][1]["kind"]
        batch = [pending.pop(0)]
        if kind in BATCHED:
            while pending and len(batch) < BATCH_SIZE and pending[0][1]["kind"] in BATCHED:
                batch.append(pending.pop(0))
        _send([event for _, event in batch], journal, client)
        ended = kind == "end" or (ended and kind != "begin")
        journal.mark_sent(batch[-1][0])
    return ended


def _send(events: list[Event], journal: Journal, client: MlflowClient) -> None:
    """Upload a batch; what the store can never take is set aside.

    Raises whatever MLflow raises when the server does not answer.
    """
    error = _attempt(events, journal, client)
    if error is None:
        return
    if len(events) > 1:  # one of them is refused, not all
        for event in events:
            _send([event], journal, client)
    elif _is_deleted(journal.owner.run_id, client):
        journal.run_deleted = True
    else:
        set_aside(events[0], error, journal, client)


def _attempt(events: list[Event], journal: Journal, client: MlflowClient) -> Exception | None:
    """Upload a batch. Returns the error of one that can never be uploaded; raises that of one that is to wait."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_RETRY * attempt)
        try:
            _request(events, journal, client)
            return None
        except Exception as error:
            permanent, failure = is_permanent(error), error
            if _only_registry_refuses(events[0], error, journal, client):
                break
            if permanent is False:
                raise
            if permanent:
                break
    return failure


def _only_registry_refuses(event: Event, error: Exception, journal: Journal, client: MlflowClient) -> bool:
    """Whether the run has its model already, and a registry that wants a login does not take it."""
    if event["kind"] != "model" or not wants_login(error):
        return False
    return MODEL_TAG in client.get_run(journal.owner.run_id).data.tags


def _send_model(event: Event, journal: Journal, client: MlflowClient) -> None:
    """Log and register a model."""
    run_id, folder = journal.owner.run_id, journal.folder / event["folder"]
    if not folder.exists():  # it is removed after delivery only
        return
    with _time_to_pass_on(*folder.rglob("*")):
        message = register_model(client, run_id, folder, ModelInfo.from_dict(event["info"]))
    client.set_tag(run_id, "runner.champion", message)
    journal.messages.append(message)
    shutil.rmtree(folder)


def _is_deleted(run_id: str, client: MlflowClient) -> bool:
    """Whether a run was deleted in MLflow: then nobody needs its records."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) != "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise


def failing_store(error: Exception) -> str:
    """What does not take the records, for messages."""
    return "the artifact store" if artifact_store.describe(error) else "the tracking server"


def short_reason(error: Exception) -> str:
    """The first line of a library's error, or a plain sentence if it says that the server is away."""
    if store := artifact_store.describe(error):
        return f"the artifact store does not take files: {store}"
    text = redact(str(error).strip().split("\n", 1)[0])
    if SERVER_ERRORS in text:
        return "the tracking server answers with errors"
    if any(each in text for each in UNREACHABLE):
        return NOT_ANSWERING
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def _request(events: list[Event], journal: Journal, client: MlflowClient) -> None:
    """Upload a batch of events."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run_id, event = journal.owner.run_id, events[0]
    match event["kind"]:
        case "artifact":
            path = journal.artifact_path(event["file"])
            if path.exists():  # it is removed after delivery only
                _send_file(path, event["folder"], journal, client)
        case "model":
            _send_model(event, journal, client)
        case "input":
            name, source, profile = (valid_unicode(event[field]) for field in ("name", "source", "profile"))
            dataset = Dataset(name, event["digest"], "local", source, profile=profile)
            context = InputTag("mlflow.data.context", str(event.get("context", "training")))
            client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        case "begin":
            _begin_again(run_id, client)
        case "end":
            client.set_terminated(run_id, event["status"], event["time"])
        case _:
            _send_values(events, run_id, client)


def _send_values(events: list[Event], run_id: str, client: MlflowClient) -> None:
    """Upload metrics, parameters and tags in one request."""
    from mlflow.entities import Metric, Param, RunTag

    metrics, params, tags = [], [], []
    for event in events:
        values = event["values"].items()
        if event["kind"] == "metrics":
            metrics += [Metric(name, value, event["time"], event["step"]) for name, value in values]
        elif event["kind"] == "params":
            params += [Param(name, valid_unicode(value)) for name, value in values]
        else:
            tags += [RunTag(name, valid_unicode(value)) for name, value in values]
    client.log_batch(run_id, metrics, params, tags)


def _send_file(path: Path, folder: str, journal: Journal, client: MlflowClient) -> None:
    """Upload a file and remove it, unless another file has taken its name in the meantime."""
    sent, run_id = path.stat().st_ino, journal.owner.run_id
    place = local_path(client.get_run(run_id).info.artifact_uri) if is_sqlite(journal.owner.uri) else None
    if place is None or not link_instead_of_copy(path, place / folder / path.name):
        with _time_to_pass_on(path):
            client.log_artifact(run_id, str(path), folder or None)
    with suppress(FileNotFoundError):
        if place is not None:  # MLflow has copied it, but not flushed the copy
            sync_tree(place / folder / path.name)
        if path.stat().st_ino == sent:
            path.unlink()


@contextmanager
def _time_to_pass_on(*paths: Path) -> Iterator[None]:
    """Within the block a server has time to pass each of these files on to its own store before it answers.

    Nothing changes if the environment sets the timeout of requests.
    """
    default = MLFLOW_DEFAULTS[REQUEST_TIMEOUT]
    if os.environ.get(REQUEST_TIMEOUT) != default:
        yield
        return
    largest = max((path.stat().st_size for path in paths), default=0)
    os.environ[REQUEST_TIMEOUT] = str(int(default) + int(largest / SLOWEST_STORE))
    try:
        yield
    finally:
        os.environ[REQUEST_TIMEOUT] = default


def _begin_again(run_id: str, client: MlflowClient) -> None:
    """Make a run RUNNING again that had ended, and remove the reason of that end."""
    client.update_run(run_id, status="RUNNING")
    if "runner.reason" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "runner.reason")


class Uploader(threading.Thread):
    """A thread that uploads a run's journal as it grows; training never waits for it."""

    def __init__(self, journal: Journal, client: MlflowClient) -> None:
        super().__init__(name="uploader", daemon=True)
        self.journal = journal
        self.client = client
        self.error: Exception | None = None
        """Why the last attempt failed; None if it did not."""
        self._pending = threading.Event()
        self._closing = threading.Event()
        self._stopping = threading.Event()

    def notify(self) -> None:
        """Tell the thread that the journal has grown."""
        self._pending.set()

    def run(self) -> None:
        """Upload until `close` is called and everything is delivered, or until `stop` is called."""
        wait = FIRST_RETRY
        while not self._stopping.is_set():
            self._pending.wait()
            self._pending.clear()
            # Read before uploading: what was logged earlier is then included.
            closing = self._closing.is_set()
            try:
                deliver(self.journal, self.client, self._stopping.is_set)
                self.error, wait = None, FIRST_RETRY
            except Exception as error:
                self.error = error
                self._pending.set()
                if self._closing.wait(wait):
                    self._stopping.wait(min(wait, 2))
                wait = min(2 * wait, LAST_RETRY)
                continue
            if closing:
                return

    def close(self, timeout: float | None = None) -> bool:
        """Wait until everything is delivered. Returns whether it was.

        Args:
            timeout: Seconds at most; None waits while uploads succeed, and `UPLOAD_TIMEOUT` after the last success.
        """
        self._closing.set()
        self.notify()
        if timeout is not None:
            self.join(timeout)
            return self._finished
        deadline = None
        while self.is_alive():
            self.join(0.1)
            if self.error is None:
                deadline = None
            elif deadline is None:
                deadline = time.monotonic() + UPLOAD_TIMEOUT
            elif time.monotonic() > deadline:
                break
        return self._finished

    def stop(self) -> bool:
        """Stop after the present request; the rest stays in the journal. Returns whether the thread has ended."""
        self._stopping.set()
        self.notify()
        self.join(STOP_TIMEOUT)
        return not self.is_alive()

    @property
    def _finished(self) -> bool:
        return not self.is_alive() and not self.journal.pending()
