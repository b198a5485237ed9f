"""The life of a run: begun, told of every step, ended with the truth. Only rank 0 has one that does anything."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.tracking.journal import PULSE, Journal, me
from runner.tracking.mlflow_server import Server
from runner.tracking.uploader import DIED, LAST_PATIENCE, STOPPED_PATIENCE, Shipper, briefly
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import (
    Diverged,
    Interrupted,
    NotResumable,
    UserError,
    failed_elsewhere,
    sentence,
    undisturbed,
)
from runner.utils.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

SYSTEM_INTERVAL = 5.0
"""Seconds between two samples of the system's use."""


class Pruned(Exception):  # noqa: N818 (it is an end, not an error)
    """A trial was given up: others do better. Its run ends as KILLED, with the reason."""


class Tracker:
    """Records of a run that nobody keeps: what ranks beyond the first hold."""

    run_id = ""
    name = ""
    delivered = True
    """All that was recorded has reached MLflow."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Points of named curves at a step."""

    def params(self, values: dict[str, Any]) -> None:
        """Settings by dotted name."""

    def tags(self, values: dict[str, str]) -> None:
        """Notes by name."""

    def text(self, name: str, content: str) -> None:
        """An artifact of text."""

    def stage(self, name: str) -> Path:
        """Where to write an artifact before `artifact` is told of it. Only for rank 0."""
        raise NotImplementedError

    def artifact(self, path: Path, folder: str = "") -> None:
        """A staged file, to be put into a folder of the run's artifacts."""

    def dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """The data that the run is about."""

    def model(self, folder: Path, told: dict[str, Any]) -> None:
        """A model that was written to `folder`, a name under `room`; `told` as `registry.deliver` takes it."""

    def room(self, name: str) -> Path:
        """Where to write something that is delivered whole, or stays with the run. Only for rank 0."""
        raise NotImplementedError

    def recorded(self, kind: str, beginning: str = "", ending: str = "") -> bool:
        """Whether this run, before it was interrupted, recorded such an event: artifacts are told by their name."""
        return False


