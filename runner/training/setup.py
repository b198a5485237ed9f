"""Sets an experiment up: scans and splits the images, builds the model, loads its weights, opens the feature cache."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import os
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest, ScannedImages, scan_dataset
from runner.data.transforms import EVALUATION_VIEW, ViewTransform, view_of_epoch
from runner.evaluation.inference import Inference
from runner.features import eviction
from runner.features.cache import NOTHING, FeatureCache, FeatureStorage, MissingFeatures, SplitViews
from runner.features.eviction import feature_root
from runner.features.extractor import FeatureExtractor
from runner.features.in_memory import InMemoryFeatures
from runner.models import pretrained
from runner.models.transfer_model import TransferModel
from runner.training import devices, hosts
from runner.training.batches import check_batch_statistics
from runner.training.build_model import build_model, normalization_of
from runner.training.preflight import warn_about_images
from runner.training.solvers.memory import check_memory
from runner.training.solvers.products import KeptProducts
from runner.utils.console import Terminal
from runner.utils.hashing import digest
from runner.utils.long_wait import long_wait

GIB = 2**30
MOST_SHARED = 2
"""Kinds of features that trainings in one process share. With `model.normalize=statistics` each fold has its own."""


@dataclass(frozen=True)
class Setup:
    """An experiment with its images, model and features, ready for training or evaluation."""

    experiment: Experiment
    """With "auto" resolved; but for `features.compile`, if it is not known and must not be measured."""
    manifest: Manifest
    model: TransferModel
    features: FeatureCache
    """With `model.trainable`: those of the last stage of training, and of the test."""
    loader: ImageLoader
    accelerator: Accelerator
    products: KeptProducts | None = None
    """Those of features that solvers of other trainings had; None: they are not kept."""
    earlier_features: tuple[FeatureCache, ...] = ()
    """Those of earlier stages of training, if there are any."""

    @property
    def stage_features(self) -> tuple[FeatureCache, ...]:
        """The features of each stage of training."""
        return (*self.earlier_features, self.features)

    def features_at(self, epoch: int) -> FeatureCache:
        """The features that an epoch, from 0, trains on."""
        return self.stage_features[self.experiment.train.stage_of(epoch)]

    @property
    def required_features(self) -> list[tuple[FeatureCache, SplitViews]]:
        """The features that a run uses if it does not stop early, with their splits and views."""
        required: list[tuple[FeatureCache, set[int]]] = []
        for stage, features in enumerate(self.stage_features):
            if not (
                required and required[-1][0] is features
            ):  # stages with the same features follow each other
                required.append((features, set()))
            required[-1][1].update(views_of_stage(self.experiment, stage))
        last = [("test", EVALUATION_VIEW)]
        return [
            (
                features,
                [*(("train", view) for view in sorted(views)), ("val", EVALUATION_VIEW)]
                + last * (features is self.features),
            )
            for features, views in required
        ]

    def reserve_space(self) -> MissingFeatures:
        """Make room for these, as `FeatureCache.reserve_space` does. Every process calls this together."""
        # Where the last stage trains everything, only earlier ones have features.
        *others, (features, wanted) = sorted(self.required_features, key=lambda each: each[0].stored)
        beside = sum((each.missing(views) for each, views in others), start=NOTHING)
        return features.reserve_space(wanted, beside)

    def disk_bytes(self) -> int:
        """Bytes on disk of the stores of features that were used."""
        used = set[Path]().union(*(features.folders() for features in self.stage_features))
        stores = eviction.list_stores(feature_root(self.experiment.cache)) if used else []
        return sum(store.bytes for store in stores if store.folder in used)

    @property
    def batch_size(self) -> int:
        """The inference batch size."""
        return int(self.experiment.features.batch_size)

    def inference(self) -> Inference:
        """Inference with the model, in batches of that size."""
        return Inference(self.model, self.accelerator, self.batch_size)


def views_of_stage(experiment: Experiment, stage: int) -> list[int]:
    """The views of training images that the epochs of a stage use."""
    train = experiment.train
    epochs = (epoch for epoch in range(train.max_epochs) if train.stage_of(epoch) == stage)
    return sorted({view_of_epoch(epoch, experiment.augment.views) for epoch in epochs})


@dataclass
class SharedSetup:
    """What several trainings share in one process: scanned images, features, features in memory.

    They have the same settings of data and device: the trials of a study, the runs of a repeated run.
    """

    hides_test: bool = False
    """Their setups have no test split: tuning must not see it."""
    images: ScannedImages | None = None
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """By the settings that split the images."""
    in_memory: InMemoryFeatures = field(default_factory=InMemoryFeatures)
    features: dict[str, FeatureCache] = field(default_factory=dict)
    """By frozen backbone and views, the oldest first. Each holds a model."""
    products: KeptProducts | None = None
    """Of features, for solvers of the same images; None: each training has others."""

    @classmethod
    def of_trials(cls, experiment: Experiment | None = None, manifest: Manifest | None = None) -> SharedSetup:
        """What the trials of a study share; `manifest` has the images of `experiment`, if they are scanned already."""
        known = {_split_key(experiment): manifest} if experiment is not None and manifest is not None else {}
        return cls(hides_test=True, manifests=known, products=KeptProducts())

    def manifest(self, experiment: Experiment, terminal: Terminal) -> Manifest:
        """The images of an experiment, with all splits. Raises `UserError` as `build_manifest`."""
        key = _split_key(experiment)
        if key not in self.manifests:
            if self.images is None:
                self.images = scan_dataset(experiment, terminal)
            self.manifests[key] = self.images.split(experiment)
        return self.manifests[key]

    def share(self, setup: Setup) -> Setup:
        """The setup with what others have: products, and features if an earlier one has the same backbone and views."""
        setup = dataclasses.replace(setup, products=self.products)
        if not setup.features.stored:
            return setup
        model, settings = setup.model, setup.experiment.model
        backbone = (
            settings.arch,
            settings.weights,
            settings.head,
            settings.pool,
            settings.pooled_layers,
            settings.trainable,
            model.split_index,
        )
        views = (setup.experiment.augment, setup.experiment.seed.augment)
        key = digest(backbone, model.spec.normalization, *views)
        if key not in self.features:
            self.features[key] = setup.features
            if len(self.features) > MOST_SHARED:
                del self.features[next(iter(self.features))]
            return setup
        return dataclasses.replace(setup, features=self.features[key].of(setup.manifest))

    def make_room(self) -> None:
        """Drop what is in memory to save time only: features, which are read from their stores again, and products."""
        self.in_memory.tables.clear()
        if self.products is not None:
            self.products.clear()


def _split_key(experiment: Experiment) -> str:
    return digest(dataclasses.asdict(experiment.split), experiment.seed.split, experiment.seed.val)


@long_wait()
def prepare(
    experiment: Experiment,
    accelerator: Accelerator,
    terminal: Terminal,
    shared: SharedSetup | None = None,
    may_measure: bool = True,
) -> Setup:
    """Set an experiment up for training.

    Args:
        experiment: What to set up.
        accelerator: Device and processes. Every process calls this function.
        terminal: Shows progress.
        shared: What it shares with other trainings; None: nothing.
        may_measure: Try for some seconds whether to compile the frozen backbone, if that is not known.

    Raises `UserError` if data, weights or settings cannot work.
    """
    _freeze_imported_objects()
    with accelerator.local_main_process_first():
        shared, is_alone = shared or SharedSetup(), shared is None
        manifest = shared.manifest(experiment, terminal)
        if is_alone:
            warn_about_images(manifest, terminal)
        if manifest.depth is not None:
            data = dataclasses.replace(experiment.data, depth=manifest.depth)
            experiment = dataclasses.replace(experiment, data=data)
        weights = pretrained.read_weights(experiment.model, experiment.augment.input_size, experiment.cache)
        loader = _loader(experiment, manifest, accelerator)
        normalization = normalization_of(experiment, weights, manifest, loader, terminal)
    hosts.check_same_data(manifest.digest, experiment)
    model = build_model(experiment, manifest.classes, normalization, weights)
    if model.trains_batch_norm:
        check_batch_statistics(experiment.train)
    if experiment.train.solver != "gradient":  # before features are computed for it
        counts = manifest.counts()
        check_memory(counts["train"] + counts["val"], model.last_layer.in_features, shared.make_room)
    images = len(manifest.entries) + manifest.unused
    experiment = devices.resolve_auto_settings(experiment, images, model, accelerator, terminal, may_measure)
    visible = manifest.without("test") if shared.hides_test else manifest
    setup = assemble(experiment, visible, model, accelerator, terminal, shared.in_memory)
    if experiment.train.stages:
        return _with_stages(setup)
    return setup if is_alone else shared.share(setup)


def _with_stages(setup: Setup) -> Setup:
    """The setup with the features of each stage of training. A stage without a frozen part of its own has the same."""
    model, extractor, experiment = setup.model, setup.features.extractor, setup.experiment
    last, views = len(experiment.stages) - 1, views_of_stage(experiment, len(experiment.stages) - 1)
    earlier: list[FeatureCache] = []
    shared = model.split_index
    for number, stage in enumerate(experiment.stages[:last]):
        model.unfreeze(stage.trainable)
        # Images go through the backbone once, where the last stage needs the same views of them.
        cut = shared if set(views_of_stage(experiment, number)) <= set(views) else 0
        own = FeatureExtractor(model, setup.accelerator, setup.batch_size, extractor.compiled, cut)
        known = (each for each in (setup.features, *earlier) if each.extractor.stages == own.stages)
        earlier.append(next(known, None) or setup.features.at(own))
    model.unfreeze(model.spec.trainable)
    return dataclasses.replace(setup, earlier_features=tuple(earlier))


@functools.cache
def _freeze_imported_objects() -> None:
    """Leave what is imported out of garbage collections, once in a process and before there is a model.

    Accelerate collects garbage after each training. That would take longer than a training on cached features.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)  # extension modules report what is still alive at the exit as leaks


