"""Imports exported runs into an MLflow store: all of them, or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from runner.tracking.archive_reader import extract, open_archive
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.model_registry import ModelInfo, register_model
from runner.tracking.process_identity import ProcessIdentity
from runner.tracking.run_archive import ArchivedModel, ArchivedRun, RunArchive
from runner.tracking.run_export import LOCAL_TAGS
from runner.tracking.run_lookup import IMPORTING_TAG, ORIGINAL_TAG, PARENT_TAG, search_runs
from runner.utils.atomic_files import make_folder, sync_tree
from runner.utils.console import format_bytes
from runner.utils.errors import UserError, user_message
from runner.utils.file_systems import is_sqlite
from runner.utils.paths import local_path
from runner.utils.redaction import error_line, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH = 1000
"""Points of metrics per request, as MLflow allows."""
FEW = 100
"""Params or tags per request, likewise."""


@dataclass
class Imported:
    """What an import did.

    Args:
        archive: The content of the file.
        run_id: The id of its first run in this store.
        known: It was there already, with this status; empty if it was imported.
        messages: What became of its models.
    """

    archive: RunArchive
    run_id: str
    known: str = ""
    messages: list[str] = field(default_factory=list)


def import_run(server: TrackingServer, client: MlflowClient, path: Path, register: bool = True) -> Imported:
    """Import the runs of a file that `export_run` wrote, unless they are there already.

    They get new ids; the tag `runner.original_run` has the original one, by which they are found, too.

    Args:
        server: The store to import into.
        client: Of that server.
        path: The file.
        register: Register the models that were registered where they were trained.

    Raises `UserError` if the file cannot be used, its content does not fit on the disk, or the store does not take it;
    then nothing is imported.
    """
    make_folder(server.root)
    with FileLock(server.root / ".import.lock"), _folder_for_files(server) as folder:
        with open_archive(path) as (archive, content):
            first = content.runs[0]
            if known := find_imported(client, first.id):
                return Imported(content, known.info.run_id, known.info.status)
            _check_space(content, folder)
            extract(archive, content, folder)
        for interrupted in search_runs(client, f"tags.`{IMPORTING_TAG}` = '{first.id}'"):
            _discard(server, client, interrupted.info.run_id)
        return _Import(server, client, content, folder).run(register)


def find_imported(client: MlflowClient, run_id: str) -> Run | None:
    """The run that has an id, or had it where it was trained; None if there is none."""
    for condition in (f"attributes.run_id = '{run_id}'", f"tags.`{ORIGINAL_TAG}` = '{run_id}'"):
        if found := search_runs(client, condition, 1):
            return found[0]
    return None


class _Import:
    """The import of an archive whose files lie in a folder."""

    def __init__(
        self, server: TrackingServer, client: MlflowClient, content: RunArchive, folder: Path
    ) -> None:
        self.server = server
        self.client = client
        self.content = content
        self.folder = folder
        self.ids: dict[str, str] = {}
        """The new id of each run, by its original one."""
        self.created: list[str] = []

    def run(self, register: bool) -> Imported:
        """Create all runs, then complete them, the first as the last; after an error none is left."""
        runs, messages = self.content.runs, []
        try:
            for run in runs:
                self._create(run)
            new = [run for run in runs if self.ids[run.id] in self.created]
            for run in new:
                if run.model:
                    messages.append(self._add_model(run, run.model, register))
            for run in reversed(new):
                self._finish(run)
        except BaseException as error:
            for run_id in self.created:
                _discard(self.server, self.client, run_id)
            if isinstance(error, Exception) and user_message(error) is None:
                raise UserError(
                    f"{redact(self.server.uri)} does not take the run ({error_line(error)}); nothing was imported."
                ) from None
            raise
        return Imported(self.content, self.ids[runs[0].id], messages=messages)

    def _create(self, run: ArchivedRun) -> None:
        """Create a run with all but its model; it is RUNNING, as a run of this process."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        client = self.client
        if run is not self.content.runs[0] and (known := find_imported(client, run.id)):
            self.ids[run.id] = known.info.run_id  # it was imported alone before
            if parent := self._parent(run):
                client.set_tag(known.info.run_id, PARENT_TAG, parent)
            return
        tags = {**ProcessIdentity.current().tags(), IMPORTING_TAG: self.content.runs[0].id}
        tags |= {name: run.tags[name] for name in ("mlflow.user",) if name in run.tags}
        if parent := self._parent(run):
            tags[PARENT_TAG] = parent
        experiment = self.server.get_or_create_experiment(client, run.experiment)
        created = client.create_run(experiment, run.start, tags, run.name or None)
        run_id = self.ids[run.id] = str(created.info.run_id)
        self.created.append(run_id)
        params = [Param(name, value) for name, value in run.params.items()]
        points = [
            Metric(name, value, time, step)
            for name, history in run.metrics.items()
            for step, time, value in history
        ]
        for start in range(0, len(params), FEW):
            client.log_batch(run_id, params=params[start : start + FEW])
        for start in range(0, len(points), BATCH):
            client.log_batch(run_id, points[start : start + BATCH])
        for each in run.inputs:
            dataset = Dataset(
                each.name,
                each.digest,
                each.source_type,
                each.source,
                each.schema or None,
                each.profile or None,
            )
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(*tag) for tag in each.tags.items()])])
        self._store_files(run, created)

    def _parent(self, run: ArchivedRun) -> str:
        """The id in this store of the run that a run is part of; empty if it is not there."""
        if not run.parent:
            return ""
        if run.parent in self.ids:
            return self.ids[run.parent]
        found = find_imported(self.client, run.parent)
        return str(found.info.run_id) if found else ""

    def _store_files(self, run: ArchivedRun, created: Run) -> None:
        files = self.folder / run.id / "artifacts"
        if not run.files:
            return
        place = local_path(created.info.artifact_uri) if is_sqlite(self.server.uri) else None
        if place is None or place.exists():
            self.client.log_artifacts(created.info.run_id, str(files))
        else:  # no copy: weights may be large
            make_folder(place.parent)
            files.replace(place)
            sync_tree(place)

    def _add_model(self, run: ArchivedRun, model: ArchivedModel, register: bool) -> str:
        """Log a run's model, and register it; returns a sentence about it."""
        name = model.registered if register and model.score in model.metrics else ""
        info = ModelInfo(name, model.metrics, model.score, model.manifest, model.step, run.end)
        run_id = self.ids[run.id]
        message = register_model(self.client, run_id, self.folder / run.id / "model", info)
        self.client.set_tag(run_id, "runner.champion", message)
        return message

    def _finish(self, run: ArchivedRun) -> None:
        """Give a run its own tags and status."""
        from mlflow.entities import RunTag

        tags = {name: value for name, value in run.tags.items() if name not in LOCAL_TAGS}
        run_id, items = self.ids[run.id], [*tags.items(), (ORIGINAL_TAG, run.id)]
        for start in range(0, len(items), FEW):
            self.client.log_batch(run_id, tags=[RunTag(*item) for item in items[start : start + FEW]])
        self.client.set_terminated(run_id, run.status, run.end)
        for name in ProcessIdentity.current().tags().keys() - tags.keys():
            self.client.delete_tag(run_id, name)
        self.client.delete_tag(run_id, IMPORTING_TAG)


@contextmanager
def _folder_for_files(server: TrackingServer) -> Iterator[Path]:
    """A temporary folder; of an embedded store on its own disk, so that files need only be renamed."""
    place = server.root if server.embedded else None
    folder = Path(tempfile.mkdtemp(prefix=".import.", suffix=".partial", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_space(content: RunArchive, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if content.bytes > free:
        raise UserError(
            f"The run needs {format_bytes(content.bytes)} in {folder.parent}, where {format_bytes(free)} are free; free"
            " some space."
        )


def _discard(server: TrackingServer, client: MlflowClient, run_id: str) -> None:
    """Remove what an import that failed has created."""
    with suppress(Exception):  # the store may be away; the next import of the file tries again
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            client.delete_model_version(version.name, version.version)
        run = client.get_run(run_id)
        condition = f"source_run_id = '{run_id}'"
        for model in client.search_logged_models([run.info.experiment_id], condition):
            _delete_files(server, model.artifact_location)
            client.delete_logged_model(model.model_id)
        _delete_files(server, run.info.artifact_uri)
        client.delete_run(run_id)


def _delete_files(server: TrackingServer, location: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(Exception):  # not every store allows it
        get_artifact_repository(location, tracking_uri=server.uri).delete_artifacts()
