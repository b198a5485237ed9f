"""What an image, a feature, a claim and a step cost: bytes and seconds, medians of some rounds."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.support.processes import run_part, write_result
from benchmarks.support.timing import seconds
from runner.config.schema import Normalization
from runner.data.columns import Paths
from runner.data.images import SPLITS, Images
from runner.data.manifest import Manifest
from runner.evaluation.metrics import gather
from runner.features.claims import Claims
from runner.features.key_index import KeyIndex
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.utils.processes import cpu_count

Figures = dict[str, float]
ROUNDS = 5
IMAGES, CLASSES = 200_000, 1_000
FEATURE_BYTES = 9_216
"""Of an image in the store of VGG16 with a pooled head: 4,608 values in bfloat16."""
SHARDS, SHARD_IMAGES = 16, 1_820
"""Shards of a measured store, and the images in each: 16 MiB."""
CLAIMS = 256
"""Claims of others, for what each of them costs."""
GATHERED = 20_000
"""Images whose results two processes gather."""


def median_seconds(work: Callable[[], object]) -> float:
    """The median of some rounds."""
    return statistics.median(seconds(work) for _ in range(ROUNDS))


def synthetic_images(count: int) -> Images:
    """A table of images with paths as ImageNet's."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, CLASSES, count).astype(np.int32))
    paths = Paths.of(f"train/n{label:08}/n{label:08}_{index:08}.JPEG" for index, label in enumerate(labels))
    return Images(
        paths,
        tuple(f"n{label:08}" for label in range(CLASSES)),
        labels,
        random.integers(0, len(SPLITS), count).astype(np.int8),
        random.integers(50_000, 200_000, count).astype(np.int64),
        random.integers(0, 256, (count, 20), np.uint8),
    )


def measure_manifest() -> Figures:
    """The table of images: in memory, as a file, and the time of its digest and its text."""
    images = synthetic_images(IMAGES)
    manifest = Manifest(None, images)  # type: ignore[arg-type]  # no file is read
    columns = (images.labels, images.splits, images.sizes, images.digests)
    memory = sum(column.nbytes for column in columns) + images.paths.array.nbytes
    return {
        "manifest_memory_bytes": round(memory / IMAGES, 1),
        "manifest_file_bytes": round(len(manifest.to_csv().encode()) / IMAGES, 1),
        "manifest_seconds": median_seconds(lambda: (images.digest(), manifest.to_csv())) / IMAGES,
    }


def measure_index() -> Figures:
    """The index of a store's keys: memory, and the time of a look-up of all, of an image."""
    digests = np.random.default_rng(0).integers(0, 256, (IMAGES, 20), np.uint8)
    index = KeyIndex()
    index.add(0, digests)
    index.find(digests[:1])
    memory = sum(column.nbytes for column in (*index._digests, index._places))
    return {
        "index_bytes": memory / IMAGES,
        "look_up_seconds": median_seconds(lambda: index.find(digests)) / IMAGES,
    }


def measure_store(folder: Path) -> Figures:
    """A store on the local disk: bytes of a stored feature, time to write and read it, time to read a shard's keys."""
    store = ShardStore(folder, {})
    random = np.random.default_rng(0)
    keys = [FeatureKeys(random.integers(0, 256, (SHARD_IMAGES, 20), np.uint8), 0) for _ in range(SHARDS)]
    features = torch.zeros(SHARD_IMAGES, FEATURE_BYTES // 2, dtype=torch.bfloat16)
    writing = [seconds(lambda part=part: store.write(part, features)) for part in keys]  # type: ignore[misc]
    files = list(store.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / (SHARDS * SHARD_IMAGES)

    def read_index() -> None:
        ShardStore(folder, {}).refresh()

    store.refresh()
    return {
        "stored_bytes": round(size, 1),
        "key_bytes": round(size - FEATURE_BYTES, 1),
        "write_seconds": statistics.median(writing) / SHARD_IMAGES,
        "read_seconds": median_seconds(lambda: store.read(keys[0])) / SHARD_IMAGES,
        "shard_header_seconds": median_seconds(read_index) / SHARDS,
    }


def measure_claims(folder: Path) -> Figures:
    """Making and giving up a claim on the local disk, and what each claim of others adds to that."""

    def claim_one(claims: Claims) -> None:
        claims.claim(0, ["1"])
        claims.release()

    alone, others = Claims(folder / "claims"), Claims(folder / "claims")
    claim_one(alone)
    one = median_seconds(lambda: claim_one(alone))
    others.claim(1, [f"{number:010b}" for number in range(CLAIMS)])
    many = median_seconds(lambda: claim_one(alone))
    others.release()
    return {"claim_seconds": one, "other_claim_seconds": max(0.0, (many - one) / CLAIMS)}


def measure_gradients() -> Figures:
    """Bytes of the gradients that a step of VGG16 adds up over the processes, float32."""
    spec = ModelSpec(
        arch="vgg16",
        head="pooled",
        pool=3,
        width=256,
        dropout=0.4,
        trainable="head",
        classes=tuple(map(str, range(CLASSES))),
        normalization=Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    )
    model = TransferModel(spec, 0, random_weights=False)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return {
        "head_gradient_bytes": 4 * trained,
        "all_gradient_bytes": 4 * sum(each.numel() for each in model.parameters()),
    }


def measure_gathering(folder: Path) -> Figures:
    """Gathering on two processes: the results that metrics need, and the logits that predictions need."""
    return run_part("benchmarks.support.unit_costs", "gather", (), folder, processes=2)


def _gather() -> Figures:
    """The part of each process."""
    accelerator = Accelerator(cpu=True)
    own = range(accelerator.process_index, GATHERED, accelerator.num_processes)
    taken = {}
    for name, columns in (("results", 3), ("logits", CLASSES)):
        rows = torch.zeros(len(own), columns, dtype=torch.float64)
        gather(own, rows, GATHERED, accelerator)
        taken[name] = median_seconds(lambda rows=rows: gather(own, rows, GATHERED, accelerator)) / GATHERED  # type: ignore[misc]
    return {
        "results_bytes": 8 * (1 + 3),
        "results_seconds": taken["results"],
        "logit_bytes": 8,
        "logit_seconds": taken["logits"] / (CLASSES + 1),
    }


def measure_unit_costs() -> Figures:
    """All of them."""
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        folder = Path(name)
        return {
            **measure_manifest(),
            **measure_index(),
            **measure_store(folder / "store"),
            **measure_claims(folder),
            **measure_gradients(),
            **measure_gathering(folder / "gather"),
            "cores": cpu_count(),
        }


if __name__ == "__main__":
    write_result(Path(sys.argv[2]), _gather())
