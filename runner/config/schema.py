"""An experiment is a value: one frozen, typed tree, read from a YAML file and dotted overrides.

Nothing else configures anything that a result depends on. The defaults are the published report's experiment;
the docstrings below are what `--help` and `--print_config` show.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

if not TYPE_CHECKING:  # so put, because jsonargparse runs the body of `if TYPE_CHECKING`
    DropProbability = restricted_number_type("DropProbability", float, [(">=", 0), ("<", 1)])
    ReductionFactor = restricted_number_type("ReductionFactor", float, (">", 1))
    Degrees = restricted_number_type("Degrees", float, [(">=", 0), ("<=", 180)])
    HueShift = restricted_number_type("HueShift", float, [(">=", 0), ("<=", 0.5)])
else:
    DropProbability: TypeAlias = float
    ReductionFactor: TypeAlias = float
    Degrees: TypeAlias = float
    HueShift: TypeAlias = float

Arch = Literal["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Data:
    """Which images."""

    kind: Literal["folder", "caltech101", "digits"] = "caltech101"
    """A folder with a folder of images for each class, torchvision's Caltech-101, or scikit-learn's digits"""
    root: str | None = None
    """The folder; for caltech101 the one that holds caltech101/, as in torchvision; digits need none"""
    download: bool = False
    """Let torchvision download Caltech-101 (131 MiB) into root if it is not there"""
    background: bool = False
    """Take Caltech-101's BACKGROUND_Google as a class of its own"""
    follow_links: bool = False
    """Follow symbolic links inside the root (the root itself may always be one)"""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do when a file cannot be decoded: stop, or go on without it; either way it is named"""
    workers: Literal["auto"] | NonNegativeInt = "auto"
    """Processes that decode images, for each rank; auto: its share of the cores, none for a few images"""

    def __post_init__(self) -> None:
        if self.kind == "digits" and self.root is not None:
            raise ValueError(
                f"data.root is {self.root}, but data.kind=digits takes none; set data.kind=folder"
            )
        if self.kind != "caltech101" and (self.download or self.background):
            raise ValueError(
                f"data.download and data.background are for data.kind=caltech101, not {self.kind}"
            )


@dataclass(frozen=True)
class Split:
    """Which of them to train on, validate on, test on; stratified, duplicates kept together."""

    by: Literal["fraction", "count"] = "fraction"
    """fraction: the three numbers are fractions of each class; count: images of each class"""
    train: PositiveFloat = 0.5
    """Fraction of each class, or number of images of each class, to train on"""
    val: PositiveFloat = 0.25
    """Fraction or number to validate on"""
    test: PositiveFloat = 0.25
    """Fraction to test on; by count the most that a class may have in test, the rest is left unused"""

    def __post_init__(self) -> None:
        numbers = (self.train, self.val, self.test)
        if self.by == "fraction" and abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(
                f"split.train, split.val and split.test add up to {sum(numbers):g}; fractions must add up to 1"
                " (for numbers of images a class set split.by=count)"
            )
        if self.by == "count" and any(number != int(number) for number in numbers):
            raise ValueError(
                "with split.by=count, split.train, split.val and split.test must be whole numbers"
            )


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network. The defaults are the report's augmentation."""

    views: Literal["none", "fresh"] | PositiveInt = "fresh"
    """fresh: a new augmented view every epoch; N: epoch e (from 0) shows view e mod N; none: no augmentation"""
    resize: PositiveInt = 256
    """Pixels of the shorter side in the evaluation view; size of the augmented crop"""
    crop: PositiveInt = 224
    """Pixels of the centre crop that the network sees"""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.0)
    """Least and greatest share of the image's area that the random crop takes"""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Least and greatest aspect ratio (width / height) of the random crop"""
    flip: ClosedUnitInterval = 0.5
    """Probability of a horizontal flip"""
    rotation: Degrees = 15.0
    """Greatest rotation either way, in degrees"""
    brightness: NonNegativeFloat = 0.0
    """Brightness is multiplied by a factor within 1 ± this"""
    contrast: NonNegativeFloat = 0.0
    """Contrast is multiplied by a factor within 1 ± this"""
    saturation: NonNegativeFloat = 0.0
    """Saturation is multiplied by a factor within 1 ± this"""
    hue: HueShift = 0.0
    """Hue is shifted by at most this share of the colour circle"""
    interpolation: Interpolation = "bilinear"
    """Interpolation of resizing and of the random crop"""
    rotation_interpolation: Interpolation = "nearest"
    """Interpolation of the rotation"""

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(f"augment.crop ({self.crop}) is greater than augment.resize ({self.resize})")
        if self.crop < 32:
            raise ValueError(f"augment.crop is {self.crop}; the five poolings of VGG need at least 32 pixels")
        if not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"augment.scale must be two shares, the smaller first, at most 1; it is {self.scale}"
            )
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"augment.ratio must name the smaller ratio first; it is {self.ratio}")


@dataclass(frozen=True)
class Normalization:
    """Numbers that a channel's values in [0, 1] are normalised with: (value - mean) / std."""

    mean: Triple
    """Mean of red, green and blue, on the scale 0 to 1"""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Standard deviation of red, green and blue, on the scale 0 to 1"""


@dataclass(frozen=True)
class NetworkSettings:
    """The network: torchvision's VGG with a new head."""

    arch: Arch = "vgg16"
    """The VGG"""
    weights: str | None = "VGG16_Weights.IMAGENET1K_V1"
    """A torchvision weights enum, a .safetensors or .pth file of torchvision's names, or null: random"""
    head: Literal["classifier", "pooled"] = "classifier"
    """classifier: a new head in place of classifier[6]; pooled: a new head on the pooled convolutions"""
    pool: PositiveInt = 3
    """The pooled head averages the convolutions' output down to pool × pool"""
    width: PositiveInt = 256
    """Units of the head's hidden layer"""
    dropout: DropProbability = 0.4
    """Drop probability in the head (pooled: before the hidden layer too)"""
    normalize: str | Normalization = "statistics"
    """statistics: of the training images; weights: as the weights' enum or file says; an enum; or numbers"""
    trainable: str = "head"
    """What trains: head, all, or the name of a module from which on everything does, as features.24"""

    def __post_init__(self) -> None:
        if self.weights is None and self.normalize == "weights":
            raise ValueError("model.normalize=weights needs model.weights, which is null (random weights)")