class MlflowTracker(Tracker):
    """Records of a run in a journal, which a thread delivers to MLflow.

    Args:
        server: Where the journal lies.
        client: Of that server.
        run_id: The run.
        name: Its name.
        again: It was interrupted and goes on: what it recorded before is not recorded twice.
        terminal: Hears when the server goes away, and when it is back.

    Raises FileExistsError or FileNotFoundError where somebody else has a run that is to go on, or has ended it.
    """

    def __init__(
        self,
        server: Server,
        client: MlflowClient,
        run_id: str,
        name: str,
        again: bool = False,
        terminal: Terminal | None = None,
    ) -> None:
        self.run_id = run_id
        self.name = name
        root, owner = server.root / "journals", me(server.uri, run_id)
        self.journal = Journal.claim(root, owner) if again else Journal.create(root, owner)
        self._before = self.journal.events() if again else []
        self._points = {
            (name, event["step"])
            for event in self._before
            if event["kind"] == "metrics"
            for name in event["values"]
        }
        self._params = {
            name for event in self._before if event["kind"] == "params" for name in event["values"]
        }
        if self._before and self.journal.ended:
            self.journal.append({"kind": "begin"})
        self.delivered = False
        self._terminal = terminal
        self._away = False
        """The server was out of reach when this was last looked at."""
        self.shipper = Shipper(self.journal, client)
        self.shipper.start()
        self._pulse = Pulse(self.journal)
        self._pulse.start()

    def recorded(self, kind: str, beginning: str = "", ending: str = "") -> bool:
        names = [event.get("file", "") for event in self._before if event["kind"] == kind]
        return any(name.startswith(beginning) and name.endswith(ending) for name in names)

    @property
    def former_end(self) -> tuple[str, str]:
        """State and reason of the run when it was interrupted."""
        ends = [event["status"] for event in self._before if event["kind"] == "end"]
        tags = [event["values"] for event in self._before if event["kind"] == "tags"]
        reasons = [values["runner.reason"] for values in tags if "runner.reason" in values]
        return (ends or ["KILLED"])[-1], (reasons or [DIED])[-1]

    def last_step(self, beginning: str) -> int:
        """The last step of the metrics whose names begin so, before the run was interrupted; -1: there is none."""
        return max((step for name, step in self._points if name.startswith(beginning)), default=-1)

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        values = {name: value for name, value in values.items() if (name, step) not in self._points}
        if not values:
            return
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._record({"kind": "metrics", "step": step, "time": self.journal.now_ms(), "values": finite})
        if odd := {
            f"runner.{name}": f"{value} at step {step}"
            for name, value in values.items()
            if name not in finite
        }:
            self.tags(odd)  # MLflow would store another number

    def params(self, values: dict[str, Any]) -> None:
        said = {
            name: redacted(str(value))[:6000] for name, value in values.items() if name not in self._params
        }
        self._record({"kind": "params", "values": said})

    def tags(self, values: dict[str, str]) -> None:
        self._record(
            {"kind": "tags", "values": {name: redacted(value)[:5000] for name, value in values.items()}}
        )

    def text(self, name: str, content: str) -> None:
        path = self.stage(name)
        write_text(path, content)
        self.artifact(path)

    def stage(self, name: str) -> Path:
        return self.journal.stage(name)

    def artifact(self, path: Path, folder: str = "") -> None:
        name = path.relative_to(self.journal.folder / "files").as_posix()
        self._record({"kind": "artifact", "file": name, "folder": folder})

    def dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        if self.recorded("input"):
            return
        self._record({"kind": "input", "name": name, "digest": digest, "source": source, "profile": profile})

    def room(self, name: str) -> Path:
        return self.journal.folder / name

    def model(self, folder: Path, told: dict[str, Any]) -> None:
        self._record(
            {"kind": "model", "folder": folder.name, "told": {**told, "time": self.journal.now_ms()}}
        )

    def end(self, status: str, reason: str, terminal: Terminal, hint: str = "") -> bool:
        """Write down how it ended and see it delivered, or say that it will be later: whether it is.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: Why, if it did not finish.
            terminal: Hears of what is left.
            hint: How it can be gone on with, where it can; empty: that is not for its user to do.
        """
        if reason:
            self.tags({"runner.reason": reason})
        self._record({"kind": "end", "status": status, "time": self.journal.now_ms()})
        patience = STOPPED_PATIENCE if status == "KILLED" else LAST_PATIENCE
        if self.shipper.fault is not None:
            terminal.line(f"waiting up to {patience:.0f} s for the tracking server to take the last records")
        delivered = self.delivered = self.shipper.close(STOPPED_PATIENCE if status == "KILLED" else None)
        self._pulse.stop()
        if self._away and delivered:
            terminal.line("the tracking server is back, and has all records")
        for line in self.journal.said:
            terminal.line(line)
        stays = self.journal.stays
        if delivered and not stays:
            self.journal.remove()
        if not delivered:
            why = briefly(self.shipper.fault) if self.shipper.fault else "it takes long"
            terminal.warn(
                f"the records could not all be delivered yet ({why}); they wait in"
                f" {self.journal.folder} until ./launch.sh sync, or the next run, delivers them"
            )
        if stays and hint:
            terminal.warn(hint)
        return delivered

    def _record(self, event: dict[str, Any]) -> None:
        self.journal.append(event)
        self.shipper.wake()
        fault = self.shipper.fault
        if self._terminal is not None and self._away != (fault is not None):
            self._away = fault is not None
            if fault is None:
                self._terminal.line("the tracking server is back, and gets what it missed")
            else:
                self._terminal.warn(f"{briefly(fault)}; training goes on, and the records wait on disk")


