"""Finding a model by what a person calls it: a run, a registered name with an alias or version, or files."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking.model_registry import MODEL_TAG
from runner.utils.errors import UserError
from runner.utils.image_paths import expand_user
from runner.utils.redaction import redact

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient

    from runner.serving.predictor import LoadedModel

PARTS = ("artifacts/classifier", ".")
"""Where in a logged model, or in a folder that somebody gives, the classifier's files may be."""


@dataclass(frozen=True)
class ModelLocation:
    """Where a model's files are, and what they are of."""

    path: Path
    """A folder with the classifier's files, or a checkpoint."""
    source: str
    """For a person."""
    experiment: Path | None = None
    """The experiment file of a checkpoint from MLflow."""
    fetched: Path | None = None
    """A folder to be removed when the model is open."""


def load_model(
    reference: str | Path | None = None,
    tracking: str = "mlruns",
    device: torch.device | str | None = None,
) -> LoadedModel:
    """A model that is ready to predict.

    Args:
        reference: A run (id, beginning of an id, name, or latest), NAME@ALIAS or NAME@VERSION of a registered
            model, or a path: a model's folder or a checkpoint. None: the newest finished run's.
        tracking: Folder of MLflow's database, unless MLFLOW_TRACKING_URI names a server.
        device: Where to compute; None: a GPU, if there is one.

    Raises `UserError` where there is no such model, or it is damaged, or another version's.
    """
    return open_model(locate_model(reference, tracking), device)


