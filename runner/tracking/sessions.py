"""The tracking of a launch: connects to the store once, and starts the runs of the launch. Only rank 0 connects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.config.schema import Experiment
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.recovery import recover_runs
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.tracking.tracker import Tracker
from runner.utils.console import Terminal

if TYPE_CHECKING:
    from accelerate import Accelerator

REPRODUCED_RUN = "RUNNER_REPRODUCES"
"""Environment variable: id and name of the run that a launch reproduces, separated by a blank."""


def reproduced_run() -> tuple[str, str]:
    """Id and name of the run that this launch reproduces; both empty if it reproduces none."""
    run_id, _, name = os.environ.get(REPRODUCED_RUN, "").partition(" ")
    return run_id, name


class TrackingSession:
    """Starts the runs of a launch: trackers that log to MLflow on rank 0, trackers that do nothing elsewhere.

    Connecting also delivers what earlier runs left behind, and closes runs whose process died.

    Args:
        experiment: Names the MLflow experiment and the tracking root.
        accelerator: Of the launch; None for a process of its own.
        terminal: Shows outages of the server.

    Raises `UserError` if the store cannot be used.
    """

    def __init__(self, experiment: Experiment, accelerator: Accelerator | None, terminal: Terminal) -> None:
        self.experiment = experiment
        self.terminal = terminal
        self.server = tracking_server(experiment.tracking.root)
        self.server.check_place()
        self.client = self.server.connect() if accelerator is None or accelerator.is_main_process else None
        """None on ranks other than 0."""
        if self.client is not None:
            if warning := self.server.warning:
                terminal.warn(warning)
            if warning := self.server.other_location(self.client, experiment.name):
                terminal.warn(warning)
            recover_runs(self.server, self.client, terminal)

    @contextmanager
    def start_run(
        self, name: str, parent: Tracker | None = None, system_metrics: bool = True, resume: str = ""
    ) -> Iterator[Tracker]:
        """Start a run, or resume one.

        Args:
            name: Of the run.
            parent: The run that it is a child of.
            system_metrics: Log the system's use, if `tracking.system_metrics` is on.
            resume: Id of an interrupted run to resume.

        Raises `UserError` if another process works on the run to resume.
        """
        request = RunRequest(
            self.experiment.name,
            name,
            parent_id=parent.run_id if parent else "",
            system_metrics=system_metrics and self.experiment.tracking.system_metrics,
            run_id=resume,
            resume=bool(resume),
        )
        with self._track(request) as tracker:
            if original := reproduced_run()[0]:
                tracker.set_tags({"runner.reproduces": original})
            yield tracker

    @contextmanager
    def reopen_run(self, run_id: str, name: str) -> Iterator[Tracker]:
        """Log more to a run that exists in MLflow and was not interrupted; it is RUNNING until the block ends."""
        with self._track(RunRequest(self.experiment.name, name, run_id=run_id)) as tracker:
            yield tracker

    @contextmanager
    def _track(self, request: RunRequest) -> Iterator[Tracker]:
        # The one place that chooses a tracker.
        if self.client is None:
            yield Tracker()
            return
        with track_run(self.server, self.client, request, self.terminal) as tracker:
            yield tracker
