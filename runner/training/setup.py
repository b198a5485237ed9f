"""An experiment made ready: images scanned and split, network built, weights loaded, features set up."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from runner.config.schema import Experiment, Normalization
from runner.data import channel_stats
from runner.data import manifest as manifests
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.data.transforms import ViewTransform
from runner.features.cache import FeatureCache, FeatureStorage, InMemoryFeatures
from runner.features.eviction import feature_root
from runner.features.extractor import FeatureExtractor
from runner.models import pretrained
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.training import devices
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest

GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """An experiment with its images, network and features, ready to be trained or judged."""

    experiment: Experiment
    """With what was left to the device decided."""
    manifest: Manifest
    network: TransferModel
    features: FeatureCache
    loader: ImageLoader
    chunk: int


def prepare(
    experiment: Experiment,
    accelerator: Accelerator,
    terminal: Terminal,
    shared: SharedSetup | None = None,
) -> Setup:
    """Scan and split the images, build the network with its weights and cut, and set the features up.

    Args:
        experiment: What to prepare.
        accelerator: Device and peers.
        terminal: Shows progress.
        shared: With the other trials of a study, which differ in no setting of data, split or device. What is
            prepared with it holds no test split: what is tuned must not see it.

    Raises `UserError` for whatever in data, weights or settings cannot work.
    """
    cache = Path(experiment.cache).expanduser()
    with accelerator.local_main_process_first():
        manifest = shared.manifest if shared and shared.manifest else manifests.build_manifest(experiment, terminal)
        loader = make_loader(experiment, manifest, accelerator)
        for file in manifest.rejected:
            terminal.warn(f"left out {file.path}, which {file.error}")
        loaded = pretrained.read_weights(experiment.model)
        normalization = _normalisation(experiment, loaded, manifest, loader, cache, terminal)
    experiment = devices.decided(experiment, len(manifest.entries) + manifest.unused, accelerator)
    settings = experiment.model
    architecture = ModelSpec(
        arch=settings.arch,
        head=settings.head,
        pool=settings.pool,
        width=settings.width,
        dropout=settings.dropout,
        trainable=settings.trainable,
        classes=manifest.classes,
        normalization=normalization,
    )
    network = TransferModel(architecture, experiment.seed.train, random_weights=loaded is None)
    if network.trains_batch_norm and accelerator.num_processes > 1:
        raise UserError(
            f"model.trainable={settings.trainable} trains batch normalisation, whose statistics would differ from"
            " process to process; use one process, or train from a later layer on."
        )
    if loaded is not None:
        pretrained.load_weights(network, loaded)
    if shared is None:
        return assemble(experiment, manifest, network, loader, accelerator, terminal)
    shared.manifest = manifest
    return shared.assemble(experiment, manifest.without("test"), network, loader, accelerator, terminal)


@dataclass
class SharedSetup:
    """What the trials of a study share in one process: images, features, and rows in memory."""

    manifest: Manifest | None = None
    held: InMemoryFeatures = field(default_factory=OrderedDict)
    features: dict[str, FeatureCache] = field(default_factory=dict)

    def assemble(
        self,
        experiment: Experiment,
        manifest: Manifest,
        network: TransferModel,
        loader: ImageLoader,
        accelerator: Accelerator,
        terminal: Terminal,
    ) -> Setup:
        """As `assemble` does, with the features of an earlier trial that has the same prefix."""
        ready = assemble(experiment, manifest, network, loader, accelerator, terminal, self.held)
        if not ready.features.stored:
            return ready
        settings = experiment.model
        prefix = (
            settings.arch,
            settings.weights,
            settings.head,
            settings.pool,
            settings.trainable,
            network.split_index,
        )
        key = digest(prefix, network.spec.normalization, experiment.augment, experiment.seed.augment)
        return dataclasses.replace(ready, features=self.features.setdefault(key, ready.features))


def make_loader(experiment: Experiment, manifest: Manifest, accelerator: Accelerator) -> ImageLoader:
    """The loader of an experiment's views."""
    return ImageLoader(
        manifest.root,
        ViewTransform(experiment.augment, experiment.seed.augment),
        experiment.data.workers,
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        pin=accelerator.device.type == "cuda",
    )


def assemble(
    experiment: Experiment,
    manifest: Manifest,
    network: TransferModel,
    loader: ImageLoader,
    accelerator: Accelerator,
    terminal: Terminal,
    held: InMemoryFeatures | None = None,
) -> Setup:
    """Put a network on the device and set its features up."""
    network.to(accelerator.device)
    network.eval()
    settings = experiment.features
    chunk = int(settings.batch_size)
    prefix = FeatureExtractor(network, accelerator, chunk, settings.compile is True)
    kept = FeatureStorage(
        feature_root(experiment.cache),
        settings.memory * GIB,
        settings.cap * GIB,
        OrderedDict() if held is None else held,
    )
    features = FeatureCache(manifest, prefix, loader, accelerator, kept if settings.store else None, terminal)
    return Setup(experiment, manifest, network, features, loader, chunk)


def _normalisation(
    experiment: Experiment,
    loaded: pretrained.PretrainedWeights | None,
    manifest: Manifest,
    loader: ImageLoader,
    cache: Path,
    terminal: Terminal,
) -> Normalization:
    setting = experiment.model.normalize
    if isinstance(setting, Normalization):
        return setting
    if setting == "weights" and loaded is not None and loaded.normalization is not None:
        return loaded.normalization
    if setting in ("statistics", "weights"):
        if setting == "weights":
            terminal.warn(
                f"{experiment.model.weights} does not say its normalisation; taking the images' statistics"
            )
        return channel_stats.channel_statistics(manifest.select("train"), loader, cache, terminal)
    return pretrained.weights_normalization(setting)
