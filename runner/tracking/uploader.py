"""Delivers a journal to MLflow: in batches, in order, once each, and again after an outage."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import Timeout

from runner.tracking.journal import GONE, Event, Journal, is_alive, this_host
from runner.tracking.mlflow_server import Server
from runner.tracking.model_registry import deliver as deliver_model
from runner.utils.atomic_files import flush
from runner.utils.console import Terminal
from runner.utils.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 90
"""Events in one request: each holds few values, and MLflow takes 1,000 metrics or 100 tags at once."""
LAST_PATIENCE = 60.0
"""Seconds that the end of a run waits for a server that does not answer."""
STOPPED_PATIENCE = 15.0
"""The same of a run that was told to stop: launchers kill what does not end in 30 s."""
ERRING = "error responses"
"""What a library says of a server that answers with errors again and again."""
UNREACHABLE = ("Max retries exceeded", "Connection aborted", "Connection refused", "timed out")
"""What a library says of one that is away."""
LONGEST = 200
"""Characters of what a library says."""
DIED = "its process died without a word"
"""Why a run was KILLED that did not say so itself."""
PERMANENT = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"})
"""Answers that asking again does not change."""


def deliver(journal: Journal, client: MlflowClient) -> bool:
    """Deliver what is pending; True when the run's end was among it.

    Repeating a delivery that was not marked does no harm: MLflow keeps one point for the same metric, step,
    time and value, and the rest is set, not added.

    Raises whatever MLflow does when the server is out of reach.
    """
    ended = False
    pending = journal.pending()
    while pending:
        head = pending[0][1]["kind"]
        batch = [pending.pop(0)]
        if head in ("metrics", "params", "tags"):
            while pending and len(batch) < BATCH and pending[0][1]["kind"] in ("metrics", "params", "tags"):
                batch.append(pending.pop(0))
        _send([event for _, event in batch], journal, client)
        ended = head == "end" or (ended and head != "begin")
        journal.mark_sent(batch[-1][0])
    return ended


def _send(events: list[Event], journal: Journal, client: MlflowClient) -> None:
    from mlflow.exceptions import MlflowException

    try:
        if events[0]["kind"] == "model":
            _send_model(events[0], journal, client)
        else:
            _request(events, journal, client)
    except MlflowException as error:
        if error.error_code not in PERMANENT:
            raise
        if len(events) > 1:  # the others are not to blame
            for event in events:
                _send([event], journal, client)
        elif not _is_gone(journal.owner.run_id, client):
            client.set_tag(journal.owner.run_id, "runner.refused", redacted(str(error))[:5000])


def _send_model(event: Event, journal: Journal, client: MlflowClient) -> None:
    """Log and register a model. A server that takes none must not keep the run from ending."""
    run_id, folder = journal.owner.run_id, journal.folder / event["folder"]
    if not folder.exists():  # it goes only after delivery, so a missing one was delivered
        return
    lock = journal.folder.parent / ".champion.lock"
    try:
        said = deliver_model(client, run_id, folder, event["told"], lock)
    except Exception as error:
        if not _refuses(error):
            raise
        said = f"the model was not logged: the server refuses it ({redacted(' '.join(str(error).split()))[:300]})"
        client.set_tag(run_id, "runner.refused", said)
    else:
        client.set_tag(run_id, "runner.champion", said)
    journal.said.append(said)
    shutil.rmtree(folder)


def _refuses(error: Exception) -> bool:
    """Whether asking again would be in vain: artifact stores answer in HTTP, MLflow with codes of its own."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    code = getattr(error, "error_code", None)
    return code in {*PERMANENT, "ENDPOINT_NOT_FOUND"} or (status is not None and 400 <= status < 500)


