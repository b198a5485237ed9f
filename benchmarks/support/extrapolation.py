"""What a number of GPUs and images needs, from measured unit costs, against what there is by assumption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Costs = Mapping[str, Any]
"""Measured unit costs, by name."""


@dataclass(frozen=True)
class Cluster:
    """Assumptions. Speeds are in bytes, images or operations per second."""

    gpus: int
    images: int
    gpus_per_host: int = 8
    gpu_memory: float = 80e9
    """Bytes of an H100 (its data sheet)."""
    host_memory: float = 2e12
    """Bytes; assumed."""
    extraction: float = 2_492.0
    """Images per second of one H100 beside 16 CPU cores, from JPEG files; measured, docs/benchmarks.md."""
    forward: float = 6_754.0
    """The same on images in memory; measured, docs/benchmarks.md."""
    batch: int = 256
    """Images of a GPU in a training step; assumed. A step costs three forward passes; assumed."""
    network: float = 50e9
    """Of a host: 400 Gbit/s; assumed."""
    file_bandwidth: float = 10e9
    """Of the file server that holds the features; assumed."""
    file_capacity: float = 1e15
    """Its bytes; assumed."""
    file_operations: float = 20_000.0
    """Opens and the like that it does; assumed."""
    shard_images: int = 1_820
    """Features in a shard of 16 MiB."""
    validation_share: float = 0.05
    """Of the images; assumed, and as many for the test."""
    classes: int = 1_000
    database_cores: int = 16
    """Of the PostgreSQL server; assumed."""
    mlflow_workers: int = 4
    """Of the MLflow server: its default."""
    trial_seconds: float = 3_600.0
    """Of a study with one worker for each GPU; assumed."""
    epochs: int = 16
    heartbeat: float = 15.0
    """Seconds between two heartbeats of a trial."""
    wait: float = 600.0
    """Seconds that a user waits for a run's start, or for one reading of all features; assumed."""
    epoch_pause: float = 60.0
    """Seconds that an epoch may spend on gathering; assumed."""

    @property
    def validation_images(self) -> float:
        """In the validation split."""
        return self.images * self.validation_share

    @property
    def extraction_seconds(self) -> float:
        """Computing all features once, on all GPUs."""
        return self.images / (self.gpus * self.extraction)


@dataclass(frozen=True)
class Resource:
    """Something that may run out."""

    name: str
    unit: str
    need: Callable[[Costs, Cluster], float]
    limit: Callable[[Cluster], float]
    remedy: str
    """What would be done."""


def lock_hold(costs: Costs, running: float) -> float:
    """Seconds for which an ask holds the study's lock while so many trials run."""
    return float(costs["ask_seconds"] + running * costs["ask_seconds_per_running_trial"])


def reduce_seconds(size: float, cluster: Cluster) -> float:
    """Seconds to add up `size` bytes over all GPUs in a ring, with an equal share of the host's network for each."""
    share = cluster.network / cluster.gpus_per_host
    return 2 * size * (cluster.gpus - 1) / cluster.gpus / share


def _per_second(costs: Costs, cluster: Cluster, each_trial: float) -> float:
    return cluster.gpus * each_trial / cluster.trial_seconds


