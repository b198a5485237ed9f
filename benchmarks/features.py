"""What does keeping features buy? Rates of extraction, against the machine's limit and against the naive loop.

    ./launch.sh bench features --config caltech101-pooled --data.root DATA --model.weights FILE

The naive loop is what the published report and its peers do: the whole network in float32, a DataLoader with two
workers, the frozen part inside every training step and every epoch's validation. Its steps are timed; a run of it
would take hours. Everything else is run: extraction from JPEG files, a cold run of 16 epochs on all images in a
process of its own with an empty compiler cache, and the fits of 20 trials. Only `study_speedup_fresh` multiplies the
measured rate of augmented views by their number.

What compares is measured in turns, in one run; medians.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROUNDS = 3
BARE_CHUNKS = 10
FILE_CHUNKS = 20
SCALING_CHUNKS = 10
NAIVE_BATCHES = 4
"""Of 64 images, to train on and to validate on."""
EPOCHS = 16
TRIALS = 20
VIEWS = 16


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object on the last line."""
    from runner.config.parser import parse
    from runner.training import devices
    from runner.utils.console import Terminal

    experiment, _ = parse(argv, prog="runner bench features")
    terminal = Terminal()
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
        accelerator = devices.start(experiment)
        measured = _rates(experiment, accelerator, Path(folder), terminal)
        measured |= _naive(experiment, terminal)
        measured |= _scaling(argv, Path(folder), terminal)
        terminal.line("a cold run on all images, then 20 trials …")
        measured |= _apart("cold", argv, Path(folder) / "cold")[0]
    print(json.dumps(_figures(measured) | {"device": devices.describe(accelerator)}))
    return 0


def _figures(m: dict[str, Any]) -> dict[str, Any]:
    """The figures that the measurements come to."""
    naive = EPOCHS * (m["train_images"] / m["naive_train_ips"] + m["val_images"] / m["naive_val_ips"])
    study = m["cold_seconds"] + m["study_fit_seconds"] * (TRIALS - 1) / TRIALS
    fresh = (
        VIEWS * m["train_images"] / m["view_ips"]
        + m["val_images"] / m["file_ips"]
        + m["compile_seconds"]
        + m["study_fit_seconds"]
    )
    figures = {
        "bare_ratio": m["bare_ratio"],
        "limit_ratio": m["file_ips"] / m["limit_ips"],
        "cold_limit_ratio": m["all_images"] / m["all_seconds"] / m["limit_ips"],
        "single_run_speedup": naive / m["cold_seconds"],
        "study_speedup_clean": TRIALS * naive / study,
        "study_speedup_fresh": TRIALS * naive / fresh,
        "scaling_2": m["scaling_2"],
        "peak_mib": m["peak_mib"],
        "naive_run_seconds": naive,
        "fresh_study_seconds": fresh,
    }
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in (figures | m).items()
    }


