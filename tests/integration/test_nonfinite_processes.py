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
from pictures import small_experiment

from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.training.batches import epoch_batches
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit

WORDS = (
    *("--train.nonfinite", "skip", "--train.epochs", "2", "--train.batch_size", "8", "--optim.lr", "0.01"),
    *("--schedule.kind", "constant"),
)


VALUES = {"nan": math.nan, "infinite loss with a finite gradient": MARK}
PROCESSES = 2
Epochs = list[dict[str, float]]


def train_in_process(rank: int, folder: str, experiment: Experiment, answers: Any) -> None:
    """One process of trainings with each of `VALUES`; puts what their epochs had into `answers`."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == PROCESSES
    answers.put((rank, {name: train_with(value, experiment, accelerator) for name, value in VALUES.items()}))
    torch.distributed.destroy_process_group()


def train_with(value: float, experiment: Experiment, accelerator: Accelerator) -> Epochs:
    """The metrics of each epoch of a training on features of which one image has this value."""
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
    timings = ("epoch_seconds", "images_per_second")
    return [
        {name: value for name, value in epoch.metrics().items() if name not in timings} for epoch in history
    ]


@pytest.fixture(scope="module")
def on_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Epochs]]:
    """The metrics of the trainings with each of `VALUES`, on each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    experiment = parse(
        [*small_experiment(images, folder, folder), *WORDS, "--train.accumulate", str(PROCESSES)]
    )[0]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    arguments = (str(folder), experiment, answers)
    started = [spawn.Process(target=train_in_process, args=(rank, *arguments)) for rank in range(PROCESSES)]
    for process in started:
        process.start()
    by_rank = dict(answers.get(timeout=120) for _ in started)
    for process in started:
        process.join(30)
    return [by_rank[rank] for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_skipped_steps_count_no_image(
    make: Make, accelerator: Accelerator, on_two: list[dict[str, Epochs]], name: str
) -> None:
    one = train_with(VALUES[name], make(*WORDS), accelerator)
    two = [of_rank[name] for of_rank in on_two]
    assert two[0] == two[1]
    assert [epoch["train/skipped"] for epoch in one] == [1, 2]
    for epoch, expected in zip(two[0], one, strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5)
    # Batches of 8, 8 and 4 images, of which the second was skipped.
    correct = one[0]["train/top1"] * 12
    assert correct == pytest.approx(round(correct), abs=1e-9)
