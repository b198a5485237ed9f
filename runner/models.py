"""Finding a model by what a person calls it: a run, a registered name with an alias or version, or files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError
from runner.registry import MODEL_TAG

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from runner.model import Model

PARTS = ("artifacts/classifier", ".")
"""Where in a logged model, or in a folder that somebody gives, the classifier's files may be."""


def load_model(
    reference: str | Path | None = None,
    tracking: str = "mlruns",
    device: torch.device | str | None = None,
) -> Model:
    """A model that is ready to predict.

    Args:
        reference: A run (id, beginning of an id, name, or latest), NAME@ALIAS or NAME@VERSION of a registered
            model, or a path: a model's folder or a checkpoint. None: the newest finished run's.
        tracking: Folder of MLflow's database, unless MLFLOW_TRACKING_URI names a server.
        device: Where to compute; None: a GPU, if there is one.

    Raises `UserError` where there is no such model, or it is damaged, or another version's.
    """
    if reference is not None and (isinstance(reference, Path) or _is_path(reference)):
        return _from_path(Path(reference).expanduser(), device)
    from runner.server import server

    store = server(tracking)
    store.check_exists()
    client = store.connect()
    if reference is not None and "@" in reference:
        return _from_registry(client, reference.removeprefix("models:/"), device)
    return _from_run(client, reference, device)


def _is_path(reference: str) -> bool:
    return "/" in reference.removeprefix("models:/") or reference.endswith(
        (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
    ) or (Path(reference).exists() and "@" not in reference)  # fmt: skip


def _from_path(path: Path, device: torch.device | str | None) -> Model:
    from runner.model import is_model

    if not path.exists():
        raise UserError(f"There is no {path}; give a checkpoint, a model's folder, a run, or NAME@ALIAS.")
    if path.is_dir():
        for part in PARTS:
            if is_model(path / part):
                return _open(path / part, str(path), device)
        if (path / "best.safetensors").exists():
            return _from_checkpoint(path / "best.safetensors", str(path), device)
        raise UserError(f"{path} holds no model (model.json) and no checkpoint (best.safetensors).")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no checkpoint of this runner, which are .safetensors files; pickled ones are not opened,"
            " since they can run code."
        )
    if path.name == "model.safetensors" and is_model(path.parent):
        return _open(path.parent, str(path), device)
    return _from_checkpoint(path, str(path), device)


def _from_checkpoint(path: Path, source: str, device: torch.device | str | None) -> Model:
    from runner import checkpoint
    from runner.model import Model
    from runner.packing import about, classifier

    kept = checkpoint.load(path)
    if not kept.use:
        raise UserError(
            f"{path} was written before checkpoints held their transform; give its run (--model RUN), or train again."
        )
    told = about(kept.network, kept.use, epoch=kept.epoch, val=kept.val)
    return Model(classifier(kept.network, told, device), f"checkpoint {source} (epoch {kept.epoch})")


def _from_registry(client: MlflowClient, reference: str, device: torch.device | str | None) -> Model:
    from mlflow.exceptions import MlflowException

    from runner.settings import nearest

    name, _, alias = reference.rpartition("@")
    try:
        if alias.isdigit():
            version = client.get_model_version(name, alias)
        else:
            version = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        known = [each.name for each in client.search_registered_models()]
        if name not in known:
            hint = nearest(name, known) or (f"; there are {', '.join(known[:5])}" if known else "")
            raise UserError(
                f"There is no registered model {name!r}{hint}; a finished run registers one."
            ) from None
        aliases = sorted(client.get_registered_model(name).aliases)
        raise UserError(
            f"The model {name!r} has no {alias!r}; it has the aliases {', '.join(aliases) or 'none'}, and versions"
            " by number."
        ) from None
    return _open(
        _fetched(version.source, f"model {name!r}"),
        f"model {name!r} version {version.version} of run {version.run_id[:8]}",
        device,
    )


def _from_run(client: MlflowClient, reference: str | None, device: torch.device | str | None) -> Model:
    from runner import runs
    from runner.settings import read

    found = runs.find(client, reference) if reference is not None else runs.newest_trained(client)
    run = client.get_run(found.run_id)
    source = f"run {found.run_id[:8]} ({_experiment(client, run)}, {found.name})"
    if model_id := run.data.tags.get(MODEL_TAG):
        return _open(_fetched(client.get_logged_model(model_id).artifact_location, source), source, device)
    from runner import checkpoint
    from runner.model import Model
    from runner.packing import about, classifier, use

    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        if "checkpoints" not in {each.path for each in client.list_artifacts(found.run_id)}:
            raise UserError(
                f"Run {found.run_id[:8]} ({found.name}, {found.status}) has no model and no checkpoint;"
                " choose another run."
            )
        folder = runs.artifact(client, found, "checkpoints", Path(name))
        kept = checkpoint.load(folder / "best.safetensors")
        experiment = read(runs.artifact(client, found, "experiment.yaml", Path(name)))
        told = about(kept.network, use(experiment), epoch=kept.epoch, val=kept.val)
        return Model(classifier(kept.network, told, device), source)


def _experiment(client: MlflowClient, run: Run) -> str:
    return str(client.get_experiment(run.info.experiment_id).name)


def _open(folder: Path, source: str, device: torch.device | str | None) -> Model:
    from runner.model import Model
    from runner.portable.classifier import Classifier, ModelError

    try:
        return Model(Classifier.load(folder, device), source)
    except ModelError as error:
        raise UserError(str(error)) from None


def _fetched(location: str, source: str) -> Path:
    """A logged model's classifier on this machine. Raises `UserError` where it cannot be had."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        repository = get_artifact_repository(location)
        return Path(repository.download_artifacts(PARTS[0]))
    except Exception as error:  # each kind of artifact store raises its own
        raise UserError(
            f"The files of {source} cannot be fetched from {location} ({' '.join(str(error).split())[:200]})."
        ) from None
