"""A published protocol by the command line: several splits, their summary, and a reproduction."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from commands import client_of, in_process, one_sentence, runs_of
from helpers import Place
from pictures import draw

SIZES = {"blue": 31, "green": 84, "red": 45}
WORDS = (
    *("--model.head", "linear", "--augment.views", "none", "--train.solver", "ridge"),
    *("--train.penalty_by", "leave_one_out", "--train.penalty", "1"),
    *("--model.normalize", "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"),
    *("--split.protocol", "caltech101-30"),
)
SETTINGS = {"by": "count", "train": "30.0", "val": "rest", "test": "50.0", "protocol": "caltech101-30"}


@pytest.fixture
def words(place: Place, tmp_path: Path) -> list[str]:
    """The small experiment on the sizes above, in the protocol."""
    root = tmp_path / "pictures"
    for label, size in SIZES.items():
        (root / label).mkdir(parents=True)
        for number in range(size):
            draw(label, number).save(root / label / f"{number:02}.png")
    return [*place(tmp_path), "--data.root", str(root), *WORDS]


def test_two_splits_by_protocol(words: list[str], tmp_path: Path) -> None:
    outcome = in_process("train", *words, "--repeat", "2", "--repeat-over", "split")
    assert outcome.returncode == 0, outcome.stderr
    assert "no validation images for 2 of 3 classes (blue, red)" in outcome.stdout
    client = client_of(tmp_path)
    parent, *children = runs_of(client)
    assert {"test/best/balanced_accuracy", "test/best/balanced_accuracy_sd"} <= parent.data.metrics.keys()
    splits = []
    for run in children:
        params = {name: run.data.params[f"split.{name}"] for name in SETTINGS}
        assert (params, run.data.params["train.refit"]) == (SETTINGS, "False")
        text = Path(client.download_artifacts(run.info.run_id, "manifest.csv")).read_text()
        rows = [(row["class"], row["split"], row["path"]) for row in csv.DictReader(text.splitlines())]
        assert Counter((label, split) for label, split, _ in rows) == {
            **{(label, "train"): 30 for label in SIZES},
            ("blue", "test"): 1,
            ("green", "test"): 50,
            ("red", "test"): 15,
            ("green", "val"): 4,
        }
        splits.append(set(rows))
    assert splits[0] != splits[1]
    tracking = ["--tracking.root", str(tmp_path / "mlruns")]
    for verb in ("reproduce", "evaluate"):
        outcome = in_process(verb, children[1].info.run_id, *tracking)
        assert outcome.returncode == 0, (verb, outcome.stderr)


def test_a_class_that_is_too_small_is_refused_before_anything_is_computed(
    words: list[str], tmp_path: Path
) -> None:
    for number in range(12):
        (tmp_path / "pictures" / "red" / f"{number:02}.png").unlink()
        (tmp_path / "pictures" / "red" / f"{44 - number:02}.png").unlink()
    outcome = in_process("train", *words)
    assert outcome.returncode == 2
    assert "class 'red' has 21 and 0; add images" in one_sentence(outcome.stderr)
    assert runs_of(client_of(tmp_path)) == []