@dataclass(frozen=True)
class FeatureSettings:
    """What the frozen part of the network computes, once an image and view."""

    store: bool = True
    """Keep what was computed on disk for later epochs and runs; off: compute it again each time"""
    batch_size: Literal["auto"] | PositiveInt = "auto"
    """Images that go through the network at once wherever it does not train; auto: 32 on a CPU, 256 on a GPU"""
    compile: Literal["auto"] | bool = "auto"
    """Compile the convolutions (torch.compile); auto: on a CPU with a C++ compiler, from 4,000 images of 224 px on"""
    memory: PositiveFloat = 4.0
    """GiB of rows that are held in memory; what is larger is gathered from the memory-mapped store"""
    cap: PositiveFloat = 50.0
    """GiB that all stores in the cache may take together; those that were unused longest are removed first"""


@dataclass(frozen=True)
class Optim:
    """The optimiser."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimiser"""
    lr: PositiveFloat = 0.01
    """Learning rate at the start (onecycle: at the peak)"""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay (adam, sgd: as an L2 penalty; adamw: decoupled)"""
    momentum: ClosedUnitInterval = 0.9
    """Momentum of sgd"""
    groups: dict[str, PositiveFloat] = field(default_factory=dict)
    """Learning rates of named modules in place of lr, as {features: 1.0e-5}; the longest name counts"""

    def __post_init__(self) -> None:
        if not all(math.isfinite(rate) for rate in (self.lr, self.weight_decay, *self.groups.values())):
            raise ValueError(
                "optim.lr, optim.weight_decay and the rates of optim.groups must be finite numbers"
            )


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes on."""

    kind: Literal["reduce_on_drop", "cosine", "onecycle", "constant"] = "reduce_on_drop"
    """reduce_on_drop: divide when validation top-1 falls, stop at the last reduction; the others end at train.epochs"""
    factor: ReductionFactor = 5.0
    """reduce_on_drop: what the learning rate is divided by"""
    reductions: PositiveInt = 3
    """reduce_on_drop: the reduction, in total, at which training stops"""


