"""The naive loop: the whole network in float32, in every step and every epoch, as the published experiment does it."""

from __future__ import annotations

import itertools
import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import VGG, vgg16
from torchvision.transforms import v2

from benchmarks.support.setups import QUIET
from runner.config.schema import Experiment, ModelConfig
from runner.data.manifest import Manifest, build_manifest
from runner.models.pretrained import read_weights
from runner.portable.images import open_rgb

BATCH_SIZE = 64
LOADER_WORKERS = 2
AUGMENTATION = {
    "train": [
        v2.RandomResizedCrop(256, scale=(0.8, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(15),
    ],
    "val": [v2.Resize(256)],
}
TO_INPUT = [
    v2.CenterCrop(224),
    v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]


def naive_rates(experiment: Experiment, batches: int) -> dict[str, float]:
    """Images/s of training and of validation: medians over the steps of `batches` batches.

    The first batch is not counted, because it waits for the loader's workers to start.
    """
    manifest = build_manifest(experiment, QUIET)
    model = _model(experiment.model, len(manifest.classes))
    optimizer = torch.optim.Adam(model.classifier[6].parameters(), lr=0.001)
    rates = {}
    for split in ("train", "val"):
        images = _Images(manifest, split, BATCH_SIZE * (batches + 1))
        loader = DataLoader(images, batch_size=BATCH_SIZE, num_workers=LOADER_WORKERS, drop_last=True)
        steps = _step_seconds(model, loader, optimizer if split == "train" else None)
        rates[f"naive_{split}_ips"] = BATCH_SIZE / statistics.median(steps)
    return rates


def _step_seconds(
    model: nn.Module, loader: DataLoader[tuple[Tensor, int]], optimizer: torch.optim.Optimizer | None
) -> list[float]:
    """Seconds of each step but the first, with loading: training steps with an optimizer, else validation steps."""
    model.train(optimizer is not None)
    ends = []
    for images, labels in loader:
        with torch.set_grad_enabled(optimizer is not None):
            loss = nn.functional.cross_entropy(model(images), labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return [end - start for start, end in itertools.pairwise(ends)]


def _model(settings: ModelConfig, classes: int) -> VGG:
    """VGG16 with the published head; everything else is frozen."""
    model = vgg16()
    weights = read_weights(settings)
    if weights is not None:
        convolutions = {name: value.float() for name, value in weights.tensors.items() if "features" in name}
        model.load_state_dict(convolutions, strict=False)
    model.requires_grad_(False)
    model.classifier[6] = nn.Sequential(
        nn.Linear(4096, 256), nn.ReLU(), nn.Dropout(0.4), nn.Linear(256, classes)
    )
    return model


class _Images(Dataset[tuple[Tensor, int]]):
    """The first `count` images of a split, as inputs of the network, with their class indices."""

    def __init__(self, manifest: Manifest, split: str, count: int) -> None:
        self.root = manifest.root
        self.entries = manifest.select(split)[:count]
        self.labels = manifest.labels(split)[:count]
        self.transform = v2.Compose([*AUGMENTATION[split], *TO_INPUT])

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(open_rgb(self.root / self.entries[index].path)), self.labels[index]
