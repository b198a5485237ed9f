"""`runner train --split.folds K`: a run with a child for each fold, and what it says of all images together."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import client_of, in_process, one_sentence, runs_of
from helpers import Place

from runner import train
from runner.cli import compare, evaluate
from runner.evaluation.predictions import read_predictions
from runner.features.shard_store import ShardStore
from runner.training import run as single_run
from runner.utils.exit_status import run_main

SHARED = ("--augment.views", "none", "--model.normalize", "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}")
"""Features that do not depend on the fold."""
FOLDS = (*SHARED, "--split.folds", "3", "--train.epochs", "2")


def table_of(client: Any, run: Any) -> list[dict[str, str]]:
    """A run's predictions.csv, by row."""
    path = client.download_artifacts(run.info.run_id, "predictions.csv")
    return list(csv.DictReader(io.StringIO(Path(path).read_bytes().decode(), newline="")))


@dataclass(frozen=True)
class Validated:
    """A finished cross-validation."""

    folder: Path
    words: list[str]
    client: Any
    parent: Any
    children: list[Any]
    output: str


@pytest.fixture(scope="module")
def validated(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Validated:
    """Three folds with two training seeds, from an empty cache."""
    folder = tmp_path_factory.mktemp("validated")
    words = [*place(folder), *FOLDS, "--cache", str(folder / "cache"), "--tracking.model", "true"]
    outcome = in_process("train", *words, "--repeat", "2")
    assert outcome.returncode == 0, outcome.stderr
    client = client_of(folder)
    parent, *children = runs_of(client)
    return Validated(folder, words, client, parent, children, outcome.stdout)


def test_each_fold_is_a_child_with_each_seed(validated: Validated) -> None:
    parent, children = validated.parent, validated.children
    assert parent.info.run_name == "vgg11-pooled lr=0.003 seed=0 folds=3 repeat=2"
    assert [each.info.run_name.partition(" of ")[0] for each in children] == [
        f"fold {fold} seed {seed}" for seed in (0, 1) for fold in (0, 1, 2)
    ]
    assert {each.data.tags["mlflow.parentRunId"] for each in children} == {parent.info.run_id}
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert parent.data.tags["runner.fold"] == "test"
    assert (parent.data.params["split.folds"], parent.data.params["split.fold"]) == ("3", "None")
    assert [each.data.params["split.fold"] for each in children] == ["0", "1", "2"] * 2
    assert list((validated.folder / "mlruns" / "journals").iterdir()) == []


def test_no_fold_registers_a_model(validated: Validated) -> None:
    assert not list(validated.client.search_registered_models())


def test_each_image_is_computed_once(validated: Validated) -> None:
    misses = [each.data.metrics["system/features/misses"] for each in validated.children]
    assert (misses[0], sum(misses)) == (36, 36)


def test_spreads_are_over_folds_and_over_seeds(validated: Validated) -> None:
    logged = validated.parent.data.metrics
    for name in ("test/best/top1", "test/last/loss", "val/best/top1"):
        values = [each.data.metrics[name] for each in validated.children]
        by_fold = [statistics.fmean(values[fold::3]) for fold in range(3)]
        by_seed = [statistics.fmean(values[:3]), statistics.fmean(values[3:])]
        assert logged[name] == pytest.approx(statistics.fmean(values))
        assert logged[f"{name}_sd"] == pytest.approx(statistics.stdev(by_fold))
        assert logged[f"{name}_sd_over_seeds"] == pytest.approx(statistics.stdev(by_seed))
    assert "Mean ± sd of 3 folds × 2 training seeds" in validated.output
    assert "sd over the training seeds" in validated.output
    assert "of their means over the folds" in validated.parent.data.tags["mlflow.note.content"]


def test_the_table_has_each_image_once_with_its_fold(validated: Validated) -> None:
    rows = table_of(validated.client, validated.parent)
    assert len(rows) == len({row["path"] for row in rows}) == 36
    assert Counter(row["fold"] for row in rows) == {"0": 12, "1": 12, "2": 12}
    in_fold = {}
    for child in validated.children[:3]:
        for row in table_of(validated.client, child):
            in_fold[row["path"]] = (child.data.params["split.fold"], row["digest"], row["true"])
    assert {row["path"]: (row["fold"], row["digest"], row["true"]) for row in rows} == in_fold


def test_probabilities_are_means_over_the_seeds(validated: Validated) -> None:
    true: dict[str, list[float]] = {}
    for child in validated.children:
        for row in table_of(validated.client, child):
            true.setdefault(row["path"], []).append(float(row["true_probability"]))
    for row in table_of(validated.client, validated.parent):
        assert float(row["true_probability"]) == pytest.approx(statistics.fmean(true[row["path"]]), abs=2e-6)


def test_pooled_scores_have_an_interval(validated: Validated) -> None:
    rows, logged = table_of(validated.client, validated.parent), validated.parent.data.metrics
    share = sum(row["true_rank"] == "1" for row in rows) / 36
    assert logged["out_of_fold/top1"] == pytest.approx(share)
    assert logged["out_of_fold/top1_low"] <= share <= logged["out_of_fold/top1_high"]
    assert {"out_of_fold/balanced_accuracy_low", "out_of_fold/loss"} <= logged.keys()
    assert "Out-of-fold predictions of 36 images together" in validated.output
    assert "the mean probabilities over 2 training seeds" in validated.output


def test_the_table_can_be_compared(validated: Validated, capfd: pytest.CaptureFixture[str]) -> None:
    path = validated.client.download_artifacts(validated.parent.info.run_id, "predictions.csv")
    assert len(read_predictions(Path(path).read_bytes().decode())) == 36
    root, child = str(validated.folder / "mlruns"), validated.children[1]
    ids = (validated.parent.info.run_id, child.info.run_id)
    assert run_main(lambda: compare.main([*ids, "--tracking.root", root, "--json"])) == 0
    (test,) = json.loads(capfd.readouterr().out)["paired"]
    assert test["images"] == 12, "those of the child's fold"


def test_it_has_no_model_to_evaluate(validated: Validated, capfd: pytest.CaptureFixture[str]) -> None:
    words = [validated.parent.info.run_id, "--tracking.root", str(validated.folder / "mlruns")]
    assert run_main(lambda: evaluate.main(words)) == 2
    message = one_sentence(capfd.readouterr().err)
    assert "is a cross-validation" in message
    assert validated.children[0].info.run_id[:8] in message


def test_a_fold_alone_is_the_child_of_that_fold(validated: Validated) -> None:
    words = [*validated.words, "--split.fold", "1"]
    assert run_main(lambda: train.main(words)) == 0
    alone = runs_of(validated.client)[-1]
    assert "mlflow.parentRunId" not in alone.data.tags
    assert alone.info.run_name == "vgg11-pooled lr=0.003 seed=0 fold=1 of 3"
    same = validated.children[1].data
    assert alone.data.metrics["test/best/loss"] == pytest.approx(same.metrics["test/best/loss"], rel=1e-6)
    assert alone.data.tags["runner.manifest"] == same.tags["runner.manifest"]


def test_memory_is_shared_and_no_feature_is_read_twice(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    read = ShardStore.read

    def counting(self: ShardStore, keys: Any) -> Any:
        rows.append(len(keys))
        return read(self, keys)

    words = [*small, *FOLDS, "--cache", str(tmp_path / "own")]
    assert run_main(lambda: train.main([*words, "--split.fold", "0"])) == 0
    monkeypatch.setattr(ShardStore, "read", counting)
    assert run_main(lambda: train.main(words)) == 0
    assert sum(rows) == 36
    *_, parent, first, second, third = runs_of(client_of(tmp_path))
    assert parent.data.params["repeat"] == "1"
    assert sum(each.data.metrics["system/features/misses"] for each in (first, second, third)) == 0


@pytest.mark.slow
def test_validation_folds_are_said_to_be_optimistic(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(lambda: train.main([*small, *FOLDS, "--split.fold_as", "val"])) == 0
    client = client_of(tmp_path)
    parent, *children = runs_of(client)
    rows = table_of(client, parent)
    tested = [{row["path"] for row in table_of(client, child)} for child in children]
    assert tested[0] == tested[1] == tested[2], "the same test images"
    assert len({row["path"] for row in rows}) == len(rows) == 36 - len(tested[0])
    assert not {row["path"] for row in rows} & tested[0]
    top1 = [each.data.metrics["val/best/top1"] for each in children]
    sizes = [sum(row["fold"] == str(fold) for row in rows) for fold in range(3)]
    mean = sum(value * size for value, size in zip(top1, sizes, strict=True)) / sum(sizes)
    assert parent.data.metrics["out_of_fold/top1"] == pytest.approx(mean)
    assert parent.data.tags["runner.fold"] == "val"
    assert "so these scores are optimistic" in capfd.readouterr().out


@pytest.mark.slow
def test_other_divisions_are_in_the_table_and_the_first_is_pooled(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*small, *FOLDS, "--train.epochs", "1", "--repeat", "2", "--repeat-over", "split"]
    assert run_main(lambda: train.main(words)) == 0
    client = client_of(tmp_path)
    parent, *_ = runs_of(client)
    rows = table_of(client, parent)
    assert Counter(row["split"] for row in rows) == {"0": 36, "1": 36}
    first = [row for row in rows if row["split"] == "0"]
    assert parent.data.metrics["out_of_fold/top1"] == pytest.approx(
        sum(row["true_rank"] == "1" for row in first) / 36
    )
    path = client.download_artifacts(parent.info.run_id, "predictions.csv")
    assert len(read_predictions(Path(path).read_bytes().decode())) == 36
    assert "They are of the first division into folds." in capfd.readouterr().out


def test_an_interrupted_one_goes_on_where_it_was(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, trained, train_one = [*small, *FOLDS], [], single_run.train

    def stop_in_second(*args: Any) -> Any:
        trained.append(args[0].split.fold)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_one(*args)

    monkeypatch.setattr(single_run, "train", stop_in_second)
    assert run_main(lambda: train.main(words)) == 130
    assert run_main(lambda: train.main([*words, "--resume", "auto"])) == 0
    assert trained == [0, 1, 1, 2]
    assert "is finished: run" in capfd.readouterr().out
    client = client_of(tmp_path)
    (parent,) = [run for run in runs_of(client) if "mlflow.parentRunId" not in run.data.tags]
    assert len({row["path"] for row in table_of(client, parent)}) == 36


@pytest.mark.slow
def test_statistics_of_each_fold_are_warned_of_once(
    small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "--model.normalize", "statistics", "--split.folds", "2", "--train.epochs", "1"]
    assert run_main(lambda: train.main([*words, "--augment.views", "none"])) == 0
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("each fold has the statistics of its own") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split.folds", "13"], "class 'blue' has 12"),
        (["--split.folds", "2", "--resume", "00000000", "--branch"], "no interrupted run"),
    ],
)
def test_what_cannot_work_is_refused(
    small: list[str], capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run_main(lambda: train.main([*small, *words])) == 2
    assert message in one_sentence(capfd.readouterr().err)


def test_a_dry_run_says_what_all_folds_would_take(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*small, *FOLDS, "--repeat", "2", "--dry-run", "--cache", str(tmp_path / "empty")]
    assert run_main(lambda: train.main(words)) == 0
    printed = capfd.readouterr().out
    assert "6 trainings: 3 folds × 2 training seeds" in printed
    assert "36 images and views to compute" in printed
