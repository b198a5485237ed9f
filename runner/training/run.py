"""One run: from an experiment to scores, checkpoints and figures. The path of the data, top to bottom."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from runner.config.schema import Experiment
from runner.config.tree import as_tree, as_yaml, flatten
from runner.data.transforms import EVALUATION_VIEW, view_of_epoch
from runner.evaluation import metrics
from runner.evaluation.inference import Inference
from runner.evaluation.metrics import Scores
from runner.evaluation.predictions import Predictions
from runner.explain.gallery import Gallery
from runner.features.computation import CacheStats
from runner.models import checkpoint
from runner.serving import packaging
from runner.serving.packaging import SelectedEpoch
from runner.tracking import interrupted_runs
from runner.tracking.interrupted_runs import RunRecord
from runner.tracking.tracker import Tracker
from runner.training import curves, devices, summary
from runner.training import environment as provenance
from runner.training.error_translation import translate_errors
from runner.training.loop import EpochResult, Keeper, LabeledFeatures, fit, saved_history
from runner.training.resume import ResumePoint, check_same_data, data_identity
from runner.training.setup import Setup, prepare
from runner.training.snapshot import Snapshot, reading_state
from runner.training.snapshot_policy import Keeping
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError


@dataclass(frozen=True)
class RunResult:
    """What came of a run."""

    history: tuple[EpochResult, ...]
    best: Scores
    """Of the best checkpoint, on the test split."""
    last: Scores
    """Of the final epoch, on the test split."""

    @property
    def best_epoch(self) -> EpochResult:
        """The epoch that the best checkpoint is of."""
        return [epoch for epoch in self.history if epoch.best][-1]

    def as_json(self) -> dict[str, Any]:
        """All but what was judged of each image."""
        history = [epoch.as_json() for epoch in self.history]
        return {"history": history, "best": self.best.to_dict(), "last": self.last.to_dict()}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> RunResult:
        """What `as_json` gave. Raises KeyError or TypeError where it did not."""
        history = tuple(EpochResult.from_json(each) for each in told["history"])
        return cls(history, Scores.from_dict(told["best"]), Scores.from_dict(told["last"]))


def train(
    experiment: Experiment,
    accelerator: Accelerator,
    tracker: Tracker,
    terminal: Terminal,
    start: ResumePoint | None = None,
    parent: str = "",
) -> RunResult:
    """Run an experiment: train, keep the best and the last checkpoint, and judge both on the test split, once.

    Every process calls it; `tracker` and `terminal` do nothing on ranks beyond the first.

    Args:
        experiment: What to run.
        accelerator: Device and peers.
        tracker: Hears of every step.
        terminal: Shows progress.
        start: Where an interrupted run goes on; None: from the beginning.
        parent: Id of the run that this one is a child of.

    Raises `UserError` as `prepare` and `fit` do, and where a run cannot go on with these images or weights.
    """
    with translate_errors(experiment, accelerator):
        return _train(
            experiment, accelerator, tracker, terminal, start or ResumePoint(as_tree(experiment)), parent
        )


def _train(
    experiment: Experiment,
    accelerator: Accelerator,
    tracker: Tracker,
    terminal: Terminal,
    start: ResumePoint,
    parent: str,
) -> RunResult:
    state = tracker.local_folder("state") if accelerator.is_main_process else None
    if state is not None and not start.run_id:  # killed from here on, it goes on as this run
        interrupted_runs.write_record(
            state, RunRecord(tracker.name, start.asked, parent_id=parent)
        )
    try:
        ready = prepare(experiment, accelerator, terminal)
    except BaseException:  # it had not begun
        if state is not None and not start.run_id:
            (state / "run.json").unlink(missing_ok=True)
        raise
    network, manifest, features = ready.network, ready.manifest, ready.features
    frozen = checkpoint.frozen_digest(network) if accelerator.is_main_process else ""
    identity = data_identity(ready, frozen, accelerator)
    check_same_data(start, ready, identity, terminal)
    _log_start(ready, start, accelerator, tracker)
    demand = features.reserve_space(wanted(experiment))
    summary.print_start(ready, demand, accelerator, terminal)
    use = packaging.inference_settings(ready.experiment)
    best: dict[str, Tensor] = {}
    gallery = (
        Gallery(network, manifest.select("val"), ready.loader, experiment.tracking, tracker)
        if accelerator.is_main_process
        else None
    )

    def keep(epoch: EpochResult, name: str) -> None:
        if accelerator.is_main_process:
            path = tracker.artifact_path(f"checkpoints/{name}.safetensors")
            if not (path.parent / checkpoint.FROZEN_FILE).exists():
                checkpoint.save_frozen(network, path.parent)
            checkpoint.save(network, path, epoch.number, epoch.val.to_dict(), frozen, use)

    def more() -> tuple[dict[str, Tensor], dict[str, Any]]:
        account = dataclasses.asdict(features.stats)
        told = {
            "gallery": gallery.indices if gallery else [],
            "account": account,
            **identity,
        }
        return {f"best/{name}": value for name, value in best.items()}, told

    keeping = Keeping(state, experiment.checkpoints, more, start.snapshot, bool(start.branch))
    history: list[EpochResult] = []
    if state is not None:
        resolved = interrupted_runs.resolved_settings(ready.experiment)
        record = RunRecord(tracker.name, start.asked, resolved, parent)
        interrupted_runs.write_record(state, record)
    if start.snapshot is not None:
        history += _take_up(start.snapshot, ready, best, gallery, keep)
        for epoch in history:  # what was recorded is not recorded twice
            tracker.log_metrics(epoch.metrics(), epoch.number)

    def on_epoch(epoch: EpochResult) -> None:
        history.append(epoch)
        if epoch.best:
            best.update({name: value.detach().clone() for name, value in network.trainable_state().items()})
            keep(epoch, "best")
        tracker.log_metrics(epoch.metrics(), epoch.number)
        terminal.line(summary.epoch_line(epoch))
        if gallery and gallery.due(epoch.number):
            gallery.show(epoch.number, epoch.judged)

    try:
        learn(ready, accelerator, on_epoch, terminal, keeping)
        keep(history[-1], "last")
    except DivergedError:
        if state is not None:
            interrupted_runs.write_record(state, dataclasses.replace(record, diverged=True))
        raise
    finally:  # what a stopped run has learned is kept
        _log_learned(ready, history, accelerator, tracker)
    rows, labels = features.get("test", EVALUATION_VIEW), manifest.labels("test")
    inference = Inference(network, accelerator, ready.chunk)
    of_last = inference.logits(rows, len(labels))
    network.load_state_dict(best, strict=False)
    of_best = inference.logits(rows, len(labels))
    result = RunResult(
        tuple(history),
        metrics.scores_from_logits(of_best, labels),
        metrics.scores_from_logits(of_last, labels),
    )
    _log_result(ready, result, tracker)
    if gallery:  # on rank 0
        tracker.log_text("predictions.csv", Predictions.of_split(manifest, "test", of_best).to_csv())
        chosen = result.best_epoch
        gallery.show(chosen.number, chosen.judged)
        selected = SelectedEpoch(chosen.number, chosen.val.to_dict(), chosen.val.metrics("val"))
        packaging.log_model(ready.experiment, network, manifest, ready.loader, selected, tracker)
        tracker.log_metrics(keeping.metrics())
    return result


def _take_up(
    kept: Snapshot,
    ready: Setup,
    best: dict[str, Tensor],
    gallery: Gallery | None,
    keep: Callable[[EpochResult, str], None],
) -> list[EpochResult]:
    """Stand where an interrupted run stood, but for its fit: best checkpoint, pictures, account; its epochs."""
    with reading_state():
        epochs = saved_history(kept)
        best.update(kept.part("best"))
        if best:
            ready.network.load_state_dict(best, strict=False)
            keep([epoch for epoch in epochs if epoch.best][-1], "best")
        if gallery is not None:
            gallery.select(kept.about["gallery"])
        ready.features.stats = CacheStats(**kept.about["account"])
    return epochs


def learn(
    ready: Setup,
    accelerator: Accelerator,
    on_epoch: Callable[[EpochResult], None],
    terminal: Terminal,
    keeper: Keeper | None = None,
) -> list[EpochResult]:
    """Train on the training split and judge each epoch on validation; the test split is not read.

    Raises `UserError` as `fit` does, and whatever `on_epoch` raises.
    """
    manifest, features, augment = ready.manifest, ready.features, ready.experiment.augment
    return fit(
        ready.experiment,
        ready.network,
        LabeledFeatures(
            lambda epoch: features.get("train", view_of_epoch(epoch, augment.views)),
            manifest.labels("train"),
        ),
        LabeledFeatures(lambda _: features.get("val", EVALUATION_VIEW), manifest.labels("val")),
        accelerator,
        ready.chunk,
        on_epoch,
        terminal,
        keeper,
    )


def wanted(experiment: Experiment) -> list[tuple[str, int]]:
    """The splits and views that a run uses, if it does not stop early."""
    epochs = range(experiment.train.epochs)
    views = sorted({view_of_epoch(epoch, experiment.augment.views) for epoch in epochs})
    return [*(("train", view) for view in views), ("val", EVALUATION_VIEW), ("test", EVALUATION_VIEW)]


def _log_start(ready: Setup, start: ResumePoint, accelerator: Accelerator, tracker: Tracker) -> None:
    experiment, manifest = ready.experiment, ready.manifest
    tracker.log_params(flatten(as_tree(experiment)))
    if not accelerator.is_main_process:
        return
    environment = provenance.environment(accelerator)
    tracker.set_tags(
        {
            "runner.manifest": manifest.digest,
            "runner.device": devices.describe(accelerator),
            **({"runner.resumed": _where(start)} if start.run_id else {}),
            **({"runner.branch_of": f"{start.branch} at {_where(start)}"} if start.branch else {}),
            "mlflow.user": environment["user"],
            "mlflow.source.name": environment["command"].split()[0],
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.git.commit": environment["git_commit"]} if environment["git_commit"] else {}),
        }
    )
    counts = Counter(entry.split for entry in manifest.entries)
    tracker.log_dataset(
        experiment.data.kind if experiment.data.kind != "folder" else manifest.root.name,
        manifest.digest[:32],
        str(manifest.root),
        json.dumps({"images": len(manifest.entries), "classes": len(manifest.classes), **counts}),
    )
    tracker.log_text("experiment.yaml", as_yaml(experiment))
    tracker.log_text("manifest.csv", manifest.to_csv())
    if manifest.rejected:
        tracker.log_text("unreadable.csv", manifest.rejected_to_csv())
    tracker.log_text("environment.json", json.dumps(environment, indent=1))


def _where(start: ResumePoint) -> str:
    return f"step {start.snapshot.step}" if start.snapshot else "the beginning"


def _log_learned(
    ready: Setup, history: list[EpochResult], accelerator: Accelerator, tracker: Tracker
) -> None:
    if not accelerator.is_main_process or not history:
        return
    for path in sorted(tracker.artifact_path("checkpoints/any").parent.glob("*.safetensors")):
        tracker.log_artifact(path, "checkpoints")
    loss, accuracy = (tracker.artifact_path(f"figures/{name}.png") for name in ("loss", "accuracy"))
    curves.curves(history, f"{ready.experiment.name}, {tracker.name}", loss, accuracy)
    tracker.log_artifact(loss, "figures")
    tracker.log_artifact(accuracy, "figures")


def _log_result(ready: Setup, result: RunResult, tracker: Tracker) -> None:
    # At step 0 the UI draws them as bars, which compare; elsewhere as curves of one point.
    tracker.log_metrics({**result.best.metrics("test/best"), **result.last.metrics("test/last")})
    tracker.log_metrics({**result.best_epoch.val.metrics("val/best"), "best_epoch": result.best_epoch.number})
    if ready.network.split_index:
        tracker.log_metrics(ready.features.stats.metrics())
        tracker.log_metrics({"features/store_mib": ready.features.disk_bytes() / 2**20})
