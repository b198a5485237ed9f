"""Finds the files of a model by run, registered name or path. Does not import torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking import artifact_store
from runner.tracking.model_registry import MODEL_TAG
from runner.utils.errors import UserError
from runner.utils.image_paths import expand_user
from runner.utils.redaction import error_line, redact
from runner.utils.text import did_you_mean

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLASSIFIER = "artifacts/classifier"
"""The folder of the classifier's files in a logged model."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""A reference that ends like this is a path."""


@dataclass(frozen=True)
class ModelLocation:
    """Where the files of a model are."""

    path: Path
    """A folder with the classifier's files, or a checkpoint."""
    source: str
    """Description of the run, version or file, for messages."""
    experiment: Path | None = None
    """The experiment file that belongs to a checkpoint from MLflow."""
    temporary: Path | None = None
    """A folder of downloaded files, to be removed after loading."""


def locate_model(reference: str | Path | None, tracking: str) -> ModelLocation:
    """Find the files of a model, and download them if they are on a server.

    Args:
        reference: As for `runner.load_model`.
        tracking: Folder of MLflow's database, unless MLFLOW_TRACKING_URI names a server.

    Raises `UserError` if there is no such model or its files cannot be downloaded.
    """
    if isinstance(reference, str):
        reference = _without_uri_scheme(reference)
    if reference is not None and (isinstance(reference, Path) or _is_path(reference)):
        return _locate_files(expand_user(str(reference)))
    from runner.tracking.mlflow_server import tracking_server

    server = tracking_server(tracking)
    server.check_exists()
    client = server.connect(read_only=True)
    if reference is not None and "@" in reference:
        return _locate_registered(client, reference)
    if reference is not None and reference.startswith("m-"):
        return _locate_logged(client, reference)
    return _locate_run(client, reference)


def _without_uri_scheme(reference: str) -> str:
    """MLflow's model URIs as references: models:/NAME/3 → NAME@3, models:/m-… → m-…, runs:/ID/… → ID."""
    if reference.startswith("models:/"):
        name = reference.removeprefix("models:/").strip("/")
        return name if "@" in name or "/" not in name else "@".join(name.rsplit("/", 1))
    return reference.removeprefix("runs:/").split("/")[0] if reference.startswith("runs:/") else reference


def _is_path(reference: str) -> bool:
    looks_like_one = "/" in reference or reference.endswith(SUFFIXES)
    return looks_like_one or ("@" not in reference and os.path.exists(reference))


def _locate_files(path: Path) -> ModelLocation:
    if not os.path.exists(path):
        raise UserError(f"There is no {path}; give a checkpoint, a model folder, a run, or NAME@ALIAS.")
    if path.is_dir():
        for folder in (path / CLASSIFIER, path):
            if _holds_model(folder):
                return ModelLocation(folder, str(path))
        if (path / "best.safetensors").exists():
            return ModelLocation(path / "best.safetensors", f"checkpoint {path / 'best.safetensors'}")
        raise UserError(
            f"The folder {path} has no model (model.json) and no checkpoint (best.safetensors); name another."
        )
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a checkpoint of this runner; give a .safetensors file. Pickled files are not opened,"
            " because they can run code."
        )
    if path.name == "model.safetensors" and _holds_model(path.parent):
        return ModelLocation(path.parent, str(path))
    return ModelLocation(path, f"checkpoint {path}")


def _holds_model(folder: Path) -> bool:
    return (folder / "model.json").exists()


def _locate_registered(client: MlflowClient, reference: str) -> ModelLocation:
    from mlflow.exceptions import MlflowException

    name, _, alias = reference.rpartition("@")
    try:
        if alias.isdigit():
            version = client.get_model_version(name, alias)
        else:
            version = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        raise UserError(_not_registered(client, name, alias)) from None
    source = f"model {name!r} version {version.version} of run {version.run_id[:8]}"
    return _download(version.source, source)


def _not_registered(client: MlflowClient, name: str, alias: str) -> str:
    known = [model.name for model in client.search_registered_models()]
    if name not in known:
        hint = did_you_mean(name, known) or (f"; there are {', '.join(known[:5])}" if known else "")
        return f"There is no registered model {name!r}{hint}; a finished run registers one."
    aliases = sorted(client.get_registered_model(name).aliases)
    return (
        f"The model {name!r} has no version or alias {alias!r}; give a version number or one of its aliases"
        f" ({', '.join(aliases) or 'it has none'})."
    )


def _locate_logged(client: MlflowClient, model_id: str) -> ModelLocation:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_logged_model(model_id)
    except MlflowException:
        raise UserError(
            f"There is no logged model {model_id!r}; MLflow's page of a run shows its id."
        ) from None
    return _download(model.artifact_location, f"model {model_id} of run {(model.source_run_id or '')[:8]}")


def _locate_run(client: MlflowClient, reference: str | None) -> ModelLocation:
    """A run's logged model, or else its best checkpoint. None means the latest run."""
    from runner.tracking import run_lookup

    run_info = run_lookup.find_run(client, reference or run_lookup.LATEST, model=True)
    run = client.get_run(run_info.run_id)
    experiment = client.get_experiment(run.info.experiment_id).name
    source = f"run {run_info.run_id[:8]} ({experiment}, {run_info.name})"
    if model_id := run.data.tags.get(MODEL_TAG):
        return _download(client.get_logged_model(model_id).artifact_location, source)
    try:
        artifacts = {artifact.path for artifact in client.list_artifacts(run_info.run_id)}
    except Exception as error:  # each kind of artifact store raises its own
        raise UserError(f"The files of {source} cannot be listed: {_download_problem(error)}.") from None
    if "checkpoints" not in artifacts:
        raise UserError(
            f"Run {run_info.run_id[:8]} ({run_info.name}, {run_info.status}) has no model and no checkpoint; choose"
            " another run."
        )
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    try:
        checkpoints = run_lookup.download_artifact(client, run_info, "checkpoints", folder)
        settings = run_lookup.download_artifact(client, run_info, "experiment.yaml", folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ModelLocation(checkpoints / "best.safetensors", source, settings, folder)


def _download_problem(error: Exception) -> str:
    return (
        artifact_store.explain(error)
        or f"{error_line(error)[:200]}; check that they exist and that the server is running"
    )


def _download(location: str, source: str) -> ModelLocation:
    """A logged model's classifier on this machine. Raises `UserError` if it cannot be downloaded."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    temporary = None
    try:
        repository = get_artifact_repository(location)
        if not isinstance(repository, LocalArtifactRepository):  # which uses the files where they are
            temporary = Path(tempfile.mkdtemp(prefix="runner-"))
        folder = repository.download_artifacts(CLASSIFIER, str(temporary) if temporary else None)
    except Exception as error:  # each kind of artifact store raises its own
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"The files of {source} cannot be downloaded from {redact(location)}: {_download_problem(error)}."
        ) from None
    return ModelLocation(Path(folder), source, temporary=temporary)
