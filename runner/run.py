"""One run: from an experiment to scores, checkpoints and figures. The path of the data, top to bottom."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from runner import checkpoint, devices, figures, overview, packing, provenance, scores
from runner.experiment import Experiment, as_tree, as_yaml, flatten
from runner.fit import Epoch, Inputs, fit
from runner.gallery import Gallery
from runner.judging import outcomes, predict
from runner.prepared import Prepared, prepare
from runner.scores import Scores
from runner.terminal import Terminal
from runner.tracker import Tracker
from runner.views import CLEAN, view_of


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    history: tuple[Epoch, ...]
    best: Scores
    """Of the best checkpoint, on the test split."""
    last: Scores
    """Of the final epoch, on the test split."""

    @property
    def best_epoch(self) -> Epoch:
        """The epoch that the best checkpoint is of."""
        return [epoch for epoch in self.history if epoch.best][-1]


def train(experiment: Experiment, accelerator: Accelerator, tracker: Tracker, terminal: Terminal) -> Result:
    """Run an experiment: train, keep the best and the last checkpoint, and judge both on the test split, once.

    Every process calls it; `tracker` and `terminal` do nothing on ranks beyond the first.

    Raises `UserError` as `prepare` and `fit` do.
    """
    ready = prepare(experiment, accelerator, terminal)
    network, manifest, features = ready.network, ready.manifest, ready.features
    _log_start(ready, accelerator, tracker)
    demand = features.reserve(wanted(experiment))
    overview.say_start(ready, demand, accelerator, terminal)
    frozen = checkpoint.frozen_digest(network) if accelerator.is_main_process else ""
    use = packing.use(ready.experiment)
    best: dict[str, Tensor] = {}
    gallery = Gallery(ready, tracker) if accelerator.is_main_process else None

    def keep(epoch: Epoch, name: str) -> None:
        if accelerator.is_main_process:
            path = tracker.stage(f"checkpoints/{name}.safetensors")
            if not (path.parent / checkpoint.FROZEN).exists():
                checkpoint.save_frozen(network, path.parent)
            checkpoint.save(network, path, epoch.number, epoch.val.as_dict(), frozen, use)

    history: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        if epoch.best:
            best.update({name: value.detach().clone() for name, value in network.parts()[0].items()})
            keep(epoch, "best")
        tracker.metrics(epoch.metrics(), epoch.number)
        terminal.line(overview.epoch_line(epoch))
        if gallery and gallery.due(epoch):
            gallery.show(epoch)

    try:
        learn(ready, accelerator, on_epoch, terminal)
        keep(history[-1], "last")
    finally:  # what a stopped run has learned is kept
        _log_learned(ready, history, accelerator, tracker)
    rows, labels = features.rows("test", CLEAN), manifest.labels("test")
    of_last = predict(network, rows, len(labels), accelerator, ready.chunk)
    network.load_state_dict(best, strict=False)
    of_best = predict(network, rows, len(labels), accelerator, ready.chunk)
    result = Result(tuple(history), scores.of_logits(of_best, labels), scores.of_logits(of_last, labels))
    _log_result(ready, result, tracker)
    if gallery:  # on rank 0
        tracker.text("predictions.csv", outcomes(manifest, "test", of_best).as_csv())
        gallery.show(result.best_epoch)
        packing.publish(ready, result.best_epoch, tracker)
    return result


def learn(
    ready: Prepared, accelerator: Accelerator, on_epoch: Callable[[Epoch], None], terminal: Terminal
) -> list[Epoch]:
    """Train on the training split and judge each epoch on validation; the test split is not read.

    Raises `UserError` as `fit` does, and whatever `on_epoch` raises.
    """
    manifest, features, views = ready.manifest, ready.features, ready.experiment.views
    return fit(
        ready.experiment,
        ready.network,
        Inputs(lambda epoch: features.rows("train", view_of(epoch, views.train)), manifest.labels("train")),
        Inputs(lambda _: features.rows("val", CLEAN), manifest.labels("val")),
        accelerator,
        ready.chunk,
        on_epoch,
        terminal,
    )


def wanted(experiment: Experiment) -> list[tuple[str, int]]:
    """The splits and views that a run uses, if it does not stop early."""
    epochs = range(experiment.fit.epochs)
    views = sorted({view_of(epoch, experiment.views.train) for epoch in epochs})
    return [*(("train", view) for view in views), ("val", CLEAN), ("test", CLEAN)]


def _log_start(ready: Prepared, accelerator: Accelerator, tracker: Tracker) -> None:
    experiment, manifest = ready.experiment, ready.manifest
    tracker.params(flatten(as_tree(experiment)))
    if not accelerator.is_main_process:
        return
    environment = provenance.environment(accelerator)
    tracker.tags(
        {
            "runner.manifest": manifest.digest,
            "runner.device": devices.describe(accelerator),
            "mlflow.user": environment["user"],
            "mlflow.source.name": environment["command"].split()[0],
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.git.commit": environment["git_commit"]} if environment["git_commit"] else {}),
        }
    )
    counts = Counter(entry.split for entry in manifest.entries)
    tracker.dataset(
        experiment.data.kind if experiment.data.kind != "folder" else manifest.root.name,
        manifest.digest[:32],
        str(manifest.root),
        json.dumps({"images": len(manifest.entries), "classes": len(manifest.classes), **counts}),
    )
    tracker.text("experiment.yaml", as_yaml(experiment))
    tracker.text("manifest.csv", manifest.as_csv())
    if manifest.rejected:
        tracker.text("unreadable.csv", manifest.rejected_as_csv())
    tracker.text("environment.json", json.dumps(environment, indent=1))


def _log_learned(ready: Prepared, history: list[Epoch], accelerator: Accelerator, tracker: Tracker) -> None:
    if not accelerator.is_main_process or not history:
        return
    for path in sorted(tracker.stage("checkpoints/any").parent.glob("*.safetensors")):
        tracker.artifact(path, "checkpoints")
    loss, accuracy = (tracker.stage(f"figures/{name}.png") for name in ("loss", "accuracy"))
    figures.curves(history, f"{ready.experiment.name}, {tracker.name}", loss, accuracy)
    tracker.artifact(loss, "figures")
    tracker.artifact(accuracy, "figures")


def _log_result(ready: Prepared, result: Result, tracker: Tracker) -> None:
    # At step 0 the UI draws them as bars, which compare; elsewhere as curves of one point.
    tracker.metrics({**result.best.metrics("test/best"), **result.last.metrics("test/last")})
    tracker.metrics({**result.best_epoch.val.metrics("val/best"), "best_epoch": result.best_epoch.number})
    if ready.network.cut:
        tracker.metrics(ready.features.account.metrics())
        tracker.metrics({"features/store_mib": ready.features.bytes() / 2**20})
