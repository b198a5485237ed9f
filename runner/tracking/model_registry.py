"""The model registry: logs a run's best model and registers it as a version.

Every step may be repeated without harm: what exists already is not created again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.identity import MANIFEST_TAG
from runner.tracking.champion import SCORE_TAG, decide_champion, read_comparison_base
from runner.utils.hard_links import copy_folder, linked_files
from runner.utils.paths import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_TAG = "runner.model"
"""Tag of a run: the id of its logged model."""


@dataclass(frozen=True)
class ModelInfo:
    """What is registered with a model.

    Args:
        name: Name of the registered model; empty if it is only logged with its run.
        metrics: Validation metrics by name.
        score: The one of them by which the champion is chosen.
        manifest: Digest of the images and their split; scores on other images are not compared.
        step: The epoch whose weights it has.
        time: When it was logged, in ms since 1970.
    """

    name: str
    metrics: dict[str, float]
    score: str
    manifest: str
    step: int
    time: int = 0

    @property
    def value(self) -> float:
        """The value of its score."""
        return self.metrics[self.score]

    def to_dict(self) -> dict[str, Any]:
        """As an event of a journal holds it."""
        return {**asdict(self), "value": self.value}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ModelInfo:
        """The inverse of `to_dict`. Raises KeyError if a field is missing."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def registered_name(experiment: str) -> str:
    """The name under which an experiment's models are registered: MLflow allows no colon or slash in it."""
    return experiment.replace(":", "-").replace("/", "-")


def register_model(client: MlflowClient, run_id: str, folder: Path, info: ModelInfo) -> str:
    """Log and register a run's model, and make it the champion if it is better. Returns a sentence about it.

    Args:
        client: Of the tracking server, which is also the registry.
        run_id: The run that trained it.
        folder: The model in MLflow's format.
        info: What to register with it.

    Raises whatever MLflow raises when the server does not answer or refuses.
    """
    run = client.get_run(run_id)
    model = _log_model(client, run, folder, info)
    if not info.name:
        return f"model {model.model_id} is logged with its run {run_id[:8]}, and not registered"
    return decide_champion(client, _create_version(client, run, model, info))


def _log_model(client: MlflowClient, run: Run, folder: Path, info: ModelInfo) -> LoggedModel:
    """The run's logged model, complete with files and metrics."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    run_id, experiment = run.info.run_id, run.info.experiment_id
    if known := run.data.tags.get(MODEL_TAG):
        return client.get_logged_model(known)
    existing = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    model = (
        existing[0]
        if existing
        else client.create_logged_model(
            experiment,
            name="best",
            source_run_id=run_id,
            tags={MANIFEST_TAG: info.manifest},
            model_type="classifier",
        )
    )
    model_id = model.model_id
    if model.status != LoggedModelStatus.READY:
        place = local_path(model.artifact_location)
        if place is not None and linked_files(folder):
            copy_folder(folder, place)
        else:
            for path in linked_files(place) if place is not None else ():
                path.unlink()  # of an earlier attempt: MLflow would write to it, and change its other names
            client.log_model_artifacts(model_id, str(folder))
        model = client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:  # logging it twice is an error
        client.log_outputs(run_id, [LoggedModelOutput(model_id, info.step)])
    points = [
        Metric(
            name, value, _logged_at(client, run_id, name, info), info.step, model_id=model_id, run_id=run_id
        )
        for name, value in info.metrics.items()
    ]
    client.log_batch(run_id, points)
    client.set_tag(run_id, MODEL_TAG, model_id)
    return model


def _logged_at(client: MlflowClient, run_id: str, name: str, info: ModelInfo) -> int:
    """The time of the run's own point of a metric.

    MLflow adds a model's points to its run too, and stores only one of two equal points; with another time the
    run's curve would have two.
    """
    points = client.get_metric_history(run_id, name)
    return min((point.timestamp for point in points if point.step == info.step), default=info.time)


def _create_version(client: MlflowClient, run: Run, model: LoggedModel, info: ModelInfo) -> ModelVersion:
    """The run's version of the registered model."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(info.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Names are compared here, not in the query: a name may contain a quote.
    for version in client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        if version.name == info.name:
            return version
    base = read_comparison_base(client, info.name, info.manifest)
    return client.create_model_version(
        info.name,
        model.artifact_location,
        run.info.run_id,
        tags={
            **{metric: f"{value:.4f}" for metric, value in info.metrics.items()},
            SCORE_TAG: f"{info.score} {info.value!r}",
            MANIFEST_TAG: info.manifest,
            **base.tags(),
        },
        description=f"Best checkpoint of run {run.info.run_id} ({run.info.run_name}), epoch {info.step}.",
        model_id=model.model_id,
    )
