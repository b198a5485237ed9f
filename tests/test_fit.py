"""The training loop: its arithmetic, its randomness, its records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import (
    CLASSES,
    NUMBERS,
    QUIET,
    TEST,
    TRAIN,
    VAL,
    Make,
    Recorder,
    checkpoint_content,
    comparable,
    learn,
    rows_and_labels,
    scripted,
    small_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from runner.config.schema import OptimConfig
from runner.evaluation.inference import Inference
from runner.evaluation.metrics import scores_from_logits
from runner.models import checkpoint
from runner.models.dropout import KeyedDropout, set_dropout_batch
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.training import run, setup
from runner.training.step import build_optimizer, class_weights, epoch_batches, shares
from runner.utils.errors import UserError


@pytest.fixture(autouse=True, scope="class")
def _let_go(accelerator: Accelerator) -> Iterator[None]:
    """The accelerator holds on to every network that it prepared."""
    yield
    accelerator.free_memory()


class TestDropout:
    def layer(self, p: float = 0.4, name: str = "classifier.2", seed: int = 0) -> KeyedDropout:
        return KeyedDropout(p, name, seed).train()

    def mask(self, layer: KeyedDropout, step: int = 0, rows: slice = slice(0, 12), batch: int = 12) -> Tensor:
        layer.set_batch(step, rows, batch)
        return layer(torch.ones(rows.stop - rows.start, 50))

    def test_is_a_function_of_seed_step_and_layer(self) -> None:
        torch.manual_seed(1)
        first = self.mask(self.layer(), 3)
        torch.manual_seed(2)
        assert torch.equal(self.mask(self.layer(), 3), first)
        assert not torch.equal(self.mask(self.layer(), 4), first)
        assert not torch.equal(self.mask(self.layer(seed=1), 3), first)
        assert not torch.equal(self.mask(self.layer(name="classifier.5"), 3), first)

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 12), st.integers(0, 12))
    def test_some_rows_get_their_rows_of_the_mask(self, start: int, stop: int) -> None:
        start, stop = sorted((start, stop))
        whole = self.mask(self.layer())
        assert torch.equal(self.mask(self.layer(), rows=slice(start, stop)), whole[start:stop])

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_keeps_its_share_and_scales_it(self, p: float) -> None:
        values = self.mask(self.layer(p), rows=slice(0, 400), batch=400)
        kept = values[values != 0]
        assert len(kept) / values.numel() == pytest.approx(1 - p, abs=0.02)
        assert torch.allclose(kept, torch.tensor(1 / (1 - p)))

    def test_gradient_flows_through_what_was_kept(self) -> None:
        layer = self.layer()
        layer.set_batch(0, slice(0, 4), 4)
        values = torch.ones(4, 50, requires_grad=True)
        out = layer(values)
        out.sum().backward()
        assert torch.equal(values.grad, out.detach())

    def test_is_off_in_evaluation_and_at_zero(self) -> None:
        values = torch.rand(3, 5)
        assert torch.equal(self.layer().eval()(values), values)
        assert torch.equal(self.layer(0.0)(values), values)

    def test_rows_that_were_not_announced_are_refused(self) -> None:
        layer = self.layer()
        layer.set_batch(0, slice(0, 4), 8)
        with pytest.raises(RuntimeError, match="5 rows came in"):
            layer(torch.ones(5, 2))

    def test_a_network_keys_every_dropout_by_its_own_name(self) -> None:
        network = TransferModel(
            ModelSpec("vgg11", "report", 1, 16, 0.4, "head", CLASSES, NUMBERS),
            training_seed=3,
            random_weights=False,
        )
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
        assert all(isinstance(layer, KeyedDropout) and layer.training_seed == 3 for layer in layers)
        assert [layer.layer for layer in layers] == ["classifier.2", "classifier.5", "classifier.6.2"]  # type: ignore[union-attr]
        set_dropout_batch(network.modules(), 7, slice(1, 3), 4)
        assert {
            (layer.step, layer.samples.start, layer.samples.stop, layer.batch_size) for layer in layers
        } == {(7, 1, 3, 4)}  # type: ignore[union-attr]


class TestOrder:
    def order(
        self, labels: Tensor, size: int, sampling: str, seed: int = 0, epoch: int = 0
    ) -> list[list[int]]:
        return [list(map(int, batch)) for batch in epoch_batches(labels, size, sampling, seed, epoch)]

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
    def test_shuffled_is_a_permutation_in_full_batches(self, count: int, size: int, epoch: int) -> None:
        batches = self.order(torch.zeros(count, dtype=torch.long), size, "shuffled", epoch=epoch)
        assert sorted(place for batch in batches for place in batch) == list(range(count))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert len(batches) == math.ceil(count / size)

    @pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
    def test_is_a_function_of_seed_and_epoch(self, sampling: str) -> None:
        labels = torch.arange(50) % 3
        torch.manual_seed(1)
        first = self.order(labels, 8, sampling, 3, 4)
        torch.manual_seed(2)
        assert self.order(labels, 8, sampling, 3, 4) == first
        assert self.order(labels, 8, sampling, 3, 5) != first
        assert self.order(labels, 8, sampling, 4, 4) != first

    def test_batch_size_only_cuts_the_order(self) -> None:
        labels = torch.arange(50) % 3
        large, small = (
            [place for batch in self.order(labels, size, "shuffled") for place in batch] for size in (32, 7)
        )
        assert large == small

    def test_balanced_draws_every_class_equally_often(self) -> None:
        labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
        drawn = [
            place
            for epoch in range(3)
            for batch in self.order(labels, 100, "balanced", epoch=epoch)
            for place in batch
        ]
        assert len(drawn) == 3000
        counts = torch.bincount(labels[drawn], minlength=3)
        assert all(900 < count < 1100 for count in counts.tolist())
        assert len({place for place in drawn if labels[place] == 2}) == 10


class TestShares:
    @settings(deadline=None, max_examples=120)
    @given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 3))
    def test_cover_a_batch_once_in_order(self, count: int, processes: int, accumulate: int) -> None:
        ranks = [SimpleNamespace(num_processes=processes, process_index=rank) for rank in range(processes)]
        parts = [list(shares(count, accumulate, rank)) for rank in ranks]  # type: ignore[arg-type]
        batch = list(range(count))
        in_order = [
            batch[parts[rank][number].rows] for number in range(accumulate) for rank in range(processes)
        ]
        assert [place for piece in in_order for place in piece] == batch
        lengths = [len(piece) for piece in in_order]
        assert max(lengths) - min(lengths) <= 1
        for own in parts:
            assert [part.last for part in own] == [False] * (accumulate - 1) + [True]


class TestArithmetic:
    @pytest.mark.parametrize("accumulate", [3, 8])
    @pytest.mark.parametrize(
        "options",
        [[], ["--train.class_weights", "true", "--train.label_smoothing", "0.1"]],
        ids=["plain", "weighed"],
    )
    def test_accumulation_changes_nothing(
        self, make: Make, accelerator: Accelerator, accumulate: int, options: list[str]
    ) -> None:
        words = ["--optim.name", "sgd", "--optim.lr", "0.05", "--train.epochs", "2", *options]
        _, plain = learn(make(*words), small_network(), accelerator)
        network = small_network()
        before = {name: value.clone() for name, value in network.classifier.named_parameters()}
        _, parts = learn(make(*words, "--train.accumulate", str(accumulate)), network, accelerator)
        for name, value in plain[-1].items():
            assert not torch.allclose(before[name], value, atol=1e-4)
            torch.testing.assert_close(parts[-1][name], value, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("weighed", [False, True])
    def test_first_step_is_torchs_own(
        self, make: Make, accelerator: Accelerator, smoothing: float, weighed: bool
    ) -> None:
        values, labels = rows_and_labels()
        network = small_network(dropout=0.0)
        truth = torch.tensor(labels)
        weights = class_weights(truth, 3) if weighed else None
        loss = nn.CrossEntropyLoss(weights, label_smoothing=smoothing)(
            network(values, start=network.split_index), truth
        )
        loss.backward()
        expected = {name: p.detach() - 0.1 * p.grad for name, p in network.classifier.named_parameters()}
        network.zero_grad()
        experiment = make(
            *("--optim.name", "sgd", "--optim.lr", "0.1", "--optim.momentum", "0", "--train.epochs", "1"),
            *("--train.batch_size", "64", "--model.dropout", "0"),
            *("--train.label_smoothing", str(smoothing), "--train.class_weights", str(weighed).lower()),
        )
        (epoch,), (after,) = learn(experiment, network, accelerator)
        assert epoch.train_loss == pytest.approx(loss.item(), rel=1e-6)
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-7)

    def test_class_weights_are_scikit_learns_balanced(self) -> None:
        labels = np.array([0] * 7 + [1] * 2 + [2] * 11)
        expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
        assert class_weights(torch.tensor(labels), 3).tolist() == pytest.approx(expected.tolist())

    def test_gradient_is_clipped(self, make: Make, accelerator: Accelerator) -> None:
        network = small_network()
        before = {name: value.clone() for name, value in network.classifier.named_parameters()}
        words = ["--optim.name", "sgd", "--optim.momentum", "0", "--optim.lr", "1", "--train.epochs", "1"]
        _, (after,) = learn(
            make(*words, "--train.batch_size", "64", "--train.clip", "0.01"), network, accelerator
        )
        moved = math.sqrt(sum((after[name] - value).pow(2).sum().item() for name, value in before.items()))
        assert moved == pytest.approx(0.01, rel=1e-3)

    def test_training_hits_are_counted_as_trained(self, make: Make, accelerator: Accelerator) -> None:
        network = small_network(dropout=0.0)
        values, labels = rows_and_labels()
        guesses = network(values, start=network.split_index).argmax(1)
        experiment = make("--train.epochs", "1", "--train.batch_size", "64", "--model.dropout", "0")
        (epoch,), _ = learn(experiment, network, accelerator)
        assert epoch.train_top1 == pytest.approx((guesses == torch.tensor(labels)).double().mean().item())

    def test_fit_seed_decides(self, make: Make, accelerator: Accelerator) -> None:
        def losses(seed: int) -> list[float]:
            experiment = make("--seed.train", str(seed), "--schedule.kind", "constant")
            return [epoch.train_loss for epoch in learn(experiment, small_network(seed), accelerator)[0]]

        assert losses(0) == losses(0)
        assert not set(losses(0)) & set(losses(1))

    def test_head_learns(self, make: Make, accelerator: Accelerator) -> None:
        history, _ = learn(make("--train.epochs", "10", "--optim.lr", "0.003"), small_network(), accelerator)
        assert history[-1].train_loss < history[0].train_loss / 2
        assert history[-1].val.top1 == 1

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_divergence_is_a_sentence(self, make: Make, accelerator: Accelerator, epochs: int) -> None:
        experiment = make("--optim.name", "sgd", "--optim.lr", "1e30", "--train.epochs", str(epochs))
        with pytest.raises(UserError, match=r"diverged.*optim\.lr \(1e\+30\)"):
            learn(experiment, small_network(), accelerator)

    def test_divergence_at_the_last_step_is_a_sentence(self, make: Make, accelerator: Accelerator) -> None:
        experiment = make(
            "--optim.name", "sgd", "--optim.lr", "1e38", "--train.epochs", "1", "--train.batch_size", "64"
        )
        with pytest.raises(UserError, match="diverged"):
            learn(experiment, small_network(), accelerator)

    @pytest.mark.parametrize(
        ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
    )
    def test_optimizer_has_its_settings(self, name: Any, kind: type[torch.optim.Optimizer]) -> None:
        optimizer = build_optimizer(
            OptimConfig(name, lr=0.02, weight_decay=0.3, momentum=0.8), small_network()
        )
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
        assert group.get("momentum", 0.8) == 0.8

    @pytest.mark.parametrize("best", ["top1", "recall"])
    def test_best_is_the_first_epoch_with_the_highest_score(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, best: str
    ) -> None:
        scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.7], [0.5, 0.4, 0.6, 0.8, 0.8])
        experiment = make("--train.best", best, "--train.epochs", "5", "--schedule.kind", "constant")
        history, _ = learn(experiment, small_network(), accelerator)
        last = [epoch.number for epoch in history if epoch.best][-1]
        assert last == (2 if best == "top1" else 4)
        result = run.RunResult(tuple(history), history[0].val, history[0].val)
        assert result.best_epoch.number == last


class TestRuns:
    def test_store_changes_no_bit(self, make: Make, train: Callable[..., Any]) -> None:
        on, kept = train(make("--features.store", "true"))
        off, passed = train(make("--features.store", "false"))
        assert comparable(on.history) == comparable(off.history)
        assert (on.best, on.last) == (off.best, off.last)
        for name in ("best", "last"):
            first, second = (
                load_file(each.folder / "checkpoints" / f"{name}.safetensors") for each in (kept, passed)
            )
            assert all(torch.equal(value, second[key]) for key, value in first.items())

    def test_same_run_twice_is_the_same_in_every_bit(
        self, make: Make, train: Callable[..., Any], tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        once, first = train(make())
        torch.manual_seed(2)
        again, second = train(make("--cache", str(tmp_path / "another cache")))
        assert comparable(once.history) == comparable(again.history)
        assert (once.best, once.last) == (again.best, again.last)
        for name in ("best", "last", "frozen"):
            mine, other = (
                checkpoint_content(each.folder / f"checkpoints/{name}.safetensors")
                for each in (first, second)
            )
            assert mine[1] == other[1]
            assert mine[0].keys() == other[0].keys()
            assert all(torch.equal(value, other[0][key]) for key, value in mine[0].items())
        timed = (
            "epoch_seconds",
            "images_per_second",
            "features/images_per_second",
            "features/saved_seconds",
            "checkpoints/seconds",
        )
        points = [[point for point in each.points if point[0] not in timed] for each in (first, second)]
        assert points[0] == points[1]

    def test_records(self, make: Make, train: Callable[..., Any]) -> None:
        result, records = train(make())
        assert set(records.artifacts) == {
            *("experiment.yaml", "manifest.csv", "environment.json", "predictions.csv"),
            *(f"checkpoints/{name}.safetensors" for name in ("best", "frozen", "last")),
            *("figures/loss.png", "figures/accuracy.png"),
        }
        losses = [(step, value) for name, step, value in records.points if name == "train/loss"]
        assert losses == [(epoch.number, epoch.train_loss) for epoch in result.history]
        final = {name: value for name, _, value in records.points}
        assert (final["test/best/top1"], final["test/last/top1"]) == (result.best.top1, result.last.top1)
        assert (result.last.images, result.history[0].val.images) == (TEST, VAL)

    @pytest.mark.parametrize("best", ["top1", "recall"])
    def test_best_checkpoint_is_the_network_of_the_best_epoch(
        self,
        make: Make,
        train: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        accelerator: Accelerator,
        best: str,
    ) -> None:
        scripted(monkeypatch, [0.5, 0.7, 0.7, 0.1], [0.5, 0.4, 0.8, 0.8])
        experiment = make("--train.best", best, "--train.epochs", "4", "--schedule.kind", "constant")
        result, records = train(experiment)
        number = 2 if best == "top1" else 3
        folder = records.folder / "checkpoints"
        kept = checkpoint.load(folder / "best.safetensors")
        assert kept.epoch == result.best_epoch.number == number
        assert kept.val["top1"] == 0.7
        assert checkpoint.load(folder / "last.safetensors").epoch == 4
        # A run that ends there ends with the same network.
        scripted(monkeypatch, [0.5, 0.7, 0.7, 0.1][:number], [0.5, 0.4, 0.8, 0.8][:number])
        _, shorter = train(
            dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, epochs=number))
        )
        first, second = (
            load_file(path)
            for path in (folder / "best.safetensors", shorter.folder / "checkpoints" / "last.safetensors")
        )
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        ready = setup.prepare(experiment, accelerator, QUIET)
        rows, labels = ready.features.get("test", -1), ready.manifest.labels("test")
        logits = Inference(kept.model, accelerator, ready.chunk).logits(rows, len(labels))
        assert scores_from_logits(logits, labels) == result.best

    def test_checkpoints_survive_a_run_that_stops(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        scripted(monkeypatch, [0.5])  # the second validation has nothing to say
        records = Recorder(tmp_path / "records")
        with pytest.raises(StopIteration):
            run.train(make(), accelerator, records, QUIET)
        assert checkpoint.load(records.folder / "checkpoints" / "best.safetensors").epoch == 1
        assert "checkpoints/best.safetensors" in records.artifacts
        assert "checkpoints/frozen.safetensors" in records.artifacts

    @pytest.mark.parametrize(("arch", "trainable"), [("vgg11", "all"), ("vgg11_bn", "features.11")])
    def test_fine_tuning_learns_by_the_same_code(
        self, make: Make, train: Callable[..., Any], through_prefix: list[int], arch: str, trainable: str
    ) -> None:
        words = [
            "--model.arch",
            arch,
            "--model.trainable",
            trainable,
            "--optim.lr",
            "0.001",
            "--augment.views",
            "clean",
        ]
        result, records = train(
            make(*words, "--schedule.kind", "constant", "--train.epochs", "3", "--model.dropout", "0")
        )
        assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
        learned = load_file(records.folder / "checkpoints" / "last.safetensors")
        first = small_network(arch=arch, trainable=trainable).state_dict()
        assert ("features.0.weight" in learned) == (trainable == "all")
        changed = [
            name
            for name, value in learned.items()
            if name.startswith("features.") and not torch.equal(value, first[name])
        ]
        assert any(name.startswith("features.18.") for name in changed)
        stored = TRAIN + VAL + TEST if trainable != "all" else 0
        assert sum(through_prefix) == stored

    def test_batch_normalisation_trains_head_only(self, make: Make, train: Callable[..., Any]) -> None:
        words = [
            "--model.arch",
            "vgg11_bn",
            "--optim.lr",
            "0.003",
            "--train.epochs",
            "3",
            "--schedule.kind",
            "constant",
        ]
        on, records = train(make(*words))
        off, _ = train(make(*words, "--features.store", "false"))
        assert comparable(on.history) == comparable(off.history)
        assert on.history[-1].train_loss < on.history[0].train_loss
        frozen = load_file(records.folder / "checkpoints" / "frozen.safetensors")
        assert not frozen["features.1.running_mean"].any()

    def test_batch_normalisation_takes_parts_without_images(
        self, make: Make, train: Callable[..., Any]
    ) -> None:
        words = ["--model.arch", "vgg11_bn", "--model.trainable", "all", "--train.epochs", "1"]
        result, _ = train(make(*words, "--train.accumulate", "3"))  # 18 images: 8, 8 and 2 in three parts
        assert math.isfinite(result.history[0].train_loss)
        assert math.isfinite(result.history[0].val.loss)