@contextmanager
def tracked(
    server: Server,
    client: MlflowClient,
    experiment: str,
    name: str,
    terminal: Terminal,
    parent: str | None = None,
    system_metrics: bool = False,
    run_id: str | None = None,
    again: bool = False,
) -> Iterator[MlflowTracker]:
    """A run that is FINISHED when the block ends, FAILED with the reason after an error, KILLED when stopped.

    Args:
        server: Where its journal lies.
        client: Of that server.
        experiment: Name of the MLflow experiment.
        name: Of the run.
        terminal: Hears of an outage.
        parent: Id of the run that it is a child of.
        system_metrics: Record the use of processor, memory and GPU.
        run_id: Of a run that is there already, to go on with.
        again: It was interrupted, and its journal is taken over.

    Raises `UserError` where a run that is to go on has been taken by somebody else.
    """
    owner = me(server.uri, "")
    tags = {"runner.host": owner.host, "runner.pid": str(owner.pid), "runner.started": str(owner.started)}
    if parent:
        tags["mlflow.parentRunId"] = parent
    if run_id is None:
        run_id = str(
            client.create_run(server.experiment_id(client, experiment), tags=tags, run_name=name).info.run_id
        )
    try:
        tracker = MlflowTracker(server, client, run_id, name, True, terminal) if again else None
    except (FileExistsError, FileNotFoundError):
        raise UserError(
            f"Run {run_id[:8]} goes on in another process already; wait for it, or begin a new run without --resume."
        ) from None
    watch: SystemWatch | None = None
    status, reason, hint = "FAILED", "", ""
    try:
        if tracker is None:
            tracker = MlflowTracker(server, client, run_id, name, terminal=terminal)
        else:
            tracker.tags(tags)
        if system_metrics:
            watch = SystemWatch(tracker, tracker.last_step("system/") + 1)
            watch.start()
        yield tracker
        status = "FINISHED"
    except BaseException as error:
        status, reason = _how(error)
        if again and tracker is not None and isinstance(error, NotResumable):
            status, reason = tracker.former_end
        hint = "" if parent else _hint(error, run_id)
        raise
    finally:
        with undisturbed():
            if watch is not None:
                watch.stop()
            try:
                if tracker is None:
                    raise OSError("there is no journal")
                delivered = tracker.end(status, reason, terminal, hint)
                if delivered and status != "FINISHED":
                    terminal.warn(
                        f"run {run_id[:8]} is {status} in MLflow; what it had come to is kept there"
                    )
            except OSError:  # no room for the journal: MLflow may have some elsewhere
                with suppress(Exception):
                    client.set_terminated(run_id, status)


def _how(error: BaseException) -> tuple[str, str]:
    """State and reason of a run that an error ended; another process of the launch may have failed first."""
    if (elsewhere := failed_elsewhere()) is not None:
        return "FAILED", elsewhere
    if isinstance(error, Pruned):
        return "KILLED", str(error)
    if isinstance(error, Interrupted) and error.bereft:
        return "FAILED", str(error)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "KILLED", str(error) or "stopped by SIGINT"
    return "FAILED", sentence(error) or f"{type(error).__name__}: {error}"


def _hint(error: BaseException, run_id: str) -> str:
    """How a run that an error ended can be gone on with, if it has a state to go on from."""
    if isinstance(error, Diverged):
        return (
            f"./launch.sh train --resume {run_id[:8]} --branch, with a setting changed (--optim.lr …), goes on from its"
            " last good state"
        )
    return f"./launch.sh train --resume {run_id[:8]} goes on with this run"


class SystemWatch(threading.Thread):
    """Samples the system's use with MLflow's own monitors, into the journal."""

    def __init__(self, tracker: Tracker, step: int = 0) -> None:
        super().__init__(name="system metrics", daemon=True)
        self.tracker = tracker
        self.step = step
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors = [CPUMonitor()]
        with suppress(Exception):  # no NVIDIA driver
            monitors.append(GPUMonitor())
        wait = 0.5
        while not self._stop_asked.wait(wait):
            for monitor in monitors:
                monitor.collect_metrics()
                values = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
                with suppress(OSError):  # no room: training says so, if there is none for its own records
                    self.tracker.metrics(values, self.step)
            self.step, wait = self.step + 1, SYSTEM_INTERVAL

    def stop(self) -> None:
        """End the thread, if it was started."""
        self._stop_asked.set()
        if self.is_alive():
            self.join()


class Pulse(threading.Thread):
    """Says every few seconds, to other hosts, that this run's process lives."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="pulse", daemon=True)
        self.journal = journal
        self._over = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        while not self._over.wait(PULSE):
            self.journal.beat()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
