"""The settings of an experiment: one frozen, typed tree.

Nothing else changes a result. The defaults are those of the published report that the project reproduces. The
docstring of each setting is its help; docs/settings.md is generated from all modules of settings.

Types and ranges are validated where settings are read (`runner.config.tree`). Rules between settings are validated
wherever a group is created, and raise `ValueError` with one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from runner.config.augment_schema import AugmentConfig
from runner.config.choices import ARCHITECTURES, DATASETS
from runner.config.data_schema import DataConfig, SplitConfig
from runner.config.fields import (
    VALIDATION,
    BelowOne,
    Exponent,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveTriple,
    Triple,
    setting,
)
from runner.config.protocols import check_protocol
from runner.config.train_schema import OptimConfig, ScheduleConfig, TrainConfig, TrainStage


@dataclass(frozen=True)
class Normalization:
    """Constants of the normalization (value - mean) / std of channel values in [0, 1]."""

    mean: Triple
    """Mean of red, green and blue."""
    std: PositiveTriple
    """Standard deviation of red, green and blue."""


@dataclass(frozen=True)
class ModelConfig:
    """A pretrained backbone with a new head."""

    arch: str = setting("vgg16", choices=ARCHITECTURES)
    """Architecture of the backbone: a name of torchvision, such as resnet50, or one of timm with timm/ before it, such
    as timm/convnext_tiny.fb_in22k_ft_in1k; `./launch.sh models` lists them. What is not given follows it: its usual
    weights, and the normalization and size of images that they were trained with."""
    weights: str | None = "VGG16_Weights.IMAGENET1K_V1"
    """A member of a torchvision weights enum; a tag of timm's weights, such as in1k; package: an installed package
    (EfficientNet-Lite0 and Lite2 of timm); a .safetensors or .pth file with the library's parameter names (also a
    checkpoint with them as state_dict or model_state_dict); or null for random weights."""
    head: Literal["classifier", "pooled", "linear"] = "classifier"
    """classifier: the backbone's own classifier with its last layer replaced; pooled: a new head with a hidden layer on
    its pooled maps (the class token or the mean of tokens); linear: a linear layer on them."""
    pool: PositiveInt | Annotated[tuple[PositiveInt, ...], MinLen(1)] = 3
    """Average pooling of the convolutions for a pooled or linear head: pool x pool, or a pyramid, as [1, 2, 3]."""
    pooled_layers: tuple[str, ...] = ()
    """Layers whose pooled outputs a pooled or linear head takes, stacked, as [features.22, features.29] (VGG16's
    conv4_3 and conv5_3, each after its ReLU). Empty: the last one before the pooling."""
    width: PositiveInt = 256
    """Units of the head's hidden layer."""
    dropout: BelowOne = 0.4
    """Dropout probability in the head."""
    drop_path: BelowOne | None = None
    """Stochastic depth: the probability that the last block of the backbone is skipped for an image. It falls linearly
    to 0 for the first block, as timm's drop_path_rate. Of blocks that train. null: as the network has it."""
    power: Exponent = 1.0
    """Exponent of the pooled values before a linear head; 0.5: their signed square root."""
    norm: Literal["none", "l2"] = "none"
    """l2: before a linear head, each level of the pyramid is divided by its Euclidean norm."""
    normalize: str | Normalization = "statistics"
    """statistics: mean and standard deviation of the training images; weights: as the weights expect, which
    a .safetensors file may say in its metadata; a torchvision weights enum; or numbers, as
    {mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}."""
    trainable: str = "head"
    """Layers to train: head, all, last:K for the last K blocks of the backbone and the head, or the name of the first
    trainable module, as features.24."""

    def __post_init__(self) -> None:
        if len(set(self.pooled_layers)) < len(self.pooled_layers):
            raise ValueError(f"model.pooled_layers names a layer twice: {list(self.pooled_layers)}")
        if self.weights is None and self.normalize == "weights":
            raise ValueError(
                "model.normalize=weights needs model.weights, which is null; set model.normalize=statistics"
            )


@dataclass(frozen=True)
class FeaturesConfig:
    """Cached outputs of the frozen backbone: each image and view is computed once."""

    store: bool = setting(True, changes_results=False)
    """Save features on disk for later epochs and runs; false: compute them again each time."""
    batch_size: Literal["auto"] | PositiveInt = setting("auto", unit="images")
    """Inference batch, for features and evaluation. auto: 32 on a CPU, 256 on a GPU or what fits into its memory."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the frozen backbone with torch.compile. auto: on a CPU with a C++ compiler, for 4,000 images of 224 px or
    more, if it is faster when both are tried for some seconds; the cache keeps the choice."""
    memory: PositiveFloat = setting(4.0, unit="GiB", changes_results=False)
    """Features up to this size are loaded into memory; larger ones are read from the memory-mapped store."""
    cap: PositiveFloat = setting(50.0, unit="GiB", changes_results=False)
    """Maximum size of all stores in the cache. The least recently used stores are removed first."""
    shared: Literal["auto"] | bool = setting("auto", changes_results=False)
    """Commands on several hosts use the cache and divide the work of computing features among them. auto: if it lies on
    a network file system, or if several hosts of the launch see it; true: refused if one of them does not; false: no
    command on another host uses it at the same time."""


