"""One run: from an experiment to scores, checkpoints and figures. The path of the data, top to bottom."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from runner import channels, checkpoint, devices, figures, overview, provenance, weights
from runner import manifest as manifests
from runner.errors import UserError
from runner.experiment import Experiment, Normalisation, as_tree, as_yaml, flatten
from runner.features import Features
from runner.fit import Epoch, Inputs, evaluate, fit
from runner.loading import Loader
from runner.manifest import Manifest
from runner.network import Architecture, Network
from runner.scores import Scores
from runner.terminal import Terminal
from runner.tracker import Tracker
from runner.views import CLEAN, Renderer, view_of


@dataclass(frozen=True)
class Prepared:
    """An experiment with its images, network and features, ready to be trained or judged."""

    experiment: Experiment
    """With what was left to the device decided."""
    manifest: Manifest
    network: Network
    features: Features
    chunk: int


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


def prepare(experiment: Experiment, accelerator: Accelerator, terminal: Terminal) -> Prepared:
    """Scan and split the images, build the network with its weights and cut, and set the features up.

    Raises `UserError` for whatever in data, weights or settings cannot work.
    """
    chunk = devices.chunk(experiment.features.chunk, accelerator.device)
    experiment = dataclasses.replace(
        experiment,
        features=dataclasses.replace(experiment.features, chunk=chunk),
        fit=dataclasses.replace(experiment.fit, precision=accelerator.mixed_precision),
    )
    cache = Path(experiment.cache).expanduser()
    with accelerator.local_main_process_first():
        manifest = manifests.build(experiment, terminal)
        loader = make_loader(experiment, manifest, accelerator)
        for file in manifest.rejected:
            terminal.warn(f"left out {file.path}, which {file.fault}")
        loaded = weights.read(experiment.network)
        normalisation = _normalisation(experiment, loaded, manifest, loader, cache, terminal)
    settings = experiment.network
    architecture = Architecture(
        arch=settings.arch,
        head=settings.head,
        pool=settings.pool,
        width=settings.width,
        dropout=settings.dropout,
        trainable=settings.trainable,
        classes=manifest.classes,
        normalisation=normalisation,
    )
    network = Network(architecture, experiment.seed.fit, random=loaded is None)
    if network.trains_statistics and accelerator.num_processes > 1:
        raise UserError(
            f"network.trainable={settings.trainable} trains batch normalisation, whose statistics would differ from"
            " process to process; use one process, or train from a later layer on."
        )
    if loaded is not None:
        weights.load(network, loaded)
    return assemble(experiment, manifest, network, loader, accelerator, terminal)


def make_loader(experiment: Experiment, manifest: Manifest, accelerator: Accelerator) -> Loader:
    """The loader of an experiment's views."""
    return Loader(
        manifest.root,
        Renderer(experiment.views, experiment.seed.views),
        experiment.data.workers,
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        pin=accelerator.device.type == "cuda",
    )


def assemble(
    experiment: Experiment,
    manifest: Manifest,
    network: Network,
    loader: Loader,
    accelerator: Accelerator,
    terminal: Terminal,
) -> Prepared:
    """Put a network on the device and set its features up."""
    network.to(accelerator.device)
    network.eval()
    root = Path(experiment.cache).expanduser() / "features" if experiment.features.store else None
    chunk = int(experiment.features.chunk)
    features = Features(manifest, network, loader, accelerator, chunk, root, terminal)
    return Prepared(experiment, manifest, network, features, chunk)


def _normalisation(
    experiment: Experiment,
    loaded: weights.Weights | None,
    manifest: Manifest,
    loader: Loader,
    cache: Path,
    terminal: Terminal,
) -> Normalisation:
    setting = experiment.network.normalise
    if isinstance(setting, Normalisation):
        return setting
    if setting == "weights" and loaded is not None and loaded.normalisation is not None:
        return loaded.normalisation
    if setting in ("statistics", "weights"):
        if setting == "weights":
            terminal.warn(
                f"{experiment.network.weights} does not say its normalisation; taking the images' statistics"
            )
        return channels.statistics(manifest.select("train"), loader, cache, terminal)
    return weights.normalisation_of(setting)


def train(experiment: Experiment, accelerator: Accelerator, tracker: Tracker, terminal: Terminal) -> Result:
    """Run an experiment: train, keep the best and the last checkpoint, and judge both on the test split, once.

    Every process calls it; `tracker` and `terminal` do nothing on ranks beyond the first.

    Raises `UserError` as `prepare` and `fit` do.
    """
    ready = prepare(experiment, accelerator, terminal)
    network, manifest, features = ready.network, ready.manifest, ready.features
    _log_start(ready, accelerator, tracker)
    overview.say_start(ready, accelerator, terminal)
    frozen = checkpoint.frozen_digest(network) if accelerator.is_main_process else ""
    best: dict[str, Tensor] = {}

    def keep(epoch: Epoch, name: str) -> None:
        if accelerator.is_main_process:
            path = tracker.stage(f"checkpoints/{name}.safetensors")
            if not (path.parent / checkpoint.FROZEN).exists():
                checkpoint.save_frozen(network, path.parent)
            checkpoint.save(network, path, epoch.number, epoch.val.as_dict(), frozen)

    history: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        if epoch.best:
            best.update({name: value.detach().clone() for name, value in network.parts()[0].items()})
            keep(epoch, "best")
        tracker.metrics(epoch.metrics(), epoch.number)
        terminal.line(overview.epoch_line(epoch))

    train_labels, val_labels = manifest.labels("train"), manifest.labels("val")
    try:
        fit(
            ready.experiment,
            network,
            Inputs(
                lambda epoch: features.rows("train", view_of(epoch, experiment.views.train)), train_labels
            ),
            Inputs(lambda _: features.rows("val", CLEAN), val_labels),
            accelerator,
            ready.chunk,
            on_epoch,
            terminal,
        )
        keep(history[-1], "last")
    finally:  # what a stopped run has learned is kept
        _log_learned(ready, history, accelerator, tracker)
    test_rows, test_labels = features.rows("test", CLEAN), manifest.labels("test")
    last_scores = evaluate(network, test_rows, test_labels, accelerator, ready.chunk)
    network.load_state_dict(best, strict=False)
    best_scores = evaluate(network, test_rows, test_labels, accelerator, ready.chunk)
    result = Result(tuple(history), best_scores, last_scores)
    _log_result(ready, result, tracker)
    return result


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
    tracker.metrics(ready.features.account.metrics())