def briefly(fault: Exception) -> str:
    """What a library says of a fault, without what it would have done and where to read more."""
    text = redacted(str(fault).strip().split("\n", 1)[0])
    if ERRING in text:
        return "the tracking server answers with errors"
    if any(each in text for each in UNREACHABLE):
        return "the tracking server does not answer"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _is_gone(run_id: str, client: MlflowClient) -> bool:
    """Whether a run was deleted in MLflow: then nobody wants its records."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) != "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise


def _request(events: list[Event], journal: Journal, client: MlflowClient) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    run_id = journal.owner.run_id
    event = events[0]
    if event["kind"] == "artifact":
        path = journal.stage(event["file"])
        if path.exists():  # it goes only after delivery, so a missing one was delivered
            _send_file(path, event["folder"], journal, client)
    elif event["kind"] == "input":
        dataset = Dataset(event["name"], event["digest"], "local", event["source"], profile=event["profile"])
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    elif event["kind"] == "begin":
        _begin_again(run_id, client)
    elif event["kind"] == "end":
        client.set_terminated(run_id, event["status"], event["time"])
    else:
        metrics, params, tags = [], [], []
        for each in events:
            values = each["values"].items()
            if each["kind"] == "metrics":
                metrics += [Metric(name, value, each["time"], each["step"]) for name, value in values]
            elif each["kind"] == "params":
                params += [Param(name, value) for name, value in values]
            else:
                tags += [RunTag(name, value) for name, value in values]
        client.log_batch(run_id, metrics, params, tags)


def _send_file(path: Path, folder: str, journal: Journal, client: MlflowClient) -> None:
    """Deliver a staged file, and remove it: that very file, not one that has taken its name meanwhile."""
    sent, run_id = path.stat().st_ino, journal.owner.run_id
    client.log_artifact(run_id, str(path), folder or None)
    with suppress(FileNotFoundError):
        if journal.owner.uri.startswith("sqlite:"):  # it was copied, and is not flushed yet
            place = urlsplit(client.get_run(run_id).info.artifact_uri)
            if place.scheme == "file":
                flush(Path(unquote(place.path)) / folder / path.name)
        if path.stat().st_ino == sent:
            path.unlink()


def _begin_again(run_id: str, client: MlflowClient) -> None:
    """A run that had ended goes on: what was said of that end holds no longer."""
    client.update_run(run_id, status="RUNNING")
    if "runner.reason" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "runner.reason")


class Shipper(threading.Thread):
    """A thread that delivers a run's journal as it grows; training never waits for it."""

    def __init__(self, journal: Journal, client: MlflowClient) -> None:
        super().__init__(name="shipper", daemon=True)
        self.journal = journal
        self.client = client
        self._more = threading.Event()
        self._closing = threading.Event()
        self.fault: Exception | None = None

    def wake(self) -> None:
        """There is something new."""
        self._more.set()

    def run(self) -> None:
        """Deliver until the run's end is delivered, or the last patience is over."""
        wait = 0.5
        while True:
            self._more.wait()
            self._more.clear()
            closing = self._closing.is_set()  # the end that counts is written down then
            try:
                deliver(self.journal, self.client)
                self.fault, wait = None, 0.5
            except Exception as fault:
                self.fault = fault
                self._more.set()
                if self._closing.wait(wait):
                    time.sleep(min(wait, 2))
                wait = min(2 * wait, 30)
                continue
            if closing:
                return

    def close(self, patience: float | None = None) -> bool:
        """Wait for the end to be delivered; False where that was not enough.

        Args:
            patience: Seconds at most; None: as long as something gets through, and a while from the last fault on.
        """
        self._closing.set()
        self.wake()
        if patience is not None:
            self.join(patience)
            return self._done
        until = None
        while self.is_alive():
            self.join(0.1)
            if self.fault is None:
                until = None
            elif until is None:
                until = time.monotonic() + LAST_PATIENCE
            elif time.monotonic() > until:
                break
        return self._done

    @property
    def _done(self) -> bool:
        return not self.is_alive() and not self.journal.pending()


def recover(server: Server, client: MlflowClient, terminal: Terminal) -> None:
    """Deliver what earlier runs could not, and close those whose process died, or fell silent on another host.

    Nothing stays RUNNING that does not run.
    """
    for listed in Journal.find(server.root / "journals"):
        if listed.alive or redacted(listed.owner.uri) != redacted(server.uri):
            continue
        try:
            with Journal.gripped(listed.folder) as journal:  # somebody may have taken it over since
                if journal is not None and not journal.alive:
                    _close(journal, client, terminal)
        except Timeout:
            continue  # another process is at it
    for rubbish in (server.root / "journals").glob(f"*{GONE}"):
        shutil.rmtree(rubbish, ignore_errors=True)
    waiting = {journal.owner.run_id for journal in Journal.find(server.root / "journals")}
    _sweep(client, waiting, terminal)


def _close(journal: Journal, client: MlflowClient, terminal: Terminal) -> None:
    journal.mend()
    if not journal.ended:
        for name, folder in journal.unannounced():
            journal.append({"kind": "artifact", "file": name, "folder": folder})
        status = "FAILED" if _has_failed(journal, client) else "KILLED"
        if status == "KILLED":
            journal.append({"kind": "tags", "values": {"runner.reason": DIED}})
            terminal.warn(f"closed run {journal.owner.run_id} as KILLED: {DIED}")
        journal.append({"kind": "end", "status": status, "time": journal.now_ms()})
    try:
        deliver(journal, client)
    except Exception as error:
        terminal.warn(
            f"the records of run {journal.owner.run_id} could not be delivered yet ({briefly(error)})"
        )
    else:
        for line in journal.said:
            terminal.line(line)
        if not journal.stays:
            journal.remove()


def _has_failed(journal: Journal, client: MlflowClient) -> bool:
    """Whether a run's end reached MLflow though there was no room to write it down here."""
    if any(event["kind"] == "begin" for _, event in journal.pending()):
        return False  # that was an earlier end
    try:
        return str(client.get_run(journal.owner.run_id).info.status) == "FAILED"
    except Exception:  # it is out of reach: what is known here counts
        return False


def is_dead(tags: dict[str, str]) -> bool:
    """Whether the process of this host that a run's tags name is gone; tags that a person changed name none."""
    try:
        return not is_alive(int(tags["runner.pid"]), float(tags["runner.started"]))
    except (KeyError, ValueError, OverflowError):
        return False


def end_as_killed(client: MlflowClient, run_id: str) -> None:
    """Close a run whose process has died and which has no journal."""
    client.set_tag(run_id, "runner.reason", DIED)
    client.set_terminated(run_id, "KILLED")


def _sweep(client: MlflowClient, journals: set[str], terminal: Terminal) -> None:
    """Close runs of this host that are RUNNING in MLflow, have no journal, and whose process is dead."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    mine = f"attributes.status = 'RUNNING' and tags.`runner.host` = '{this_host()}'"
    for run in client.search_runs(experiments, mine, max_results=1000):
        if run.info.run_id not in journals and is_dead(run.data.tags):
            end_as_killed(client, run.info.run_id)
            terminal.warn(f"closed run {run.info.run_id} as KILLED: its process is gone")