@dataclass(frozen=True)
class CheckpointsConfig:
    """Snapshots of the training state for --resume. The best and last model are always saved."""

    minutes: Literal["auto", "never"] | NonNegativeFloat = setting("auto", unit="min")
    """Time between two snapshots, also within an epoch. auto: at least 10 s, and writing takes about 1 % of the
    time."""
    epochs: NonNegativeInt = 0
    """Epochs between two snapshots, in addition to those by time; 0: none."""
    keep: PositiveInt = 2
    """Number of snapshots to keep; if the newest is damaged, an earlier one is used."""


@dataclass(frozen=True)
class SeedConfig:
    """Random seeds. They are separate so that training can be repeated on the same split and views."""

    split: int = 0
    """Seed of the split."""
    val: int | None = None
    """Seed of the division of the images that are not for the test into training and validation. null: seed.split."""
    augment: int = 0
    """Seed of the augmentation."""
    train: int = 0
    """Seed of the head's initial weights, the order of the images and dropout."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where and what to record."""

    root: str = "mlruns"
    """Folder of the journal, and of MLflow's database and artifacts unless MLFLOW_TRACKING_URI is set."""
    system_metrics: bool = True
    """Record CPU, memory and GPU usage every few seconds."""
    model: bool = True
    """Log the best model of a finished run."""
    register: bool = True
    """Register that model under the experiment's name; false, or --smoke: log it with its run only."""
    gallery: NonNegativeInt = setting(8, unit="images")
    """Validation images shown with Grad-CAM, up to half of them misclassified; 0: none."""
    gallery_every: NonNegativeInt = setting(10, unit="epochs")
    """Time between two galleries; 0: only at the end."""


@dataclass(frozen=True)
class Experiment:
    """All settings of a run."""

    __pydantic_config__ = VALIDATION
    name: str = setting("caltech101", not_searchable="it is the MLflow experiment that all trials belong to")
    """Name of the MLflow experiment; with data.kind=folder by default the folder's. Resuming needs the same name."""
    data: DataConfig = setting(DataConfig, not_searchable="trials would be evaluated on other images")
    split: SplitConfig = setting(SplitConfig, not_searchable="trials would be evaluated on other images")
    augment: AugmentConfig = setting(AugmentConfig)
    model: ModelConfig = setting(ModelConfig)
    features: FeaturesConfig = setting(FeaturesConfig, not_searchable="it is a matter of speed")
    optim: OptimConfig = setting(OptimConfig)
    schedule: ScheduleConfig = setting(ScheduleConfig)
    train: TrainConfig = setting(TrainConfig)
    checkpoints: CheckpointsConfig = setting(CheckpointsConfig, changes_results=False)
    seed: SeedConfig = setting(
        SeedConfig, not_searchable="luck would be selected; to average over seeds use --seeds"
    )
    tracking: TrackingConfig = setting(TrackingConfig, changes_results=False)
    cache: str = setting("auto", changes_results=False)
    """Folder of scans and features for all runs. auto: $RUNNER_CACHE, or vgg-runner in $XDG_CACHE_HOME or ~/.cache."""

    def __post_init__(self) -> None:
        check_protocol(self.split.protocol, "train", self.train)
        self._check_solver()
        self._check_warmup()
        stages = self.train.stages
        if stages and stages[-1].trainable != self.model.trainable:
            raise ValueError(
                f"the last stage of train.stages trains {stages[-1].trainable}, but model.trainable is"
                f" {self.model.trainable}; leave model.trainable out, or let them be the same"
            )
        data = self.data
        if "root" in DATASETS.find(data.kind).uses and data.root is None and data.table is None:
            raise ValueError(f"data.kind={data.kind} needs data.root, the folder of the images")
        if not self.name.strip() or "/" in self.name:
            raise ValueError(f"name must not be empty or contain a slash; it is {self.name!r}")
        backbone = ARCHITECTURES.find(self.model.arch).implementation
        if self.augment.crop < backbone.min_input_size:
            raise ValueError(
                f"augment.crop must be at least {backbone.min_input_size} for model.arch={backbone.arch};"
                f" it is {self.augment.crop}"
                f" (its ImageNet weights were trained with {backbone.preprocessing(None).crop})"
            )
        stacks = len(self.augment.scales) > 1 and "scales" not in self.augment.tta
        if self.model.head == "classifier" and (stacks or self.model.pooled_layers):
            names = "model.pooled_layers" if self.model.pooled_layers else "stacked augment.scales"
            raise ValueError(
                f"{names} need model.head=pooled or linear: the backbone's own classifier has a fixed number of inputs"
            )

    def _check_warmup(self) -> None:
        number, shortest = min(enumerate(self.stages, start=1), key=lambda each: each[1].epochs)
        if self.train.solver == "gradient" and self.schedule.warmup > shortest.epochs:
            where = f"stage {number} of train.stages" if self.train.stages else "the training"
            raise ValueError(
                f"schedule.warmup ({self.schedule.warmup:g} epochs) is longer than {where} ({shortest.epochs});"
                " shorten it"
            )

    @property
    def stages(self) -> tuple[TrainStage, ...]:
        """`train.stages`, or all epochs as one stage."""
        return self.train.stages or (TrainStage(self.train.max_epochs, self.model.trainable),)

    def first_epoch(self, stage: int) -> int:
        """The epoch, from 0, with which a stage begins."""
        return sum(each.epochs for each in self.stages[:stage])

    def _check_solver(self) -> None:
        solver = self.train.solver
        if solver == "gradient":
            return
        for name, value, needed in (
            ("model.head", self.model.head, "linear"),
            ("model.trainable", self.model.trainable, "head"),
            ("augment.views", self.augment.views, "none"),
        ):
            if value != needed:
                raise ValueError(f"train.solver={solver} needs {name}={needed}; it is {value}")
