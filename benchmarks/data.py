"""Measures what a dataset of up to a million images costs before a run starts, and a cross-validation.

    ./launch.sh bench data --config caltech101-pooled --data.root DATA --model.weights FILE

Tiny JPEG files are written into a temporary folder (in --folder DIR; 4.4 GiB for a million, or for --images N), and
removed at the end. Each measurement is a process of its own, for 10,000, 100,000 and 1,000,000 images.

`scan_ratio`: the first scan of 100,000 images ÷ a bare loop of Pillow that reads and decodes them, with as many
processes; the median of rounds in turns. `warm_start_seconds_1m`: what a run does with its images if nothing has
changed: list them, look their contents up, split them, compute the manifest's digest and its table, read the index of
the feature store and look for missing features. `peak_mib_1m`: the most memory that it takes, beyond the libraries.
`missing_seconds_1m`: `ShardStore.missing` of all keys. `time_exponent`, `memory_exponent`: growth of these from 10,000
to 1,000,000 images: 1 is linear. `folds_seconds`: `train --split.folds 5 --repeat 10 --workers CORES` of the given
experiment, with all features cached before, from start to exit; `folds_extracted`: images that it computed features of.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.support.processes import run_part, write_result
from benchmarks.support.timing import seconds
from benchmarks.support.tiny_images import write_tiny_images
from runner.cli.options import positive_integer
from runner.config.parser import parse
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.process_pool import map_in_processes
from runner.utils.processes import cpu_count

SMALLEST, SCANNED = 10_000, 100_000
"""Images of the smallest measurement, and of that of the scan."""
CLASSES = 1_000
ROUNDS = 3
FOLDS, SEEDS = 5, 10
FEATURE = 8
"""Values of a feature in the measured store."""
ROWS = 1_820
"""Features in a shard: as many of caltech101-pooled as 16 MiB hold."""
MIB = 2**20


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(prog="runner bench data", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--images", type=positive_integer, default=1_000_000, help="most images; default: a million"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write them; default: the folder for temporary files"
    )
    options, experiment = parser.parse_known_args(argv)
    parse(experiment, prog="runner bench data")
    result: dict[str, Any] = {}
    sizes = [size for size in (SMALLEST, SCANNED, 1_000_000) if size <= options.images] or [options.images]
    with tempfile.TemporaryDirectory(prefix="runner-bench-", dir=options.folder) as name:
        folder = Path(name)
        table = {size: _measure_size(folder, size) for size in sizes}
        result |= _figures(table)
        result |= _measure_folds(folder, experiment)
    print(json.dumps(result))
    return 0


def _measure_size(folder: Path, images: int) -> dict[str, float]:
    """The figures of a dataset of a size."""
    _report(f"{images:,} images: writing them")
    root, cache = folder / f"images {images}", folder / f"cache {images}"
    write_tiny_images(root, images, min(CLASSES, images // 10))
    run = partial(run_part, "benchmarks.data", argv=[str(root), str(cache)])
    figures = run("scan", folder=folder / f"scan {images}")
    if images == SCANNED:
        figures |= run("ratio", folder=folder / f"ratio {images}")
    run("store", folder=folder / f"store {images}")
    figures |= run("warm", folder=folder / f"warm {images}")
    _report(f"{images:,} images: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    subprocess.run(["rm", "-rf", str(root), str(cache)], check=True)  # noqa: S607 (faster than shutil)
    return figures


def _figures(table: dict[int, dict[str, float]]) -> dict[str, Any]:
    smallest, largest = min(table), max(table)
    named = "1m" if largest == 1_000_000 else str(largest)
    figures: dict[str, Any] = {
        f"warm_start_seconds_{named}": table[largest]["warm_seconds"],
        f"peak_mib_{named}": table[largest]["warm_mib"],
        f"missing_seconds_{named}": table[largest]["missing_seconds"],
        f"first_scan_ips_{named}": table[largest]["scan_ips"],
        f"first_scan_mib_{named}": table[largest]["scan_mib"],
        "table": table,
    }
    if SCANNED in table:
        figures["scan_ratio"] = table[SCANNED]["scan_ratio"]
    if smallest < largest:
        for name, figure in (("time_exponent", "warm_seconds"), ("memory_exponent", "warm_mib")):
            growth = table[largest][figure] / table[smallest][figure]
            figures[name] = round(math.log(growth) / math.log(largest / smallest), 3)
    return figures


def _measure_folds(folder: Path, experiment: Sequence[str]) -> dict[str, Any]:
    """A cross-validation by the command, after a run that computes the features."""
    command = [sys.executable, "-m", "runner.cli.main", "train", *experiment]
    records = ["--tracking.root", str(folder / "mlruns")]
    _report("computing the features that are not cached yet")
    subprocess.run(
        [*command, *records, "--train.epochs", "1", "--smoke"], check=True, stdout=subprocess.DEVNULL
    )
    _report(f"{FOLDS} folds of {SEEDS} training seeds")
    words = ["--split.folds", str(FOLDS), "--repeat", str(SEEDS), "--workers", str(cpu_count())]
    taken = seconds(
        lambda: subprocess.run([*command, *records, *words], check=True, stdout=subprocess.DEVNULL)
    )
    return {"folds_seconds": round(taken, 1), "folds_extracted": _extracted(folder / "mlruns")}


def _extracted(records: Path) -> int:
    """Images that a cross-validation computed features of, before its folds and in them."""
    from runner.tracking.mlflow_server import tracking_server
    from runner.tracking.run_lookup import search_runs

    client = tracking_server(str(records)).connect()
    runs = [run for run in search_runs(client, "") if run.data.params.get("split.folds") == str(FOLDS)]
    return int(sum(run.data.metrics.get("system/features/misses", 0) for run in runs))


def _report(line: str) -> None:
    Terminal().line(line)


# Parts, each in a process of its own


def _scan(root: Path, cache: Path) -> dict[str, float]:
    """The first scan."""
    before = _peak_mib()
    taken = seconds(lambda: _scan_images(root, cache))
    count = sum(1 for _ in root.glob("*/*"))
    return {"scan_ips": round(count / taken), "scan_mib": round(_peak_mib() - before)}


def _ratio(root: Path, _cache: Path) -> dict[str, float]:
    """First scans and bare loops, in turns."""
    paths = [str(path) for path in root.glob("*/*")]
    ratios = []
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="runner-bench-") as cache:
            ours = seconds(lambda: _scan_images(root, Path(cache)))
        bare = seconds(lambda: _decode_bare(paths))
        ratios.append(bare / ours)
        _report(
            f"round {number + 1} of {ROUNDS}: bare {len(paths) / bare:.0f}, scan {len(paths) / ours:.0f} images/s"
        )
    return {"scan_ratio": round(statistics.median(ratios), 4)}


def _scan_images(root: Path, cache: Path) -> None:
    from runner.data.dataset_listing import list_dataset
    from runner.data.scan import scan_images

    listing = list_dataset(_experiment(root, cache).data, cache, Terminal(enabled=False))
    scan_images(listing, cache, Terminal(enabled=False))


def _decode_bare(paths: Sequence[str]) -> None:
    parts = [paths[start : start + 1000] for start in range(0, len(paths), 1000)]
    for _ in map_in_processes(_decode_some, parts, cpu_count()):
        pass


def _decode_some(paths: Sequence[str]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.load()


def _store(root: Path, cache: Path) -> dict[str, float]:
    """Fill a feature store with a feature of each image."""
    import torch

    from runner.features.shard_store import ShardStore
    from runner.features.stages import feature_keys

    store = ShardStore(cache / "features", {"of": "the benchmark"})
    keys = feature_keys(_manifest(root, cache).entries, -1)
    for start in range(0, len(keys), ROWS):
        part = keys.take(np.arange(start, min(start + ROWS, len(keys))))
        store.write(part, torch.zeros(len(part), FEATURE))
    return {}


def _warm(root: Path, cache: Path) -> dict[str, float]:
    """What a run does with its images before it trains, if nothing has changed."""
    from runner.data.images import SPLITS
    from runner.features.shard_store import ShardStore
    from runner.features.stages import feature_keys

    before, start = _peak_mib(), time.perf_counter()
    manifest = _manifest(root, cache)
    built = time.perf_counter() - start
    table = len(manifest.to_csv()), manifest.digest
    store = ShardStore(cache / "features", {"of": "the benchmark"})
    store.refresh()
    for split in SPLITS:
        missing = store.missing(feature_keys(manifest.select(split), -1))
        manifest.labels(split)
        assert not len(missing), f"{len(missing)} features are missing"  # noqa: S101 (the measurement would be void)
    warm = time.perf_counter() - start
    peak = _peak_mib()
    everything = np.arange(
        len(manifest.entries)
    )  # copied for each look-up: one that is repeated might be remembered
    copies = [feature_keys(manifest.entries.take(everything), -1) for _ in range(ROUNDS)]
    lookup = statistics.median([seconds(partial(store.missing, keys)) for keys in copies])
    assert table  # noqa: S101 (kept until here)
    return {
        "warm_seconds": round(warm, 3),
        "manifest_seconds": round(built, 3),
        "warm_mib": round(peak - before, 1),
        "missing_seconds": round(lookup, 4),
    }


def _manifest(root: Path, cache: Path) -> Any:
    from runner.data.manifest import build_manifest

    return build_manifest(_experiment(root, cache), Terminal(enabled=False))


def _experiment(root: Path, cache: Path) -> Any:
    words = [
        "--config",
        "quickstart",
        "--data.kind",
        "folder",
        "--data.root",
        str(root),
        "--cache",
        str(cache),
    ]
    return parse(words)[0]


def _peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _import_libraries() -> None:
    """What a run imports anyway: it does not count."""
    import pyarrow.compute
    import torch

    import runner.data.manifest
    import runner.features.stages  # noqa: F401

    pyarrow.compute.index_in(pyarrow.array([1]), pyarrow.array([1]))
    torch.zeros(1)


PARTS = {"scan": _scan, "ratio": _ratio, "store": _store, "warm": _warm}

if __name__ == "__main__":
    part, result_folder, *places = sys.argv[1:]
    _import_libraries()
    write_result(Path(result_folder), PARTS[part](*map(Path, places)))