def load_model_concurrently(reference: str | None, tracking: str) -> LoadedModel:
    """`load_model` for a command that has imported neither torch nor MLflow: a second process asks MLflow meanwhile."""
    with ProcessPoolExecutor(1, get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        located = pool.submit(locate_model, reference, tracking)
        importlib.import_module("runner.serving.predictor")
        return open_model(located.result())


def locate_model(reference: str | Path | None, tracking: str) -> ModelLocation:
    """Find a model's files, without importing torch. Arguments and errors: `load_model`'s."""
    if isinstance(reference, str):
        reference = _plain(reference)
    if reference is not None and (isinstance(reference, Path) or _is_path(reference)):
        return _in_files(expand_user(str(reference)))
    from runner.tracking.mlflow_server import server

    store = server(tracking)
    store.check_exists()
    client = store.connect()
    if reference is not None and "@" in reference:
        return _in_registry(client, reference)
    if reference is not None and reference.startswith("m-"):
        return _logged(client, reference)
    return _of_run(client, reference)


def open_model(located: ModelLocation, device: torch.device | str | None = None) -> LoadedModel:
    """Load what `locate` found. Raises `UserError` where it is damaged, or another version's."""
    from runner.portable.classifier import Classifier, ModelError
    from runner.serving.predictor import LoadedModel

    try:
        if located.path.is_dir():
            return LoadedModel(Classifier.load(located.path, device), located.source)
        return _open_checkpoint(located, device)
    except ModelError as error:
        raise UserError(str(error)) from None
    finally:
        if located.fetched:
            shutil.rmtree(located.fetched, ignore_errors=True)


def _plain(reference: str) -> str:
    """MLflow's own way of naming a model, in ours: models:/NAME/3 → NAME@3, models:/m-…, runs:/ID/… → ID."""
    if reference.startswith("models:/"):
        name = reference.removeprefix("models:/").strip("/")
        return name if "@" in name or "/" not in name else "@".join(name.rsplit("/", 1))
    return reference.removeprefix("runs:/").split("/")[0] if reference.startswith("runs:/") else reference


def _is_path(reference: str) -> bool:
    return "/" in reference or reference.endswith(
        (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
    ) or ("@" not in reference and os.path.exists(reference))  # fmt: skip


def _in_files(path: Path) -> ModelLocation:
    if not os.path.exists(path):
        raise UserError(f"There is no {path}; give a checkpoint, a model's folder, a run, or NAME@ALIAS.")
    if path.is_dir():
        for part in PARTS:
            if _is_model(path / part):
                return ModelLocation(path / part, str(path))
        if (path / "best.safetensors").exists():
            return ModelLocation(path / "best.safetensors", f"checkpoint {path / 'best.safetensors'}")
        raise UserError(f"{path} holds no model (model.json) and no checkpoint (best.safetensors).")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no checkpoint of this runner, which are .safetensors files; pickled ones are not opened,"
            " since they can run code."
        )
    if path.name == "model.safetensors" and _is_model(path.parent):
        return ModelLocation(path.parent, str(path))
    return ModelLocation(path, f"checkpoint {path}")


def _is_model(folder: Path) -> bool:
    return (folder / "model.json").exists()


def _in_registry(client: MlflowClient, reference: str) -> ModelLocation:
    from mlflow.exceptions import MlflowException

    from runner.utils.text import did_you_mean

    name, _, alias = reference.rpartition("@")
    try:
        if alias.isdigit():
            version = client.get_model_version(name, alias)
        else:
            version = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        known = [each.name for each in client.search_registered_models()]
        if name not in known:
            hint = did_you_mean(name, known) or (f"; there are {', '.join(known[:5])}" if known else "")
            raise UserError(
                f"There is no registered model {name!r}{hint}; a finished run registers one."
            ) from None
        aliases = sorted(client.get_registered_model(name).aliases)
        raise UserError(
            f"The model {name!r} has no {alias!r}; it has the aliases {', '.join(aliases) or 'none'}, and versions"
            " by number."
        ) from None
    source = f"model {name!r} version {version.version} of run {version.run_id[:8]}"
    return _downloaded(version.source, source)


def _logged(client: MlflowClient, model_id: str) -> ModelLocation:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_logged_model(model_id)
    except MlflowException:
        raise UserError(f"There is no logged model {model_id!r}.") from None
    return _downloaded(model.artifact_location, f"model {model_id} of run {(model.source_run_id or '')[:8]}")


def _of_run(client: MlflowClient, reference: str | None) -> ModelLocation:
    from runner.tracking import run_lookup

    found = run_lookup.find(client, reference) if reference is not None else run_lookup.newest_trained(client)
    run = client.get_run(found.run_id)
    experiment = client.get_experiment(run.info.experiment_id).name
    source = f"run {found.run_id[:8]} ({experiment}, {found.name})"
    if model_id := run.data.tags.get(MODEL_TAG):
        return _downloaded(client.get_logged_model(model_id).artifact_location, source)
    if "checkpoints" not in {each.path for each in client.list_artifacts(found.run_id)}:
        raise UserError(
            f"Run {found.run_id[:8]} ({found.name}, {found.status}) has no model and no checkpoint; choose another run."
        )
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    try:
        checkpoints = run_lookup.artifact(client, found, "checkpoints", folder)
        settings = run_lookup.artifact(client, found, "experiment.yaml", folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ModelLocation(checkpoints / "best.safetensors", source, settings, folder)


def _downloaded(location: str, source: str) -> ModelLocation:
    """A logged model's classifier on this machine. Raises `UserError` where it cannot be had."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    fetched = None
    try:
        repository = get_artifact_repository(location)
        if not isinstance(repository, LocalArtifactRepository):  # which uses files where they lie
            fetched = Path(tempfile.mkdtemp(prefix="runner-"))
        folder = repository.download_artifacts(PARTS[0], str(fetched) if fetched else None)
    except Exception as error:  # each kind of artifact store raises its own
        if fetched:
            shutil.rmtree(fetched, ignore_errors=True)
        raise UserError(
            f"The files of {source} cannot be fetched from {redact(location)}"
            f" ({redact(' '.join(str(error).split()))[:200]})."
        ) from None
    return ModelLocation(Path(folder), source, fetched=fetched)


def _open_checkpoint(location: ModelLocation, device: torch.device | str | None) -> LoadedModel:
    from runner.config.parser import read
    from runner.models import checkpoint
    from runner.serving import packaging
    from runner.serving.predictor import LoadedModel

    loaded = checkpoint.load(location.path)
    inference = packaging.inference_settings(read(location.experiment)) if location.experiment else loaded.use
    if not {"name", "transform", "precision"} <= set(inference):
        raise UserError(
            f"{location.path} was written by a version that did not store the transform; give its run (--model RUN),"
            " or train again."
        )
    description = packaging.describe(loaded.network, inference, epoch=loaded.epoch, val=loaded.val)
    classifier = packaging.to_classifier(loaded.network, description, device)
    return LoadedModel(classifier, f"{location.source}, epoch {loaded.epoch}")
