"""Runs in MLflow are begun here: by rank 0 of a launch, by nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.config.schema import Experiment
from runner.tracking.mlflow_server import server
from runner.tracking.tracker import Tracker, tracked
from runner.tracking.uploader import recover
from runner.utils.console import Terminal

if TYPE_CHECKING:
    from accelerate import Accelerator

REPRODUCES = "RUNNER_REPRODUCES"
"""Holds id and name of the run that a launch reproduces."""


def reproduced() -> tuple[str, str]:
    """Id and name of the run that this launch reproduces; empty where it reproduces none."""
    run_id, _, name = os.environ.get(REPRODUCES, "").partition(" ")
    return run_id, name


class Records:
    """Begins the runs of this launch: in MLflow on rank 0, nowhere on its peers; None: of this process alone."""

    def __init__(self, experiment: Experiment, accelerator: Accelerator | None, terminal: Terminal) -> None:
        self.experiment = experiment
        self.terminal = terminal
        self.server = server(experiment.tracking.root)
        self.client = self.server.connect() if accelerator is None or accelerator.is_main_process else None
        if self.client is not None:
            recover(self.server, self.client, terminal)

    @contextmanager
    def begin(
        self, name: str, parent: Tracker | None = None, works: bool = True, again: str = ""
    ) -> Iterator[Tracker]:
        """A run called `name`.

        Args:
            name: Of the run.
            parent: The run that it is a child of.
            works: Whether the system's use is worth recording with it.
            again: Id of an interrupted run, which goes on.

        Raises `UserError` where somebody else works on a run that is to go on.
        """
        if self.client is None:
            yield Tracker()
            return
        watch = works and self.experiment.tracking.system_metrics
        parent_id = parent.run_id if parent else None
        with tracked(
            self.server,
            self.client,
            self.experiment.name,
            name,
            self.terminal,
            parent_id,
            watch,
            again or None,
            bool(again),
        ) as tracker:
            if original := reproduced()[0]:
                tracker.tags({"runner.reproduces": original})
            yield tracker