RESOURCES: tuple[Resource, ...] = (
    Resource(
        "stored features",
        "bytes",
        lambda costs, cluster: cluster.images * costs["stored_bytes"],
        lambda cluster: cluster.file_capacity,
        "a pooled store (1 × 1 instead of 3 × 3: a ninth), 8-bit features",
    ),
    Resource(
        "reading all features, each epoch",
        "s",
        lambda costs, cluster: cluster.images * costs["stored_bytes"] / cluster.file_bandwidth,
        lambda cluster: cluster.wait,
        "a copy of each host's share on its own disk, epochs on a share of the images",
    ),
    Resource(
        "shard headers, read by every process",
        "s",
        lambda costs, cluster: (
            cluster.images
            / cluster.shard_images
            * max(cluster.gpus / cluster.file_operations, costs["shard_header_seconds"])
        ),
        lambda cluster: cluster.wait,
        "one index file for many shards, read by one process of a host; shards of 1 GiB",
    ),
    Resource(
        "image table and key index in memory, of a host",
        "bytes",
        lambda costs, cluster: (
            cluster.gpus_per_host * cluster.images * (costs["manifest_memory_bytes"] + costs["index_bytes"])
        ),
        lambda cluster: cluster.host_memory,
        "memory-mapped columns that the processes of a host share; each process knows its share only",
    ),
    Resource(
        "digest and text of the manifest, at the start of a run",
        "s",
        lambda costs, cluster: cluster.images * costs["manifest_seconds"],
        lambda cluster: cluster.wait,
        "digests of pieces that are kept; a columnar file that runs refer to instead of a copy in each",
    ),
    Resource(
        "gathering results of validation images, each epoch",
        "s",
        lambda costs, cluster: cluster.validation_images * costs["results_seconds"],
        lambda cluster: cluster.epoch_pause,
        "add up counts, not rows: a few numbers for each process",
    ),
    Resource(
        "gathered logits of a split, in the memory of a GPU",
        "bytes",
        lambda costs, cluster: cluster.validation_images * (cluster.classes + 1) * costs["logit_bytes"],
        lambda cluster: cluster.gpu_memory,
        "write logits in shards as features are; gather the five largest only",
    ),
    Resource(
        "gradients of all weights, each step",
        "s",
        lambda costs, cluster: reduce_seconds(costs["all_gradient_bytes"], cluster),
        lambda cluster: 3 * cluster.batch / cluster.forward,
        "bfloat16 gradients, overlap with the backward pass (DDP does that)",
    ),
    Resource(
        "the study's lock, share of the time",
        "",
        lambda costs, cluster: _per_second(costs, cluster, lock_hold(costs, cluster.gpus)),
        lambda cluster: 1.0,
        "count trials in one statement instead of reading all running ones; several trials for each ask",
    ),
    Resource(
        "PostgreSQL, busy cores",
        "",
        lambda costs, cluster: (
            _per_second(costs, cluster, costs["trial_database_seconds"])
            + cluster.gpus * costs["heartbeat_seconds"] / cluster.heartbeat
        ),
        lambda cluster: cluster.database_cores,
        "one heartbeat a worker for all studies; no intermediate values without a pruner",
    ),
    Resource(
        "MLflow, busy workers",
        "",
        lambda costs, cluster: _per_second(
            costs,
            cluster,
            (costs["mlflow_run_requests"] + cluster.epochs * costs["mlflow_epoch_requests"])
            * costs["mlflow_request_seconds"],
        ),
        lambda cluster: cluster.mlflow_workers,
        "more workers over PostgreSQL, artifacts straight to S3; trials without artifacts",
    ),
)


def loads(costs: Costs, cluster: Cluster) -> dict[str, float]:
    """What each resource needs ÷ what there is: above 1 it does not suffice."""
    return {each.name: each.need(costs, cluster) / each.limit(cluster) for each in RESOURCES}


def first_limit(costs: Costs, cluster: Cluster) -> tuple[str, float]:
    """The resource with the largest load, and that."""
    return max(loads(costs, cluster).items(), key=lambda item: item[1])


def table(costs: Costs, clusters: Sequence[Cluster]) -> list[list[str]]:
    """A row for each resource, with its need and load in each cluster, and a header."""
    header = ["", *(f"{cluster.gpus} GPUs, {cluster.images:.0e} images" for cluster in clusters)]
    rows = [["computing all features once", *(amount(each.extraction_seconds, "s") for each in clusters)]]
    for resource in RESOURCES:
        cells = []
        for cluster in clusters:
            need = resource.need(costs, cluster)
            cells.append(f"{amount(need, resource.unit)} ({need / resource.limit(cluster):.2g})")
        rows.append([resource.name, *cells])
    rows.append(["limits first", *(first_limit(costs, each)[0] for each in clusters)])
    return [header, *rows]


def amount(value: float, unit: str) -> str:
    """A quantity as people read it: `9.3 TB`, `2.1 h`, `0.35`."""
    if unit == "bytes":
        for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value / 1e3:.3g} kB"
    if unit == "s" and value >= 3600:
        return f"{value / 3600:.3g} h"
    return f"{value:.2g} {unit}".strip() if value < 100 else f"{value:,.0f} {unit}".strip()
