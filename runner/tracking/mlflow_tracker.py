"""The tracker that logs to MLflow: it writes to a journal on disk, which a thread uploads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.tracking.journal import HEARTBEAT_INTERVAL, Event, Journal, Owner
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.model_registry import ModelInfo
from runner.tracking.tracker import Tracker
from runner.tracking.uploader import (
    EXITED_UNEXPECTEDLY,
    STOPPED_UPLOAD_TIMEOUT,
    UPLOAD_TIMEOUT,
    Uploader,
    failing_store,
    short_reason,
)
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.heartbeat import Heartbeat
from runner.utils.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_PARAM = 6000
LONGEST_TAG = 5000
"""Characters that MLflow stores."""


class MlflowTracker(Tracker):
    """Logs a run to a journal, which a thread uploads to MLflow.

    Args:
        server: Its root holds the journal.
        client: Of that server.
        run_id: The run, which exists in MLflow.
        name: Its name.
        resume: It was interrupted and is resumed: what it logged before is not logged twice.
        terminal: Shows when the server stops answering, and when it is back.

    Raises FileExistsError if another process works on a run to resume, FileNotFoundError if it cannot be resumed.
    """

    def __init__(
        self,
        server: TrackingServer,
        client: MlflowClient,
        run_id: str,
        name: str,
        resume: bool = False,
        terminal: Terminal | None = None,
    ) -> None:
        self.run_id = run_id
        self.name = name
        self.delivered = False
        owner = Owner.this_process(server.uri, run_id)
        self.journal = (Journal.take_over if resume else Journal.create)(server.journals, owner)
        self._earlier = self.journal.events() if resume else []
        """Events from before the interruption."""
        self._logged_points = {
            (name, event["step"]) for event in self._earlier_of("metrics") for name in event["values"]
        }
        self._logged_params = {name for event in self._earlier_of("params") for name in event["values"]}
        if self._earlier and self.journal.ended:
            self.journal.append({"kind": "begin"})
        self._terminal = terminal
        self._away = ""
        """What the terminal shows not to take records at present; empty if nothing."""
        self.uploader = Uploader(self.journal, client)
        self.uploader.start()
        self._heartbeat = Heartbeat(self.journal.heartbeat, HEARTBEAT_INTERVAL)
        self._heartbeat.start()

    def _earlier_of(self, kind: str) -> list[Event]:
        return [event for event in self._earlier if event["kind"] == kind]

    def has_logged(self, kind: str) -> bool:
        return bool(self._earlier_of(kind))

    def logged_artifacts(self, prefix: str) -> list[str]:
        names = (event["file"] for event in self._earlier_of("artifact"))
        return [name for name in names if name.startswith(prefix)]

    @property
    def earlier_end(self) -> tuple[str, str]:
        """Status and reason with which the run ended before it was resumed."""
        ends = [event["status"] for event in self._earlier_of("end")]
        tags = [event["values"] for event in self._earlier_of("tags")]
        reasons = [values["runner.reason"] for values in tags if "runner.reason" in values]
        return (ends or ["KILLED"])[-1], (reasons or [EXITED_UNEXPECTEDLY])[-1]

    def last_step(self, prefix: str) -> int:
        """The last step, before the run was resumed, of metrics whose names start with `prefix`; -1 if none."""
        return max((step for name, step in self._logged_points if name.startswith(prefix)), default=-1)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        values = {name: value for name, value in values.items() if (name, step) not in self._logged_points}
        if not values:
            return
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._log({"kind": "metrics", "step": step, "time": self.journal.now_ms(), "values": finite})
        # MLflow would store another number in place of these.
        if others := {name: value for name, value in values.items() if name not in finite}:
            self.set_tags({f"runner.{name}": f"{value} at step {step}" for name, value in others.items()})

    def log_params(self, values: dict[str, Any]) -> None:
        texts = {
            name: redact(str(value))[:LONGEST_PARAM]
            for name, value in values.items()
            if name not in self._logged_params
        }
        self._log({"kind": "params", "values": texts})

    def set_tags(self, values: dict[str, str]) -> None:
        texts = {name: redact(value)[:LONGEST_TAG] for name, value in values.items()}
        self._log({"kind": "tags", "values": texts})

    def log_text(self, name: str, content: str) -> None:
        path = self.artifact_path(name)
        write_text(path, content)
        self.log_artifact(path)

    def artifact_path(self, name: str) -> Path:
        return self.journal.artifact_path(name)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        name = path.relative_to(self.journal.folder / "files").as_posix()
        self._log({"kind": "artifact", "file": name, "folder": folder})

    def log_dataset(self, name: str, digest: str, source: str, profile: str, context: str) -> None:
        event = {"kind": "input", "name": name, "digest": digest, "source": source, "profile": profile}
        if name not in [earlier["name"] for earlier in self._earlier_of("input")]:
            self._log({**event, "context": context})

    def local_folder(self, name: str) -> Path:
        return self.journal.folder / name

    def log_model(self, folder: Path, info: ModelInfo) -> None:
        content = {**info.to_dict(), "time": self.journal.now_ms()}
        self._log({"kind": "model", "folder": folder.name, "info": content})

    def begin_again(self) -> None:
        """Make a run RUNNING that may have ended, without the reason of that end."""
        self._log({"kind": "begin"})

    def end(self, status: str, reason: str, terminal: Terminal, hint: str = "") -> bool:
        """Log how the run ended and wait until that is uploaded. Returns whether it was.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: Why it did not finish.
            terminal: Shows what could not be uploaded.
            hint: How to resume the run, shown if it can be resumed.
        """
        if reason:
            self.set_tags({"runner.reason": reason})
        self._log({"kind": "end", "status": status, "time": self.journal.now_ms()})
        timeout = STOPPED_UPLOAD_TIMEOUT if status == "KILLED" else None
        if self.uploader.error is not None:
            seconds = timeout or UPLOAD_TIMEOUT
            away = failing_store(self.uploader.error)
            terminal.line(f"waiting up to {seconds:.0f} s for {away} to take the last records")
        delivered = self.delivered = self.uploader.close(timeout)
        self._heartbeat.stop()
        if self._away and delivered:
            terminal.line(f"{self._away} is back, and has all records")
        for message in self.journal.messages:
            terminal.line(message)
        resumable = self.journal.resumable
        if resumable and self.uploader.stop():  # whoever resumes the run delivers the rest
            self.journal.release()
        elif delivered:
            self.journal.remove()
        if not delivered:
            why = short_reason(self.uploader.error) if self.uploader.error else "it takes too long"
            terminal.warn(
                f"not all records could be delivered ({why}); they wait in"
                f" {self.journal.folder} until ./launch.sh sync, or the next run, delivers them"
            )
        self.deleted = self.journal.run_deleted
        if self.deleted:
            terminal.warn(
                f"run {self.run_id[:8]} was deleted in MLflow while it ran; its records are not there"
            )
        elif resumable and hint:
            terminal.warn(hint)
        return delivered

    def _log(self, event: Event) -> None:
        self.journal.append(event)
        self.uploader.notify()
        error = self.uploader.error
        if self._terminal is not None and bool(self._away) != (error is not None):
            if error is None:
                self._terminal.line(f"{self._away} is back, and gets what it missed")
                self._away = ""
            else:
                self._away = failing_store(error)
                self._terminal.warn(
                    f"{short_reason(error)}; training continues, and the records wait on disk"
                )