@dataclass(frozen=True)
class Fit:
    """The training loop."""

    epochs: PositiveInt = 30
    """At most so many epochs"""
    batch_size: PositiveInt = 64
    """Images of one optimiser step, over all processes"""
    accumulate: PositiveInt = 1
    """Parts that a batch is computed in, to save memory; the result stays"""
    clip: NonNegativeFloat = 0.0
    """Greatest norm of the gradient; 0: no clipping"""
    label_smoothing: DropProbability = 0.0
    """Share of the target spread evenly over the classes"""
    class_weights: bool = False
    """Weigh each class in the loss by the inverse of its number of training images"""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: each image once an epoch; balanced: drawn with replacement, every class equally often"""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Of the network without its head, which stays in float32; auto: bf16 or fp16 where the device is fast at it"""
    best: str = "top1"
    """Validation score that chooses the best checkpoint: top-1 or balanced accuracy"""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When loss or gradient of a step is not a finite number: stop, or leave the step out (train/skipped counts)"""

    def __post_init__(self) -> None:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"train.accumulate ({self.accumulate}) is greater than train.batch_size ({self.batch_size})"
            )


@dataclass(frozen=True)
class Checkpoints:
    """The states that an interrupted run goes on from (--resume); the best and last network are kept anyway."""

    minutes: Literal["auto", "never"] | NonNegativeFloat = "auto"
    """Minutes between two, in mid-epoch too; auto: 10 s or more, so that writing takes a hundredth of the time"""
    epochs: NonNegativeInt = 0
    """Epochs between two, beside those by time; 0: none"""
    keep: PositiveInt = 2
    """So many are kept, so that a damaged one has a predecessor"""


@dataclass(frozen=True)
class Seed:
    """Three seeds, so that new fits reuse the same split and views."""

    split: int = 0
    """Of the split"""
    augment: int = 0
    """Of the augmentation"""
    train: int = 0
    """Of the head's first weights, the order of images and the dropout masks"""


@dataclass(frozen=True)
class Tracking:
    """Where the records go."""

    root: str = "mlruns"
    """Folder of the journal and, unless MLFLOW_TRACKING_URI names a server, of MLflow's database and artifacts"""
    system_metrics: bool = True
    """Record use of processor, memory and GPU every few seconds"""
    model: bool = True
    """Log the best checkpoint of a finished run as a model, and register it under the experiment's name"""
    gallery: NonNegativeInt = 8
    """Validation images, half of them wrong where there are such, that are shown with their Grad-CAM; 0: none"""
    gallery_every: NonNegativeInt = 10
    """Epochs between two pictures of each; 0: at the end only"""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run."""

    name: str = "caltech101"
    """Name of the MLflow experiment that the run belongs to"""
    data: Data = field(default_factory=Data)
    split: Split = field(default_factory=Split)
    augment: Views = field(default_factory=Views)
    model: NetworkSettings = field(default_factory=NetworkSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    train: Fit = field(default_factory=Fit)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    seed: Seed = field(default_factory=Seed)
    tracking: Tracking = field(default_factory=Tracking)
    cache: str = "~/.cache/vgg-runner"
    """Folder of what is computed once: scans, statistics, features; shared by all experiments"""

    def __post_init__(self) -> None:
        if self.data.kind != "digits" and self.data.root is None:
            raise ValueError(f"data.kind={self.data.kind} needs data.root, the folder of the images")
        if not isinstance(self.name, str) or not self.name.strip() or "/" in self.name:
            raise ValueError(f"name must be a word or more without a slash; it is {self.name!r}")


def as_tree(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        # The parser's restricted numbers are subclasses, which YAML does not know.
        return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)

    return plain(dataclasses.asdict(experiment))


def as_yaml(experiment: Experiment) -> str:
    """The experiment as a file that `--config` reads back to an equal one."""
    return dump(as_tree(experiment))


def dump(tree: dict[str, Any]) -> str:
    """Plain values as YAML that the parser reads back as they are."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes words like 1e3 too: a number to the parser, which goes by YAML 1.2, though not to PyYAML."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"fit": {"epochs": 3}}` → `{"train.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
