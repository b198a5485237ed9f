"""`train.nonfinite=skip` on one and on two processes: the same steps are skipped, and the same images are counted."""

from __future__ import annotations

import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fits import MARK, TensorFeatures, lose_marked, separable_features
from helpers import Make, small_model

from runner.config.schema import Experiment
from runner.training.batches import epoch_batches
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit

WORDS = (
    *("--train.nonfinite", "skip", "--train.epochs", "2", "--train.batch_size", "8", "--optim.lr", "0.01"),
    *("--schedule.kind", "constant"),
)


def train_in_process(
    rank: int, processes: int, folder: str, experiment: Experiment, value: float, answers: Any
) -> None:
    """One process of a training on features of which one image has a value; puts what its epochs had into `answers`."""
    if processes > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == processes
    values, labels = separable_features()
    bad = values.clone()
    image = int(
        epoch_batches(torch.tensor(labels), 8, "shuffled", 0, 0)[1][0]
    )  # a batch's first: rank 0 has it
    bad[image, 0] = value
    model = small_model()
    model.register_forward_hook(lose_marked(labels[image]))
    train = LabeledFeatures(lambda epoch: TensorFeatures(bad), labels)
    val = LabeledFeatures(lambda epoch: TensorFeatures(values), labels)
    history = fit(experiment, model, FitData(train, val, 8), accelerator)
    answers.put((rank, [epoch.metrics() for epoch in history]))
    if processes > 1:
        torch.distributed.destroy_process_group()


def train_on(
    processes: int, folder: Path, experiment: Experiment, value: float
) -> list[list[dict[str, float]]]:
    """The metrics of each epoch of a training, on each of some processes."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    arguments = (processes, str(folder), experiment, value, answers)
    started = [spawn.Process(target=train_in_process, args=(rank, *arguments)) for rank in range(processes)]
    for process in started:
        process.start()
    by_rank = dict(answers.get(timeout=120) for _ in started)
    for process in started:
        process.join(30)
    timings = ("epoch_seconds", "images_per_second")
    return [
        [{name: value for name, value in epoch.items() if name not in timings} for epoch in by_rank[rank]]
        for rank in range(processes)
    ]


@pytest.mark.parametrize("value", [math.nan, MARK], ids=["nan", "infinite loss with a finite gradient"])
def test_skipped_steps_count_no_image(make: Make, tmp_path: Path, value: float) -> None:
    (one,) = train_on(1, tmp_path, make(*WORDS), value)
    two = train_on(2, tmp_path, make(*WORDS, "--train.accumulate", "2"), value)
    assert two[0] == two[1]
    assert [epoch["train/skipped"] for epoch in one] == [1, 2]
    for epoch, expected in zip(two[0], one, strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5)
    # Batches of 8, 8 and 4 images, of which the second was skipped.
    correct = one[0]["train/top1"] * 12
    assert correct == pytest.approx(round(correct), abs=1e-9)
