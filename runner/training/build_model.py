"""Builds the model of an experiment: its weights, its normalization, and the stages in which it trains."""

from __future__ import annotations

from runner.config.schema import Experiment, Normalization
from runner.data.channel_stats import channel_statistics
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.models import pretrained
from runner.models.freezing import check_stages
from runner.models.pretrained import PretrainedWeights
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.utils.console import Terminal
from runner.utils.paths import cache_folder


def build_model(
    experiment: Experiment,
    classes: tuple[str, ...],
    normalization: Normalization,
    weights: PretrainedWeights | None,
) -> TransferModel:
    """The model with its weights; with random ones if there are none.

    Raises `UserError` as `TransferModel` does, and for stages that do not unfreeze layer after layer.
    """
    spec = _model_spec(experiment, classes, normalization)
    model = TransferModel(spec, experiment.seed.train, random_weights=weights is None)
    check_stages(model, experiment.stages)
    if weights is not None:
        pretrained.load_weights(model, weights)
    return model


def check_model(experiment: Experiment) -> None:
    """Build the model without data and weights. Raises `UserError` if that fails: then no run is created."""
    numbers = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = TransferModel(_model_spec(experiment, ("a", "b"), numbers), training_seed=0, random_weights=False)
    check_stages(model, experiment.stages)


def _model_spec(experiment: Experiment, classes: tuple[str, ...], normalization: Normalization) -> ModelSpec:
    settings = experiment.model
    return ModelSpec(
        arch=settings.arch,
        head=settings.head,
        pool=settings.pool,
        power=settings.power,
        norm=settings.norm,
        pooled_layers=settings.pooled_layers,
        scales=experiment.augment.scales,
        tta=experiment.augment.tta,
        input_size=experiment.augment.input_size,
        width=settings.width,
        dropout=settings.dropout,
        trainable=settings.trainable,
        drop_path=settings.drop_path,
        classes=classes,
        normalization=normalization,
    )


def normalization_of(
    experiment: Experiment,
    weights: PretrainedWeights | None,
    manifest: Manifest,
    loader: ImageLoader,
    terminal: Terminal,
) -> Normalization:
    """The constants that `model.normalize` stands for."""
    setting = experiment.model.normalize
    if isinstance(setting, Normalization):
        return setting
    if setting == "weights":
        assert weights is not None and weights.normalization is not None  # noqa: S101, PT018 (checked when read)
        return weights.normalization
    if setting != "statistics":
        return pretrained.weights_normalization(setting)
    cache = cache_folder(experiment.cache)
    return channel_statistics(manifest.select("train"), loader, cache, terminal)