def assemble(
    experiment: Experiment,
    manifest: Manifest,
    model: TransferModel,
    accelerator: Accelerator,
    terminal: Terminal,
    in_memory: InMemoryFeatures | None = None,
) -> Setup:
    """Move a model to the device and open the feature cache.

    Args:
        experiment: With "auto" resolved; if `features.compile` is not, nothing is compiled.
        manifest: The images.
        model: With its weights.
        accelerator: Device and processes.
        terminal: Shows progress.
        in_memory: Features in memory, if they are shared with other setups of the same images.
    """
    model.to(accelerator.device)
    model.eval()
    settings = experiment.features
    extractor = FeatureExtractor(model, accelerator, int(settings.batch_size), settings.compile is True)
    loader = _loader(experiment, manifest, accelerator)
    storage = FeatureStorage(
        feature_root(experiment.cache),
        settings.memory * GIB,
        settings.cap * GIB,
        in_memory or InMemoryFeatures(),
        settings.shared,
    )
    features = FeatureCache(
        manifest, extractor, loader, accelerator, storage if settings.store else None, terminal
    )
    return Setup(experiment, manifest, model, features, loader, accelerator)


def _loader(experiment: Experiment, manifest: Manifest, accelerator: Accelerator) -> ImageLoader:
    depth = experiment.data.depth
    return ImageLoader(
        manifest.files,
        ViewTransform(experiment.augment, experiment.seed.augment, None if depth == "auto" else depth),
        experiment.data.workers,
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        pin=accelerator.device.type == "cuda",
    )
