"""Builds the model of an experiment: its weights, its normalization, and the stages in which it trains."""

from __future__ import annotations

from runner.config.schema import Experiment, Normalization
from runner.data.channel_stats import channel_statistics
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.models import pretrained
from runner.models.freezing import check_stages
from runner.models.parameter_groups import parameter_groups
from runner.models.pretrained import PretrainedWeights
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.paths import cache_folder


def build_model(
    experiment: Experiment,
    classes: tuple[str, ...],
    normalization: Normalization,
    weights: PretrainedWeights | None,
) -> TransferModel:
    """The model with its weights; with random ones if there are none.

    Raises `UserError` as `TransferModel` does, and for stages, groups of parameters or mixing that cannot be.
    """
    spec = _model_spec(experiment, classes, normalization)
    setting = _setting_of_trainable(experiment)
    model = TransferModel(spec, experiment.seed.train, weights is None, setting)
    _check_training(experiment, model)
    if weights is not None:
        pretrained.load_weights(model, weights)
    return model


def check_model(experiment: Experiment) -> None:
    """Build the model without data and weights. Raises `UserError` if that fails: then no run is created."""
    numbers = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = _model_spec(experiment, ("a", "b"), numbers)
    _check_training(experiment, TransferModel(spec, 0, False, _setting_of_trainable(experiment)))


def _setting_of_trainable(experiment: Experiment) -> str:
    """What says which layers train in the end, for messages."""
    stages = experiment.train.stages
    return f"trainable of stage {len(stages)} in train.stages" if stages else "model.trainable"


def _check_training(experiment: Experiment, model: TransferModel) -> None:
    """Raise `UserError` for what the layers that train do not allow."""
    check_stages(model, experiment.stages)
    if experiment.train.solver == "gradient":
        parameter_groups(model, experiment.optim)
    if experiment.train.cutmix:
        for stage in experiment.stages:
            _check_cutmix(model, stage.trainable)
        model.unfreeze(model.spec.trainable)


def _check_cutmix(model: TransferModel, trainable: str) -> None:
    """Raise `UserError` for boxes in what has no height and width."""
    model.unfreeze(trainable)
    layout = model.layouts.get(model.split_layer)
    if model.split_index and (layout is None or layout.kind != "channels_first"):
        raise UserError(
            f"train.cutmix needs images or maps, but where {trainable} trains, training takes the output of"
            f" {model.split_layer}; let last:1 or all train, or use train.mixup."
        )


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
