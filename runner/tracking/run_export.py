"""Exports runs: reads all that MLflow has of them, from any kind of store, and writes it to one file."""

from __future__ import annotations

import errno
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.identity import MANIFEST_TAG
from runner.tracking.champion import SCORE_TAG
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.model_registry import MODEL_TAG
from runner.tracking.run_archive import (
    ArchivedFile,
    ArchivedInput,
    ArchivedModel,
    ArchivedRun,
    ArchiveWriter,
    RunArchive,
)
from runner.tracking.run_lookup import IMPORTING_TAG, ORIGINAL_TAG, PARENT_TAG, RunInfo, search_runs
from runner.utils.atomic_files import atomic_write
from runner.utils.errors import UserError
from runner.utils.paths import local_path
from runner.utils.redaction import error_line, redact
from runner.utils.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

LOCAL_TAGS = frozenset({PARENT_TAG, MODEL_TAG, ORIGINAL_TAG, IMPORTING_TAG, "runner.champion"})
"""Tags of a run that are about its own store."""
ENDED = ("FINISHED", "FAILED", "KILLED")


def export_run(server: TrackingServer, client: MlflowClient, run: RunInfo, path: Path) -> RunArchive:
    """Write a run, with the runs that are part of it, to a file; returns what it holds. The file is whole or not there.

    Args:
        server: Of the run.
        client: Of that server.
        run: The run.
        path: The file; an earlier one is replaced.

    Raises `UserError` if a run has not ended, if records of it wait for delivery, or if a file cannot be read.
    """
    runs = _with_children(client, client.get_run(run.run_id))
    _check_complete(server, runs)
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        writer = ArchiveWriter(archive)
        content = RunArchive(tuple(_archive_run(server, client, each, writer) for each in runs))
        writer.finish(content)
        archive.close()  # before the file takes its place
    return content


def original_id(run: Run) -> str:
    """The id of a run where it was trained."""
    return str(run.data.tags.get(ORIGINAL_TAG, run.info.run_id))


def _with_children(client: MlflowClient, run: Run) -> list[Run]:
    """A run, and after it those that are part of it, each after the one that it is part of."""
    found = [run]
    for each in found:
        known = {other.info.run_id for other in found}
        children = search_runs(client, f"tags.`{PARENT_TAG}` = '{each.info.run_id}'")
        found += [child for child in reversed(children) if child.info.run_id not in known]
    return found


def _check_complete(server: TrackingServer, runs: list[Run]) -> None:
    """Raises `UserError` if a run has not ended, or if MLflow does not have all that it logged."""
    for run in runs:
        label = f"Run {run.info.run_id[:8]} ({one_line(run.info.run_name or '', 100)})"
        if run.info.status not in ENDED:
            raise UserError(
                f"{label} is {run.info.status} and cannot be exported before it has ended; wait, or stop it"
                " (./launch.sh doctor closes a run whose process is gone)."
            )
        journal = Journal.load(server.journals / run.info.run_id)
        if journal is not None and journal.pending():
            raise UserError(
                f"Records of {label[0].lower()}{label[1:]} wait for delivery; ./launch.sh sync delivers them."
            )


def _archive_run(
    server: TrackingServer, client: MlflowClient, run: Run, writer: ArchiveWriter
) -> ArchivedRun:
    """Add a run's files to an archive, and describe it."""
    info, data = run.info, run.data
    parent = data.tags.get(PARENT_TAG, "")
    archived = original_id(run)
    return ArchivedRun(
        id=archived,
        name=info.run_name or "",
        experiment=client.get_experiment(info.experiment_id).name,
        status=info.status,
        start=info.start_time,
        end=info.end_time or info.start_time,
        parent=original_id(client.get_run(parent)) if parent else "",
        params={name: redact(value) for name, value in sorted(data.params.items())},
        tags={name: redact(value) for name, value in sorted(data.tags.items()) if name not in LOCAL_TAGS},
        metrics={
            name: tuple(
                (point.step, point.timestamp, point.value)
                for point in client.get_metric_history(info.run_id, name)
            )
            for name in sorted(data.metrics)
        },
        inputs=tuple(sorted(_inputs(run), key=lambda each: (each.name, each.digest))),
        files=_archive_files(server, info.artifact_uri, writer, f"runs/{archived}/artifacts"),
        model=_archive_model(server, client, run, writer),
    )


def _inputs(run: Run) -> Iterator[ArchivedInput]:
    for each in run.inputs.dataset_inputs if run.inputs else []:
        dataset = each.dataset
        yield ArchivedInput(
            dataset.name,
            dataset.digest,
            dataset.source_type,
            redact(dataset.source),
            dataset.schema or "",
            dataset.profile or "",
            {tag.key: tag.value for tag in sorted(each.tags, key=lambda tag: str(tag.key))},
        )


def _archive_model(
    server: TrackingServer, client: MlflowClient, run: Run, writer: ArchiveWriter
) -> ArchivedModel | None:
    """Add the files of a run's logged model to an archive, and describe it; None if it has none."""
    model_id = run.data.tags.get(MODEL_TAG)
    if not model_id:
        return None
    model = client.get_logged_model(model_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    version = next((each for each in versions if SCORE_TAG in each.tags), None)
    return ArchivedModel(
        metrics={metric.key: metric.value for metric in model.metrics or []},
        step=next((output.step for output in outputs if output.model_id == model_id), 0),
        manifest=model.tags.get(MANIFEST_TAG, ""),
        registered=version.name if version else "",
        score=version.tags[SCORE_TAG].rpartition(" ")[0] if version else "",
        files=_archive_files(server, model.artifact_location, writer, f"runs/{original_id(run)}/model"),
    )


def _archive_files(
    server: TrackingServer, location: str, writer: ArchiveWriter, folder: str
) -> tuple[ArchivedFile, ...]:
    """Add all files of an artifact location to an archive, as files of `folder` in it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if (
        place := local_path(location)
    ) is not None:  # MLflow refuses some names of its own files, as those with #
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        return tuple(writer.add(path, path.relative_to(place).as_posix(), folder) for path in paths)
    files = []
    repository = get_artifact_repository(location, tracking_uri=server.uri)
    try:
        for path in _list_files(repository, None):
            with tempfile.TemporaryDirectory(
                prefix="runner-"
            ) as temporary:  # one at a time: they may be large
                local = Path(repository.download_artifacts(path, temporary))
                files.append(writer.add(local, path, folder))
    except Exception as error:  # each kind of artifact store raises its own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(f"The files in {redact(location)} cannot be read ({error_line(error)}).") from None
    return tuple(files)


def _list_files(repository: ArtifactRepository, folder: str | None) -> Iterator[str]:
    """The paths of all files in an artifact store, or in a folder of it."""
    for each in repository.list_artifacts(folder):
        if each.is_dir:
            yield from _list_files(repository, each.path)
        else:
            yield str(each.path)
