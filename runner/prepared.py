"""An experiment made ready: images scanned and split, network built, weights loaded, features set up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from runner import channels, devices, weights
from runner import manifest as manifests
from runner.errors import UserError
from runner.experiment import Experiment, Normalisation
from runner.features import Features, Kept
from runner.loading import Loader
from runner.manifest import Manifest
from runner.network import Architecture, Network
from runner.prefix import Prefix
from runner.stores import root_of
from runner.terminal import Terminal
from runner.views import Renderer

GIB = 2**30


@dataclass(frozen=True)
class Prepared:
    """An experiment with its images, network and features, ready to be trained or judged."""

    experiment: Experiment
    """With what was left to the device decided."""
    manifest: Manifest
    network: Network
    features: Features
    chunk: int


def prepare(experiment: Experiment, accelerator: Accelerator, terminal: Terminal) -> Prepared:
    """Scan and split the images, build the network with its weights and cut, and set the features up.

    Raises `UserError` for whatever in data, weights or settings cannot work.
    """
    cache = Path(experiment.cache).expanduser()
    with accelerator.local_main_process_first():
        manifest = manifests.build(experiment, terminal)
        loader = make_loader(experiment, manifest, accelerator)
        for file in manifest.rejected:
            terminal.warn(f"left out {file.path}, which {file.fault}")
        loaded = weights.read(experiment.network)
        normalisation = _normalisation(experiment, loaded, manifest, loader, cache, terminal)
    experiment = devices.decided(experiment, len(manifest.entries) + manifest.unused, accelerator)
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
    settings = experiment.features
    chunk = int(settings.chunk)
    prefix = Prefix(network, accelerator, chunk, settings.compile is True)
    kept = (
        Kept(root_of(experiment.cache), settings.memory * GIB, settings.cap * GIB) if settings.store else None
    )
    features = Features(manifest, prefix, loader, accelerator, kept, terminal)
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