def _rates(experiment: Any, accelerator: Any, folder: Path, terminal: Any) -> dict[str, Any]:
    """The machine's limit, the bare network, and extraction from files, in turns."""
    ready = _prepared(experiment, accelerator, folder / "none")
    prefix, crop = ready.features.extractor, experiment.augment.crop
    images = torch.randint(0, 256, (ready.chunk, 3, crop, crop), dtype=torch.uint8)
    began = time.perf_counter()
    _settle(prefix(images))
    first = time.perf_counter() - began

    def bare() -> None:
        for _ in range(BARE_CHUNKS):
            _settle(prefix(images))

    rates: dict[str, list[float]] = {"limit": [], "bare": [], "file": [], "view": []}
    for number in range(ROUNDS):
        rates["limit"].append(_limit(accelerator.device) / _flops(ready, images[:1]))
        rates["bare"].append(BARE_CHUNKS * ready.chunk / _seconds(bare))
        for name, view in (("file", -1), ("view", 0)):
            features = _sample(ready, FILE_CHUNKS * ready.chunk, folder / f"{name} {number}")
            count = len(features.manifest.entries)
            rates[name].append(count / _seconds(lambda f=features, v=view: f.get("train", v)))  # type: ignore[misc]
        terminal.line(
            f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.2f} images/s" for k, v in rates.items())
        )
    middle = {f"{name}_ips": statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(file / bare for file, bare in zip(rates["file"], rates["bare"], strict=True))
    once = ready.chunk / middle["bare_ips"]
    return {
        **middle,
        "bare_ratio": ratio,
        "compile_seconds": max(0.0, first - once),
        "compiled": prefix.compiled,
        "precision": accelerator.mixed_precision,
        **_costs(ready, folder / "costs"),
    }


def _costs(ready: Any, folder: Path) -> dict[str, float]:
    """Milliseconds of one core an image beside the network: decoding, and writing to the store."""
    from runner.features.shard_store import ShardStore

    entries = ready.manifest.select("train")[:64]
    loader = dataclasses.replace(ready.features.loader, workers=0)
    costs = {}
    for name, view in (("clean_ms", -1), ("augmented_ms", 0)):
        seconds = _seconds(lambda v=view: list(loader.batches(entries, v, [range(len(entries))])))  # type: ignore[misc]
        costs[name] = 1000 * seconds / len(entries)
    (shape, dtype), store = ready.features._stage_shapes[0], ShardStore(folder, {})
    rows = torch.zeros(256, *shape, dtype=dtype)
    costs["write_ms"] = 1000 * _seconds(lambda: store.write([str(n) for n in range(256)], rows)) / 256
    return costs


def _naive(experiment: Any, terminal: Any) -> dict[str, float]:
    """Images/s of the naive loop's training and validation: medians of its steps."""
    import torchvision
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    from runner.data import manifest as manifests
    from runner.models import pretrained
    from runner.portable.images import open_rgb
    from runner.utils.console import Terminal

    manifest = manifests.build_manifest(experiment, Terminal(enabled=False))
    network = torchvision.models.vgg16()
    if (loaded := pretrained.read_weights(experiment.model)) is not None:
        network.load_state_dict(
            {k: v.float() for k, v in loaded.tensors.items() if "features" in k}, strict=False
        )
    network.requires_grad_(False)
    network.classifier[6] = torch.nn.Sequential(
        torch.nn.Linear(4096, 256),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.4),
        torch.nn.Linear(256, len(manifest.classes)),
    )
    optimizer = torch.optim.Adam(network.classifier[6].parameters(), lr=0.001)
    normalise = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    kinds = {
        "train": [
            v2.RandomResizedCrop(256, scale=(0.8, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15),
        ],
        "val": [v2.Resize(256)],
    }

    class Files(Dataset):  # type: ignore[type-arg]
        def __init__(self, split: str) -> None:
            self.entries = manifest.select(split)[: 64 * (NAIVE_BATCHES + 1)]
            self.view = v2.Compose([*kinds[split], v2.CenterCrop(224), v2.PILToTensor(), *normalise])

        def __len__(self) -> int:
            return len(self.entries)

        def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
            entry = self.entries[place]
            return self.view(open_rgb(manifest.root / entry.path)), manifest.classes.index(entry.label)

    rates = {}
    for split in ("train", "val"):
        network.train(split == "train")
        steps = []
        began = 0.0
        for images, labels in DataLoader(Files(split), batch_size=64, num_workers=2, drop_last=True):
            with torch.set_grad_enabled(split == "train"):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            if split == "train":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss.item()
            if began:  # the first batch waits for the workers
                steps.append(time.perf_counter() - began)
            began = time.perf_counter()
        rates[f"naive_{split}_ips"] = 64 / statistics.median(steps)
        terminal.line(f"naive {split}: {rates[f'naive_{split}_ips']:.2f} images/s")
    return rates


def _scaling(argv: Sequence[str], folder: Path, terminal: Any) -> dict[str, float]:
    """Extraction on two processes of one thread ÷ one process of two, in turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for processes in (1, 2):
            said = _apart("scaling", argv, folder / f"scaling-{turn}-{processes}", processes)
            rates[processes] += said[0]["rates"]
            terminal.line(
                f"{processes} × {2 // processes} threads: {statistics.median(rates[processes]):.2f} images/s"
            )
    return {"scaling_2": statistics.median(rates[2]) / statistics.median(rates[1])}


def _apart(part: str, argv: Sequence[str], folder: Path, processes: int = 1) -> list[dict[str, Any]]:
    """Run a part in processes of its own, joined as by a launcher; what each of them says."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    running = []
    for rank in range(processes):
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        }
        if processes > 1:
            environment |= {
                **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
                **{name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            }
        command = [sys.executable, str(Path(__file__).resolve()), part, str(folder), *argv]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(f"the part {part} of the benchmark failed")
    return [json.loads((folder / f"said {rank}.json").read_text()) for rank in range(processes)]


def _scaling_part(experiment: Any, folder: Path) -> dict[str, Any]:
    from runner.training import devices

    accelerator = devices.start(experiment)
    ready = _prepared(experiment, accelerator, folder / "features")
    _settle(
        ready.features.extractor(
            torch.zeros(1, 3, experiment.augment.crop, experiment.augment.crop, dtype=torch.uint8)
        )
    )
    rates = []
    for number in range(2):
        features = _sample(ready, SCALING_CHUNKS * ready.chunk, folder / f"features {number}")
        accelerator.wait_for_everyone()
        rates.append(len(features.manifest.entries) / _seconds(lambda f=features: f.get("train", -1)))  # type: ignore[misc]
    return {"rates": rates}


def _cold_part(experiment: Any, folder: Path) -> dict[str, Any]:
    """A run of 16 epochs on clean views with nothing kept, the test split's rows, and 20 trials' fits."""
    from runner.training import devices

    accelerator = devices.start(experiment)
    began = time.perf_counter()
    ready = _prepared(experiment, accelerator, folder / "features")
    account = ready.features.stats
    counts = {split: len(ready.manifest.select(split)) for split in ("train", "val", "test")}
    top1 = _fit(experiment, ready, 0)
    single = time.perf_counter() - began
    ready.features.get("test", -1)
    warm = time.perf_counter()
    scores = [_fit(experiment, ready, trial) for trial in range(TRIALS)]
    fits = time.perf_counter() - warm
    own, others = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        **{f"{split}_images": count for split, count in counts.items()},
        "all_images": sum(counts.values()),
        "all_seconds": account.compute_seconds,
        "cold_seconds": single,
        "study_fit_seconds": fits,
        "tail_epoch_seconds": fits / TRIALS / EPOCHS,
        "cold_val_top1": top1,
        "study_best_val_top1": max(scores),
        "peak_mib": own // 1024,
        "peak_mib_worker": others // 1024,
    }


