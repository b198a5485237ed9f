"""The model registry: logs a run's best model, registers it as a version, and selects the experiment's champion.

Every step may be repeated without harm: what exists already is not created again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from runner.config.identity import MANIFEST_TAG
from runner.utils.errors import UserError
from runner.utils.hard_links import copy_folder, linked_files
from runner.utils.paths import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of an experiment's best model, by its validation score. `champion-DIGEST` is the best on the images and
split of that manifest, as scores on others cannot be compared; `champion` is one of them."""
SCORE_TAG = "runner.score"
"""Tag of a version: the name of the score by which it was chosen, and its value with all digits."""
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

    @property
    def alias(self) -> str:
        """The alias of the best model on its images and split."""
        return champion_alias(self.manifest)


def champion_alias(manifest: str) -> str:
    """The alias of the best model on the images and split of a manifest, given its digest."""
    return f"{CHAMPION}-{manifest[:8]}"


def registered_name(experiment: str) -> str:
    """The name under which an experiment's models are registered: MLflow allows no colon or slash in it."""
    return experiment.replace(":", "-").replace("/", "-")


def register_model(client: MlflowClient, run_id: str, folder: Path, info: ModelInfo, lock: Path) -> str:
    """Log and register a run's model, and make it the champion if it is better. Returns a sentence about it.

    Args:
        client: Of the tracking server, which is also the registry.
        run_id: The run that trained it.
        folder: The model in MLflow's format.
        info: What to register with it.
        lock: File lock, so that two processes of this host do not move the champion at the same time.

    Raises whatever MLflow raises when the server does not answer or refuses.
    """
    run = client.get_run(run_id)
    model = _log_model(client, run, folder, info)
    if not info.name:
        return f"model {model.model_id} is logged with its run {run_id[:8]}, and not registered"
    with FileLock(lock):
        version = _create_version(client, run, model, info)
        return _update_champion(client, version, info)


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
    return client.create_model_version(
        info.name,
        model.artifact_location,
        run.info.run_id,
        tags={
            **{metric: f"{value:.4f}" for metric, value in info.metrics.items()},
            SCORE_TAG: f"{info.score} {info.value!r}",
            MANIFEST_TAG: info.manifest,
        },
        description=f"Best checkpoint of run {run.info.run_id} ({run.info.run_name}), epoch {info.step}.",
        model_id=model.model_id,
    )


def _update_champion(client: MlflowClient, version: ModelVersion, info: ModelInfo) -> str:
    """Make a version the champion of its images if there is none, or if its score is higher."""
    label = f"model {info.name!r} version {version.version}"
    aliases = client.get_registered_model(info.name).aliases
    overall, champion = (
        client.get_model_version(info.name, str(aliases[alias])) if alias in aliases else None
        for alias in (CHAMPION, info.alias)
    )
    if champion is None and overall is not None and overall.tags.get(MANIFEST_TAG) == info.manifest:
        champion = overall
    better, how = _compare(version, champion, info)
    if overall is None and champion is not None and not better:  # somebody has removed the alias
        client.set_registered_model_alias(info.name, CHAMPION, champion.version)
    if not better:
        return f"{label} is registered; the champion {how}"
    client.set_registered_model_alias(info.name, info.alias, version.version)
    if overall is None or overall.tags.get(MANIFEST_TAG) == info.manifest:
        client.set_registered_model_alias(info.name, CHAMPION, version.version)
        return f"{label} is the {how}"
    return (
        f"{label} is the {how} of its images, {info.name}@{info.alias}; {info.name}@{CHAMPION} is still version"
        f" {overall.version}, which has other images or another split:"
        f" ./launch.sh runs champion {(version.run_id or '')[:8]} makes it this one"
    )


def _compare(version: ModelVersion, champion: ModelVersion | None, info: ModelInfo) -> tuple[bool, str]:
    """Whether a version takes a champion's place, and how that is said."""
    score = f"{info.score} {info.value:.4f}"
    if champion is None:
        return True, f"champion, as the first ({score})"
    if champion.version == version.version:
        return True, f"champion ({score})"
    if (other := _score(champion, info.score)) is None:
        advice = f"./launch.sh runs champion {(version.run_id or '')[:8]} makes it this one"
        return False, f"is still version {champion.version}, which has no {info.score} to compare: {advice}"
    comparison = f"{score} against {other:.4f} of version {champion.version}"
    return (True, f"new champion ({comparison})") if info.value > other else (False, f"stays ({comparison})")


def _score(version: ModelVersion, name: str) -> float | None:
    """A version's score with all digits, or with those of its tag if it was chosen by another score."""
    known, _, value = version.tags.get(SCORE_TAG, "").rpartition(" ")
    text = value if known == name else version.tags.get(name)
    return None if text is None else float(text)


def make_champion(client: MlflowClient, run_id: str) -> str:
    """Give a run's registered model the alias `champion`. Returns a sentence; raises `UserError` if it has none."""
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not versions:
        raise UserError(
            f"Run {run_id[:8]} has no registered model; train it without --tracking.register false."
        )
    version = versions[0]
    aliases = [CHAMPION]
    if manifest := version.tags.get(MANIFEST_TAG):  # later models of its images are compared with it
        aliases.append(champion_alias(manifest))
    for alias in aliases:
        client.set_registered_model_alias(version.name, alias, version.version)
    return f"model {version.name!r} version {version.version} of run {run_id[:8]} is the champion"
