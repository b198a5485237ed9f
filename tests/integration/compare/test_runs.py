"""`runner compare` of two or more runs, and what it writes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compared_runs import IMAGES, compared_run

from runner.cli import compare
from runner.evaluation.comparison import runs as comparison_runs
from runner.evaluation.significance import exact_p, holm_correction, wald_interval
from runner.tracking.mlflow_server import TrackingServer

Add = Callable[..., str]
Command = Callable[..., tuple[int, str, str]]
FILES = ["comparison.html", "curves.png", "metrics.csv", "settings.csv"]

pytestmark = pytest.mark.usefixtures("no_tracking_uri")


def artifacts(client: Any, run: str, folder: str) -> list[str]:
    return sorted(Path(each.path).name for each in client.list_artifacts(run, folder))


# Runs


def test_two_runs(store: tuple[TrackingServer, Any], add: Add, command: Command, tmp_path: Path) -> None:
    first = add("one", {"optim.lr": 0.001}, {"test/best/top1": 0.75}, correct=set(range(30)))
    second = add("two", {"optim.lr": 0.003}, {"test/best/top1": 0.95}, correct=set(range(2, 40)))
    status, out, errors = command("one", second[:8], drawn=True)
    assert (status, errors) == (0, "")
    assert re.search(r"optim\.lr\W+0\.001\W+0\.003", out)
    assert re.search(r"test/best/top1\W+0\.7500\W+\* 0\.9500\W+\+0\.2000", out)
    assert "2 of 3 settings are the same" in out
    assert f"{second[:8]} is significantly better than {first[:8]}: +20.00 pt test top-1" in " ".join(
        out.split()
    )
    assert f"{exact_p(2, 10):.2g}" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    folder = f"comparisons/{second[:8]}"
    assert artifacts(store[1], first, folder) == FILES
    command("one", "two")
    assert artifacts(store[1], first, folder) == FILES, "the second comparison replaces the first"
    with (tmp_path / "out" / "settings.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["setting", "differs", first, second]
    assert ["optim.lr", "yes", "0.001", "0.003"] in rows
    assert ["train.epochs", "no", "5", "5"] in rows
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        assert ["test/best/top1", "0.75", "0.95"] in list(csv.reader(file))


def test_the_default_folder_is_under_the_tracking_root(
    store: tuple[TrackingServer, Any], add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = add("under"), add("root")
    assert compare.main([first, second, "--tracking.root", str(store[0].root)]) == 0
    folder = store[0].root / "comparisons" / f"{first[:8]}-{second[:8]}"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert str(folder) in capsys.readouterr().out.replace("\n", "")


def test_json_is_alone_on_standard_output(add: Add, command: Command) -> None:
    first = add("plain", metrics={"test/best/loss": 0.5}, correct={0, 1, 2, 3})
    second = add("json", {"seed.train": 1}, {"test/best/loss": 0.25}, correct={3, *range(10, 20)})
    status, out, errors = command(first, second, "--json")
    assert status == 0
    result = json.loads(out)
    assert "comparison.html" in errors
    assert [each["run"] for each in result["runs"]] == [first, second]
    assert result["settings"] == {"differing": {"seed.train": {first: "0", second: "1"}}, "same": 2}
    assert result["metrics"]["test/best/loss"] == {"values": {first: 0.5, second: 0.25}, "best": [second]}
    (pair,) = result["paired"]
    assert (pair["run"], pair["reference"]) == (second, first)
    assert (pair["only_reference"], pair["only_run"], pair["images"], pair["left_out"]) == (3, 10, IMAGES, 0)
    assert pair["p"] == pair["p_holm"] == pytest.approx(exact_p(3, 10))
    assert pair["difference"] == pytest.approx(7 / 40)
    assert pair["interval"] == pytest.approx(wald_interval(3, 10, 40))
    assert not pair["significant"]
    assert sum(each["only_run"] - each["only_reference"] for each in pair["classes"]) == 7


def test_p_values_of_three_runs_are_corrected(add: Add, command: Command) -> None:
    add("h1", correct=set())
    add("h2", correct=set(range(6)))
    add("h3", correct=set(range(9)))
    status, out, _ = command("h1", "h2", "h3", "--json")
    assert status == 0
    uncorrected = [exact_p(0, 6), exact_p(0, 9)]
    pairs = json.loads(out)["paired"]
    assert [each["p"] for each in pairs] == pytest.approx(uncorrected)
    assert [each["p_holm"] for each in pairs] == pytest.approx(holm_correction(uncorrected))
    assert [each["significant"] for each in pairs] == [True, True]


def test_only_common_test_images_are_compared(add: Add, command: Command) -> None:
    add("left", correct={5, 6}, images=range(30))
    add("right", correct={6, 7}, images=range(5, 36))
    status, out, _ = command("left", "right")
    text = " ".join(out.split())
    assert status == 0
    assert "25 images of both" in text
    assert "11 test images of only one of" in text


@pytest.mark.parametrize(
    ("images", "correct", "problem"),
    [(range(50, 60), {1}, "no test image in common"), (range(0), None, "has no predictions")],
)
def test_a_problem_of_a_test_is_reported(
    add: Add, command: Command, images: range, correct: set[int] | None, problem: str
) -> None:
    first, second = add("with", correct={1}), add("without", correct=correct, images=images)
    status, out, errors = command(first, second)
    assert (status, errors) == (0, "")
    assert problem in out
    status, out, _ = command(first, second, "--json")
    assert problem in json.loads(out)["paired"][0]["problem"]


def test_a_run_without_predictions_is_named_in_its_row(add: Add, command: Command) -> None:
    add("p1", correct={1})
    lacking = add("p2")
    add("p3", correct={2})
    _, out, _ = command("p1", "p2", "p3")
    assert re.search(rf"{lacking[:8]}.*no predictions", out)
    assert f"not tested: {lacking[:8]}" in " ".join(out.split())


def test_damaged_predictions_do_not_stop_the_comparison(
    store: tuple[TrackingServer, Any], add: Add, command: Command
) -> None:
    first, second = add("whole", correct={1}), add("damaged")
    store[1].log_text(second, "nonsense", "predictions.csv")
    status, out, _ = command(first, second)
    assert status == 0
    assert f"{second[:8]} has damaged predictions" in out


def test_identical_settings_are_noted(add: Add, command: Command, tmp_path: Path) -> None:
    add("same 1"), add("same 2")
    _, out, _ = command("same 1", "same 2")
    assert "All 3 settings of the runs are the same." in out
    assert "settings of the runs are the same" in (tmp_path / "out" / "comparison.html").read_text()


def test_notes_name_unfinished_runs_and_different_images(add: Add, command: Command) -> None:
    add("known 1", tags={"runner.manifest": "a"})
    failed = add("known 2", tags={"runner.manifest": "b"}, status="FAILED", epochs=0)
    _, out, _ = command("known 1", "known 2")
    assert f"not finished: {failed[:8]} (failed)" in out
    assert "the runs differ in images or split" in out
    assert "pretrained weights" not in out
    for name in "ab":
        add(f"weights {name}", tags={"runner.manifest": "a", "runner.weights": name})
    _, out, _ = command("weights a", "weights b")
    assert "the runs differ in the content of their pretrained weights" in out


def test_cross_validations_on_validation_folds(add: Add, command: Command, tmp_path: Path) -> None:
    folds: dict[str, object] = {"split.folds": 3, "split.fold": None, "repeat_over": "seed"}
    given = {"runner.fold": "val"}  # as the data say which images are for test
    metrics = {"out_of_fold/top5_low": 1.0, "out_of_fold/top1": 0.9}
    add("folds", {**folds, "repeat": 1, "split.fold_as": "val"}, metrics, correct={1})
    seeds = add("seeds", {**folds, "repeat": 10, "split.fold_as": "test"}, metrics, correct={2}, tags=given)
    _, out, _ = command("folds", "seeds")
    for text in (out, (tmp_path / "out" / "comparison.html").read_text()):
        words = " ".join(text.split())
        assert "Same validation-fold images" in words
        assert "are on validation folds: the best epochs were chosen on the same images" in words
        assert "test images" not in words
        assert "test top-1" not in words
        assert f"{seeds[:8]} has the mean probabilities over 10 training seeds" in words
        assert "out_of_fold/top1" in words
        assert "top5" not in words
    add("fold 1", {**folds, "split.fold": 1}, correct={1})
    add("fold 2", {**folds, "split.fold": 2}, correct={2})
    assert "these two trained models" in " ".join(command("fold 1", "fold 2")[1].split())


def test_names_on_the_page_are_escaped(add: Add, command: Command, tmp_path: Path) -> None:
    odd = '<b>$x$</b> & "quoted" [red]'
    first, second = (
        add(odd, {"optim.groups": "<script>alert(1)</script>"}, correct={1}),
        add("even", correct={2}),
    )
    status, out, _ = command(first, second, drawn=True)
    assert status == 0
    assert odd in out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "&lt;b&gt;$x$&lt;/b&gt; &amp;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "data:image/png;base64," in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_more_than_eight_runs(add: Add, command: Command, tmp_path: Path) -> None:
    runs = [add(f"many {number}", {"seed.train": number}, epochs=1 + number) for number in range(11)]
    status, out, _ = command(*runs)
    assert status == 0
    assert all(run[:8] in out for run in runs)
    assert "the plot shows the first 8 of 11 runs" in out
    assert all(run[:8] in (tmp_path / "out" / "comparison.html").read_text() for run in runs)


def test_names_of_folders_are_short_and_different() -> None:
    runs = [compared_run(f"{number:032x}"[::-1]) for number in range(60)]
    names = {compare.folder_name(runs), compare.folder_name(runs[:59]), compare.folder_name(runs[:8])}
    assert len(names) == 3
    assert max(map(len, names)) < 120


def test_a_narrow_terminal_gets_tables_in_pieces(
    add: Add, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = property(lambda self: 60, lambda self, width: None)
    monkeypatch.setattr("runner.utils.console.Console.width", narrow)
    runs = [add(f"narrow {number}", {"seed.train": number}) for number in range(6)]
    _, out, _ = command(*runs)
    assert "…" not in out.replace(runs[0], "")
    assert out.count("seed.train") == 2


def test_a_point_that_was_logged_twice_is_one_point(store: tuple[TrackingServer, Any], add: Add) -> None:
    run = add("again", epochs=2)
    store[1].log_metric(run, "val/loss", 7.0, timestamp=5000, step=2)
    assert comparison_runs.read_curve(store[1], run, "val/loss") == [(1, 2.0), (2, 7.0)]


# Refusals and failures