def _fit(experiment: Any, ready: Any, trial: int) -> float:
    """Train 16 epochs as trial number so-and-so of a search of the learning rate: the best validation top-1."""
    from runner.models.transfer_model import TransferModel
    from runner.training.loop import LabeledFeatures, fit
    from runner.utils.console import Terminal

    replace = dataclasses.replace
    tried = replace(
        ready.experiment,
        fit=replace(ready.experiment.train, epochs=EPOCHS),
        optim=replace(experiment.optim, lr=experiment.optim.lr * 1.2 ** ((trial + 1) // 2 * (-1) ** trial)),
    )
    network = TransferModel(ready.network.spec, experiment.seed.train, random_weights=False)
    network.load_state_dict({**ready.network.frozen_state(), **network.trainable_state()})
    network.to(ready.features.accelerator.device)
    features, manifest = ready.features, ready.manifest
    history = fit(
        tried,
        network,
        LabeledFeatures(lambda _: features.get("train", -1), manifest.labels("train")),
        LabeledFeatures(lambda _: features.get("val", -1), manifest.labels("val")),
        features.accelerator,
        ready.chunk,
        lambda _: None,
        Terminal(enabled=False),
    )
    return max(epoch.val["top1"] for epoch in history)


def _prepared(experiment: Any, accelerator: Any, root: Path) -> Any:
    """The experiment made ready, its features kept under `root`."""
    from runner.training.setup import prepare
    from runner.utils.console import Terminal

    ready = prepare(experiment, accelerator, Terminal(enabled=False))
    kept = dataclasses.replace(ready.features.storage, root=root)
    return dataclasses.replace(ready, features=dataclasses.replace(ready.features, storage=kept))


def _sample(ready: Any, count: int, root: Path) -> Any:
    """Features of `count` training images, evenly spread over the classes, with nothing kept yet."""
    from runner.data.manifest import Manifest

    entries = ready.manifest.select("train")
    chosen = entries[:: max(1, len(entries) // count)][:count]
    kept = dataclasses.replace(ready.features.storage, root=root)
    return dataclasses.replace(
        ready.features, manifest=Manifest(ready.manifest.root, tuple(chosen)), storage=kept
    )


def _limit(device: torch.device) -> float:
    """FLOP/s of the best bf16 product of two square matrices of 2048 or 4096."""
    best = 0.0
    for side in (2048, 4096):
        first, second = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
        _settle(first @ second)
        seconds = [_seconds(lambda a=first, b=second: _settle(a @ b)) for _ in range(3)]  # type: ignore[misc]
        best = max(best, 2 * side**3 / min(seconds))
    return best


def _flops(ready: Any, image: torch.Tensor) -> float:
    """FLOP of one image through the convolutions: 30.7 G for VGG16 at 224 px."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ready.network.run(image.to(ready.features.accelerator.device), *ready.network.frozen_stages[0])
    return float(counter.get_total_flops())


def _settle(values: torch.Tensor) -> None:
    """Wait until `values` are computed."""
    values.flatten()[0].item()


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _part() -> None:
    """One part, in a process of its own: its name, a folder, the experiment's settings."""
    from runner.config.parser import parse

    name, folder, *argv = sys.argv[1:]
    said = {"cold": _cold_part, "scaling": _scaling_part}[name](parse(argv)[0], Path(folder))
    (Path(folder) / f"said {os.environ.get('RANK', '0')}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    _part()
