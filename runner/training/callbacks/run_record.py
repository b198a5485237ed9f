"""Keeps the record that `--resume` finds an interrupted run by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runner.config.schema import Experiment
from runner.tracking.interrupted_runs import RunRecord, resolved_settings, write_record
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.utils.errors import DivergedError


class RunRecordCallback(Callback):
    """Writes a run's record: what was requested, what "auto" was resolved to, and whether training diverged.

    Args:
        folder: The run's state folder; None on ranks other than 0.
        record: What was requested.
    """

    def __init__(self, folder: Path | None, record: RunRecord) -> None:
        self.folder = folder
        self.record = record

    @contextmanager
    def during_setup(self, is_new: bool) -> Iterator[None]:
        """For setting a run up: if it is killed there it can be resumed, but not if its setup fails.

        Args:
            is_new: It is not resumed: then it has no record yet.
        """
        if is_new:
            self._write()
        try:
            yield
        except BaseException:
            if is_new and self.folder is not None:
                (self.folder / "run.json").unlink(missing_ok=True)
            raise

    def resolve(self, experiment: Experiment, manifest: str, weights: str) -> None:
        """Record what "auto" was resolved to in an experiment, and the digests of its images and weights."""
        resolved = resolved_settings(experiment)
        self.record = replace(self.record, resolved=resolved, manifest=manifest, weights=weights)
        self._write()

    def on_exception(self, state: FitState, error: BaseException) -> None:
        """Record that training diverged: `--resume auto` skips the run, because it would diverge again."""
        if isinstance(error, DivergedError):
            self.record = replace(self.record, diverged=True)
            self._write()

    def _write(self) -> None:
        if self.folder is not None:
            write_record(self.folder, self.record)
