"""Predictions of a split, and predictions.csv."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_predictions import ODD_NAMES, few_predictions, predictions_of

from runner.data.files import FolderFiles
from runner.data.images import Entry, Images
from runner.data.manifest import Manifest
from runner.evaluation.metrics import scores_from_logits
from runner.evaluation.predictions import COLUMNS, PredictionRow, Predictions, read_predictions
from runner.utils.errors import UserError

HEADER = ",".join(COLUMNS) + "\r\n"
FORMER_HEADER = HEADER.replace("true_rank", "rank")


class TestPredictions:
    @given(few_predictions())
    def test_classes_and_ranks_are_those_of_the_logits(self, case: Predictions) -> None:
        """Computed again with numpy, image by image."""
        for index, (row, label) in enumerate(zip(case.logits, case.labels, strict=True)):
            assert case.finite[index] == np.isfinite(row).all()
            if case.finite[index]:
                order = sorted(range(len(row)), key=lambda place: (-row[place], place))
                assert case.ranks[index] == order.index(label)
                assert case.predicted[index] == row.argmax()
            else:
                assert case.ranks[index] == max(len(row), 5), "in no top k"
            assert case.correct[index] == (case.ranks[index] == 0)

    @given(few_predictions())
    def test_scores_are_those_of_the_logits(self, case: Predictions) -> None:
        expected = scores_from_logits(torch.tensor(case.logits), case.labels.tolist())
        assert case.scores.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True, abs=0)
        assert case.scores["top1"] == case.correct.mean()

    @given(few_predictions())
    def test_probabilities_are_those_of_torch(self, case: Predictions) -> None:
        expected = torch.softmax(torch.tensor(case.logits), dim=1).numpy()
        assert case.probabilities[case.finite] == pytest.approx(expected[case.finite], abs=1e-12)
        assert np.isnan(case.probabilities[~case.finite]).all()

    def test_known_numbers(self) -> None:
        case = predictions_of([[0, math.log(3)], [1000, 1000], [-1e4, 0]], [0, 1, 1])
        assert case.probabilities == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5], [0, 1]]))
        assert case.confidence.tolist() == pytest.approx([0.75, 0.5, 1])
        assert case.true_probability.tolist() == pytest.approx([0.25, 0.5, 1])
        assert case.predicted.tolist() == [1, 0, 1]
        assert case.ranks.tolist() == [1, 1, 0]
        assert case.correct.tolist() == [False, False, True]

    def test_logits_of_a_split_come_with_its_images(self) -> None:
        entries = Images.of(
            Entry(f"{label}/{split}.png", label, split, 1, f"{number}{label}" * 20)
            for label in "ab"
            for number, split in enumerate(("test", "train"))
        )
        manifest = Manifest(FolderFiles(Path("/")), entries)
        case = Predictions.of_split(manifest, "test", torch.tensor([[1.0, 0], [2, 0]]))
        assert case.paths == ("a/test.png", "b/test.png")
        assert case.digests == ("0a" * 20, "0b" * 20)
        assert (case.labels.tolist(), case.classes) == ([0, 1], ("a", "b"))
        assert case.logits.tolist() == [[1, 0], [2, 0]]

    @pytest.mark.parametrize("labels", [[], [0], [0, 2], [0, -1], [0, 1, 1]])
    def test_parts_that_do_not_fit_are_an_error(self, labels: list[int]) -> None:
        with pytest.raises(ValueError, match="classes"):
            Predictions(("a", "b"), ("1", "2"), np.array(labels, np.int64), np.zeros((2, 2)), ("x", "y"))

    def test_the_table_is_read_without_torch(self) -> None:
        code = (
            "import sys, runner.evaluation.predictions, runner.evaluation.statistics;"
            " sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestTable:
    def test_rows(self) -> None:
        case = predictions_of([[0, math.log(3)], [0, math.log(4)]], [0, 1], ("no", "yes"))
        header, first, second, end = case.to_csv().split("\r\n")
        assert header == "path,digest,true,predicted,probability,true_probability,true_rank"
        assert first == f"0000.png,{0:064x},no,yes,0.750000,0.250000,2"
        assert second == f"0001.png,{1:064x},yes,yes,0.800000,0.800000,1"
        assert end == ""

    def test_odd_names_survive(self, tmp_path: Path) -> None:
        case = Predictions(
            tuple(f"{name}/{name}.png" for name in ODD_NAMES),
            tuple(map(str, range(len(ODD_NAMES)))),
            np.arange(len(ODD_NAMES)),
            np.roll(np.eye(len(ODD_NAMES)), 1, axis=1),
            ODD_NAMES,
        )
        file = tmp_path / "predictions.csv"
        file.write_bytes(case.to_csv().encode())
        rows = read_predictions(file.read_bytes().decode())
        assert [row.path for row in rows] == list(case.paths)
        assert [row.true for row in rows] == list(ODD_NAMES)
        assert [row.predicted for row in rows] == [*ODD_NAMES[1:], ODD_NAMES[0]]
        assert [row.digest for row in rows] == list(case.digests)

    @given(few_predictions(), st.text(st.characters(exclude_characters="\0"), max_size=8))
    def test_what_was_written_is_read(self, case: Predictions, name: str) -> None:
        named = Predictions(
            tuple(name + path for path in case.paths), case.digests, case.labels, case.logits, case.classes
        )
        for index, row in enumerate(read_predictions(named.to_csv())):
            assert (row.path, row.digest) == (named.paths[index], named.digests[index])
            assert row.true == named.classes[named.labels[index]]
            assert row.predicted == named.classes[named.predicted[index]]
            assert row.probability == pytest.approx(named.confidence[index], abs=1e-6, nan_ok=True)
            assert (row.rank, row.correct) == (named.ranks[index] + 1, named.correct[index])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "path,class,split,size,digest\r\n",
            HEADER + "a,b,c\r\n",
            HEADER + "a,b,c,d,much,0.1,1\r\n",
            HEADER + "a,b,c,d,0.9,0.1,first\r\n",
            HEADER + "a,b,c,d,1.5,0.1,1\r\n",
            HEADER + "a,b,c,d,0.5,0.1,0\r\n",
            FORMER_HEADER + "a,b,c,d,0.5,0.1,-1\r\n",
            HEADER + '"a,b,c,d,0.5,0.1,1\r\n',
        ],
    )
    def test_another_table_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match=r"^The table of predictions was not written by the runner\.$"):
            read_predictions(text)

    def test_few_rows(self) -> None:
        assert read_predictions(HEADER) == []
        row = PredictionRow("a", "b", "c", "d", 0.5, 2)
        assert read_predictions(HEADER + "a,b,c,d,0.5,0.1,2\r\n") == [row]
        assert read_predictions(FORMER_HEADER + "a,b,c,d,0.5,0.1,1\r\n") == [row], "its ranks began at 0"
