"""Models in MLflow: a run's best network as a logged model, a version of its experiment's, and the champion.

Everything here may be repeated without harm: what is there already is not made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of an experiment's best model, by its validation score."""
MODEL_TAG = "runner.model"
"""On a run: the id of its logged model."""


def deliver(client: MlflowClient, run_id: str, folder: Path, told: dict[str, Any], lock: Path) -> str:
    """Log and register a run's model, and make it the champion where it is better: a sentence that says so.

    Args:
        client: Of the tracking server, which is also the registry.
        run_id: The run that it is of.
        folder: The model, as `packing.pack` wrote it.
        told: `name` to register it under; `metrics` by name; `score`, the validation score that decides, and its
            `value`; `manifest`, the digest of the images; `step`, the epoch.
        lock: File that keeps two processes of this host from moving the champion at once.

    Raises whatever MLflow does when the server is out of reach.
    """
    run = client.get_run(run_id)
    model = _logged(client, run, folder, told)
    with FileLock(lock):
        mine = _registered(client, run, model, told)
        return _crowned(client, mine, told)


def registered_name(experiment: str) -> str:
    """The name that an experiment's models are registered under: MLflow takes no colon or slash in it."""
    return experiment.replace(":", "-").replace("/", "-")


def _logged(client: MlflowClient, run: Run, folder: Path, told: dict[str, Any]) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    run_id, experiment = run.info.run_id, run.info.experiment_id
    if known := run.data.tags.get(MODEL_TAG):
        return client.get_logged_model(known)
    mine = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    model = (
        mine[0]
        if mine
        else client.create_logged_model(
            experiment,
            name="best",
            source_run_id=run_id,
            tags={"runner.manifest": told["manifest"]},
            model_type="classifier",
        )
    )
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, str(folder))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    known_outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [each.model_id for each in known_outputs]:  # a second time is an error
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, told["step"])])
    points = [
        Metric(
            name,
            value,
            _when(client, run_id, name, told),
            told["step"],
            model_id=model.model_id,
            run_id=run_id,
        )
        for name, value in told["metrics"].items()
    ]
    client.log_batch(run_id, points)
    client.set_tag(run_id, MODEL_TAG, model.model_id)
    return model


def _when(client: MlflowClient, run_id: str, name: str, told: dict[str, Any]) -> int:
    """The time of the run's own point: MLflow gives the run the model's points too, and keeps equal ones once."""
    times = [each.timestamp for each in client.get_metric_history(run_id, name) if each.step == told["step"]]
    return min(times, default=told["time"])


def _registered(client: MlflowClient, run: Run, model: LoggedModel, told: dict[str, Any]) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    name = told["name"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"run_id = '{run.info.run_id}'"):  # a name may hold a quote
        if version.name == name:
            return version
    return client.create_model_version(
        name,
        model.artifact_location,
        run.info.run_id,
        tags={
            **{metric: repr(value) for metric, value in told["metrics"].items()},
            "runner.manifest": told["manifest"],
        },
        description=f"Best checkpoint of run {run.info.run_id} ({run.info.run_name}), epoch {told['step']}.",
        model_id=model.model_id,
    )


def _crowned(client: MlflowClient, mine: ModelVersion, told: dict[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    name, score, value = told["name"], told["score"], told["value"]
    who = f"model {name!r} version {mine.version}"
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        client.set_registered_model_alias(name, CHAMPION, mine.version)
        return f"{who} is the champion, as the first ({score} {value:.4f})"
    if champion.version == mine.version:
        return f"{who} is the champion ({score} {value:.4f})"
    stays = f"{who} is registered; the champion stays: version {champion.version}"
    if champion.tags.get("runner.manifest") != told["manifest"]:
        return f"{stays} was judged on other images, so that scores cannot be compared (move the alias in MLflow)"
    if (text := champion.tags.get(score)) is None:
        return f"{stays} has no {score} to compare with (move the alias in MLflow)"
    held = float(text)
    against = f"{score} {value:.4f} against {held:.4f} of version {champion.version}"
    if value <= held:
        return f"{who} is registered; the champion stays ({against})"
    client.set_registered_model_alias(name, CHAMPION, mine.version)
    return f"{who} is the new champion ({against})"
