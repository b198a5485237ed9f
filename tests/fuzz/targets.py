"""All formats by name."""

from __future__ import annotations

import torchvision

from fuzz.archive_formats import CompressedTarFile, Index, Shard, TarFile, ZipFile
from fuzz.cache_formats import Recipe, Scan, Statistics, StoreFile
from fuzz.exported_runs import ExportedRun
from fuzz.image_format import Picture
from fuzz.label_formats import LabelTable, ParquetTable, SavedDataset
from fuzz.network_formats import CheckpointFiles, ModelFolder, OldModelFolder
from fuzz.planted import PLANTED
from fuzz.run_formats import JournalFile, OwnerFile, RunFile, SnapshotFile
from fuzz.settings_formats import Environment, ExperimentFile, Journal, SpaceFile
from fuzz.table_formats import BoxesFile, ManifestFile, NamesFile
from fuzz.target import Target
from fuzz.weight_formats import PickleFile, WeightsFile

TARGETS: dict[str, type[Target]] = {
    "experiment": ExperimentFile,
    "space": SpaceFile,
    "journal": Journal,
    "manifest": ManifestFile,
    "checkpoint": CheckpointFiles,
    "store": StoreFile,
    "recipe": Recipe,
    "names": NamesFile,
    "boxes": BoxesFile,
    "image": Picture,
    "model": ModelFolder,
    "old model": OldModelFolder,
    "scan": Scan,
    "statistics": Statistics,
    "weights": WeightsFile,
    "pickle": PickleFile,
    "environment": Environment,
    "events": JournalFile,
    "owner": OwnerFile,
    "run": RunFile,
    "snapshot": SnapshotFile,
    "labels": LabelTable,
    "parquet": ParquetTable,
    "saved dataset": SavedDataset,
    "zip": ZipFile,
    "tar": TarFile,
    "compressed tar": CompressedTarFile,
    "shard": Shard,
    "archive index": Index,
    "exported run": ExportedRun,
    **PLANTED,
}


def shrink_vgg() -> None:
    """Give vgg11 very few channels in this process, so that a case takes milliseconds."""
    torchvision.models.vgg.cfgs["A"] = [2, "M", 2, "M", 2, "M", 2, "M", 512, "M"]
