"""`runner compare`: what differs between runs, whether it is more than luck, and the page that says so."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas

from runner.cli import compare
from runner.evaluation.comparison import page as compare_figures
from runner.evaluation.comparison import runs as compare_runs
from runner.evaluation.comparison.tables import match_rows, number, settings_rows
from runner.evaluation.comparison.values import Seen, differing, figures, twins
from runner.evaluation.predictions import COLUMNS
from runner.evaluation.significance import exact_p, holm, wald
from runner.tracking.mlflow_server import Server, server
from runner.utils.errors import UserError, guarded

Add = Callable[..., str]
IMAGES = 40
FILES = ["comparison.html", "curves.png", "metrics.csv", "settings.csv"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    """An embedded store and its client; one for all tests here, as creating its database takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        place = server(str(tmp_path_factory.mktemp("store") / "mlruns"))
        yield place, place.connect()


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself sets the variable when it is told its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def table(right: set[int], images: range = range(IMAGES), classes: int = 4) -> str:
    """A run's predictions.csv: which of the images it got right."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for each in images:
        label = f"class {each % classes}"
        said = label if each in right else "other"
        writer.writerow(
            [f"{label}/{each}.png", f"{each:040x}", label, said, 0.9, 0.9, 0 if each in right else 3]
        )
    return text.getvalue()


@pytest.fixture
def add(store: tuple[Server, Any]) -> Add:
    """`add(name, …)`: the id of a finished run with curves of some epochs, settings and predictions."""
    from mlflow.entities import Metric, Param

    place, client = store
    experiment = place.experiment_id(client, "small")

    def make(
        name: str,
        settings: dict[str, object] | None = None,
        metrics: dict[str, float] | None = None,
        right: set[int] | None = None,
        images: range = range(IMAGES),
        epochs: int = 5,
        tags: dict[str, str] | None = None,
        status: str = "FINISHED",
    ) -> str:
        run: str = client.create_run(experiment, run_name=name, tags=tags or {}).info.run_id
        points = [
            Metric(curve, value, 1000 + epoch, epoch)
            for epoch in range(1, epochs + 1)
            for curve, value in (("val/top1", 1 - 1 / (epoch + 1)), ("val/loss", 2 / epoch), ("lr", 0.1))
        ]
        points += [Metric(curve, value, 2000, 0) for curve, value in (metrics or {}).items()]
        params = {"optim.lr": 0.001, "train.epochs": 5, "seed.train": 0, **(settings or {})}
        client.log_batch(run, points, [Param(key, str(value)) for key, value in params.items()])
        if right is not None:
            client.log_text(run, table(right, images), "predictions.csv")
        client.set_terminated(run, status)
        return run

    return make


@pytest.fixture
def command(
    store: tuple[Server, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:
    """`command(words…)`: exit status, standard output and standard error of `runner compare` into `tmp_path`/out.

    The picture is an empty file, unless `drawn` is true: drawing it takes most of the time.
    """
    draw = compare.draw

    def call(*words: str, drawn: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(compare, "draw", draw if drawn else lambda *told: told[-1].touch())
        given = ["--tracking.root", str(store[0].root), *words]
        if "--out" not in words:
            given += ["--out", str(tmp_path / "out")]
        status = guarded(lambda: compare.main(given))
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def refused(outcome: tuple[int, str, str]) -> str:
    """The one sentence of a command that ended with status 2."""
    status, _, errors = outcome
    assert status == 2, errors
    assert "Traceback" not in errors
    (said,) = [line for line in errors.splitlines() if line.startswith("runner: ")]
    return said


def artifacts(client: Any, run: str, folder: str) -> list[str]:
    return sorted(Path(each.path).name for each in client.list_artifacts(run, folder))


def seen(run_id: str, **changes: Any) -> Seen:
    fields = {
        "name": run_id,
        "experiment": "small",
        "status": "FINISHED",
        "began": 1e9,
        "seconds": 75.0,
        "manifest": "",
        "settings": {},
        "metrics": {},
        "curves": {},
    }
    return Seen(run_id=run_id, **{**fields, **changes})


# Settings and metrics


def test_settings_that_are_the_same_are_left_out() -> None:
    runs = [seen("a", settings={"x": "1", "y": "2"}), seen("b", settings={"x": "1", "y": "3", "z": "4"})]
    assert differing(runs) == {"y": ["2", "3"], "z": [None, "4"]}
    assert settings_rows(runs)[1] == [("y", "2", "3"), ("z", "–", "4")]
    assert compare_figures.same_settings(runs) == "1 of 3 settings are the same and left out."


def test_numbers_are_rounded_only_where_they_stay_apart() -> None:
    runs = [
        seen("a", settings={"x": "0.30000000000000004", "y": "0.10000000001", "z": "a text that is long"}),
        seen("b", settings={"x": "0.1", "y": "0.10000000002", "z": "b"}),
    ]
    assert settings_rows(runs)[1] == [
        ("x", "0.3", "0.1"),
        ("y", "0.10000000001", "0.10000000002"),
        ("z", "a text that is long", "b"),
    ]


def test_twins_are_found() -> None:
    runs = [seen("a", settings={"x": "1"}), seen("b", settings={"x": "2"}), seen("c", settings={"x": "1"})]
    assert [[run.run_id for run in group] for group in twins(runs)] == [["a", "c"]]
    assert twins(runs[:1] + runs[2:]) == []


def test_the_best_of_a_row_knows_its_direction() -> None:
    values = {"val/loss": (2.0, 1.0), "test/best/top1": (0.9, 0.8), "lr": (1.0, 2.0), "val/top5": (1.0, 1.0)}
    runs = [
        seen(name, metrics={key: each[place] for key, each in values.items()})
        for place, name in enumerate("ab")
    ]
    best = {each.name: sorted(each.best) for each in figures(runs)}
    assert best == {"test/best/top1": [0], "val/loss": [1], "val/top5": [], "lr": []}
    assert next(iter(best)) == "test/best/top1"


@pytest.mark.parametrize(("side", "place"), [("rising", 1), ("falling", 0)])
def test_the_objective_of_a_study_has_the_study_s_direction(side: str, place: int) -> None:
    runs = [seen("a", metrics={"objective": 0.1}), seen("b", metrics={"objective": 0.2}), seen("c")]
    (row,) = figures(runs, **{side: ("objective",)})
    assert (row.best, row.values) == ({place}, (0.1, 0.2, None))


def test_metrics_that_are_no_numbers_do_no_harm() -> None:
    runs = [seen("a", metrics={"val/loss": math.nan}), seen("b", metrics={"val/loss": math.inf})]
    (row,) = figures(runs)
    assert row.best == frozenset()
    assert [number(row.name, value) for value in (*row.values, None)] == ["nan", "inf", "–"]


# The command


def test_two_runs(store: tuple[Server, Any], add: Add, command: Callable[..., Any], tmp_path: Path) -> None:
    first = add("one", {"optim.lr": 0.001}, {"test/best/top1": 0.75}, right=set(range(30)))
    second = add("two", {"optim.lr": 0.003}, {"test/best/top1": 0.95}, right=set(range(2, 40)))
    status, out, errors = command("one", second[:8], drawn=True)
    assert (status, errors) == (0, "")
    assert re.search(r"optim\.lr\W+0\.001\W+0\.003", out)
    assert re.search(r"test/best/top1\W+0\.7500\W+\* 0\.9500\W+\+0\.2000", out)
    assert "2 of 3 settings are the same" in out
    assert f"{second[:8]} has +20.00 points of test top-1 over {first[:8]} on the 40 images of both" in out
    assert f"{exact_p(2, 10):.2g}" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    place = f"comparisons/{second[:8]}"
    assert artifacts(store[1], first, place) == FILES
    command("one", "two")
    assert artifacts(store[1], first, place) == FILES
    with (tmp_path / "out" / "settings.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["setting", "differs", first, second]
    assert ["optim.lr", "yes", "0.001", "0.003"] in rows
    assert ["train.epochs", "no", "5", "5"] in rows
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        assert ["test/best/top1", "0.75", "0.95"] in list(csv.reader(file))


def test_without_out_it_goes_under_the_tracking_root(
    store: tuple[Server, Any], add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = add("under"), add("root")
    assert compare.main([first, second, "--tracking.root", str(store[0].root)]) == 0
    folder = store[0].root / "comparisons" / f"{first[:8]}-{second[:8]}"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert str(folder) in capsys.readouterr().out


def test_json_stands_alone_on_standard_output(add: Add, command: Callable[..., Any]) -> None:
    first = add("plain", metrics={"test/best/loss": 0.5}, right={0, 1, 2, 3})
    second = add("json", {"seed.train": 1}, {"test/best/loss": 0.25}, right={3, *range(10, 20)})
    status, out, errors = command(first, second, "--json")
    assert status == 0
    said = json.loads(out)
    assert "comparison.html" in errors
    assert [each["run"] for each in said["runs"]] == [first, second]
    assert said["settings"] == {"differing": {"seed.train": {first: "0", second: "1"}}, "same": 2}
    assert said["metrics"]["test/best/loss"] == {"values": {first: 0.5, second: 0.25}, "best": [second]}
    (pair,) = said["paired"]
    assert (pair["only_first"], pair["only_it"], pair["images"], pair["left_out"]) == (3, 10, IMAGES, 0)
    assert pair["p"] == pair["p_holm"] == pytest.approx(exact_p(3, 10))
    assert pair["difference"] == pytest.approx(7 / 40)
    assert pair["interval"] == pytest.approx(wald(3, 10, 40))
    assert not pair["certain"]
    assert sum(each["only_it"] - each["only_first"] for each in pair["classes"]) == 7


def test_three_runs_are_corrected_after_holm(add: Add, command: Callable[..., Any]) -> None:
    add("h1", right=set())
    add("h2", right=set(range(6)))
    add("h3", right=set(range(9)))
    status, out, _ = command("h1", "h2", "h3", "--json")
    assert status == 0
    raw = [exact_p(0, 6), exact_p(0, 9)]
    pairs = json.loads(out)["paired"]
    assert [each["p"] for each in pairs] == pytest.approx(raw)
    assert [each["p_holm"] for each in pairs] == pytest.approx(holm(raw))
    assert [each["certain"] for each in pairs] == [True, True]


def test_of_different_test_sets_the_common_images_count(add: Add, command: Callable[..., Any]) -> None:
    add("left", right={5, 6}, images=range(30))
    add("right", right={6, 7}, images=range(5, 36))
    status, out, _ = command("left", "right")
    assert status == 0
    assert "on the 25 images of both" in out
    assert "11 test images that only one of" in out


@pytest.mark.parametrize(
    ("images", "right", "said"),
    [(range(50, 60), {1}, "no test image in common"), (range(0), None, "has no predictions")],
)
def test_what_cannot_be_tested_says_so(
    add: Add, command: Callable[..., Any], images: range, right: set[int] | None, said: str
) -> None:
    first, second = add("with", right={1}), add("without", right=right, images=images)
    status, out, errors = command(first, second)
    assert (status, errors) == (0, "")
    assert said in out
    status, out, _ = command(first, second, "--json")
    assert said in json.loads(out)["paired"][0]["fault"]


def test_one_of_several_without_predictions_is_named_in_its_row(
    add: Add, command: Callable[..., Any]
) -> None:
    add("p1", right={1})
    lacking = add("p2")
    add("p3", right={2})
    _, out, _ = command("p1", "p2", "p3")
    assert re.search(rf"{lacking[:8]}.*no predictions", out)
    assert f"not tested: {lacking[:8]}" in out


def test_damaged_predictions_are_no_failure(
    store: tuple[Server, Any], add: Add, command: Callable[..., Any]
) -> None:
    first, second = add("whole", right={1}), add("damaged")
    store[1].log_text(second, "nonsense", "predictions.csv")
    status, out, _ = command(first, second)
    assert status == 0
    assert f"{second[:8]} has damaged predictions" in out


def test_runs_of_identical_settings_say_so(add: Add, command: Callable[..., Any], tmp_path: Path) -> None:
    add("same 1"), add("same 2")
    _, out, _ = command("same 1", "same 2")
    assert "The runs have identical settings, all 3." in out
    assert "identical settings" in (tmp_path / "out" / "comparison.html").read_text()


def test_what_a_reader_should_know_is_noted(add: Add, command: Callable[..., Any]) -> None:
    add("known 1", tags={"runner.manifest": "a"})
    failed = add("known 2", tags={"runner.manifest": "b"}, status="FAILED", epochs=0)
    _, out, _ = command("known 1", "known 2")
    assert f"note: not finished: {failed[:8]} (failed)" in out
    assert "note: the runs have not all the same images and split" in out


def test_the_page_is_whole_and_escaped(add: Add, command: Callable[..., Any], tmp_path: Path) -> None:
    odd = '<b>$x$</b> & "quoted" [red]'
    first, second = add(odd, {"optim.groups": "<script>alert(1)</script>"}, right={1}), add("even", right={2})
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


def test_more_than_eight_runs(
    add: Add, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Canvas] = []
    save = Canvas.savefig
    monkeypatch.setattr(
        Canvas, "savefig", lambda *words, **options: (drawn.append(words[0]), save(*words, **options))
    )
    runs = [add(f"many {place}", {"seed.train": place}, epochs=1 + place) for place in range(11)]
    status, out, _ = command(*runs, drawn=True)
    assert status == 0
    assert all(run[:8] in out for run in runs)
    assert "the picture shows the first 8 of 11 runs" in out
    (figure,) = drawn
    assert [len(axes.lines) for axes in figure.axes] == [8, 8]
    assert "the first 8 of 11 runs" in figure.get_suptitle()
    assert all(run[:8] in (tmp_path / "out" / "comparison.html").read_text() for run in runs)


def test_a_folder_s_name_stays_short_and_apart() -> None:
    runs = [seen(f"{place:032x}"[::-1]) for place in range(60)]
    names = {compare.joined(runs), compare.joined(runs[:59]), compare.joined(runs[:8])}
    assert len(names) == 3
    assert max(map(len, names)) < 120


def test_a_narrow_terminal_gets_tables_in_pieces(
    add: Add, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.utils.console.Console.width", 60)
    runs = [add(f"narrow {place}", {"seed.train": place}) for place in range(6)]
    _, out, _ = command(*runs)
    assert "…" not in out.replace(runs[0], "")
    assert out.count("seed.train") == 2


# A picture


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Canvas]:
    """The figure that is drawn of some runs."""
    drawn: list[Canvas] = []
    save = Canvas.savefig
    monkeypatch.setattr(
        Canvas, "savefig", lambda *words, **options: (drawn.append(words[0]), save(*words, **options))
    )

    def draw(*runs: Seen) -> Canvas:
        compare_figures.draw(runs, "$title$", tmp_path / "curves.png")
        return drawn[-1]

    return draw


def test_nothing_of_a_picture_overlaps(picture: Callable[..., Canvas]) -> None:
    curves = {"val/top1": [(1, 0.5), (3, 0.7)], "val/loss": [(1, 1.0)]}
    figure = picture(*(seen(f"{place:08}", name=f"{'long ' * 30}$x$", curves=curves) for place in range(8)))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [figure.legends[0].get_window_extent(renderer), *(axes.get_tightbbox() for axes in figure.axes)]
    for place, one in enumerate(boxes):
        assert one.x0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_a_run_without_curves_is_named(picture: Callable[..., Canvas]) -> None:
    figure = picture(seen("a"), seen("b", curves={}))
    assert all("(no curve)" in text.get_text() for text in figure.legends[0].get_texts())
    assert figure.axes[0].texts[0].get_text() == "no points"


def test_a_run_that_diverged_does_not_hide_the_others(picture: Callable[..., Canvas]) -> None:
    figure = picture(seen("a", curves={"val/loss": [(1, 0.2)]}), seen("b", curves={"val/loss": [(1, 900.0)]}))
    assert figure.axes[1].get_yscale() == "log"
    assert "log scale" in figure.axes[1].get_ylabel()


def test_a_point_that_was_delivered_again_is_one_point(store: tuple[Server, Any], add: Add) -> None:
    run = add("again", epochs=2)
    store[1].log_metric(run, "val/loss", 7.0, timestamp=5000, step=2)
    assert compare_runs.curve(store[1], run, "val/loss") == [(1, 2.0), (2, 7.0)]


# A study


@pytest.fixture
def study(store: tuple[Server, Any], add: Add) -> Callable[..., tuple[str, list[str]]]:
    """`study(name, objective, values)`: its run, and those of its trials; the first is the baseline's."""

    def make(name: str, objective: str, values: list[float]) -> tuple[str, list[str]]:
        parent = add(f"study {name}", {"study.objective": objective}, tags={"runner.study": name})
        trials = []
        for place, value in enumerate(values):
            tags = {"runner.study": name, "runner.trial": str(place), "mlflow.parentRunId": parent}
            words = f"lr={place}" if place else "baseline"
            trials.append(
                add(f"trial {place}: {words}", {"optim.lr": place}, {"objective": value}, tags=tags)
            )
        return parent, trials

    return make


def test_a_study_is_its_baseline_and_its_best_trials(
    store: tuple[Server, Any], add: Add, study: Callable[..., Any], command: Callable[..., Any]
) -> None:
    parent, trials = study("night", "top1", [0.1, *(0.5 + 0.01 * place for place in range(9))])
    tags = {"runner.study": "night", "mlflow.parentRunId": parent}
    add("trial 20: pruned", {}, {"objective": 0.99}, tags={**tags, "runner.trial": "20"}, status="KILLED")
    add("confirm best, seed 5", {}, {"objective": 0.99}, tags={**tags, "runner.confirms": "best"})
    status, out, errors = command("--study", "night", "--json")
    assert status == 0
    said = json.loads(out)
    assert [each["run"] for each in said["runs"]] == [trials[0], *trials[:2:-1]]
    assert said["metrics"]["objective"]["best"] == [trials[-1]]
    assert "baseline and the best 7 of 10 finished trials of study night" in errors
    assert all(each["fault"].endswith("has no predictions") for each in said["paired"])


def test_a_study_may_go_by_the_loss(study: Callable[..., Any], command: Callable[..., Any]) -> None:
    _, trials = study("loss", "loss", [0.9, 0.3, 0.1, 0.2])
    _, out, _ = command("--study", "loss", "--json")
    said = json.loads(out)
    assert [each["run"] for each in said["runs"]] == [trials[0], trials[2], trials[3], trials[1]]
    assert said["metrics"]["objective"]["best"] == [trials[2]]


def test_an_unknown_study_is_refused(study: Callable[..., Any], command: Callable[..., Any]) -> None:
    study("evening", "top1", [0.5])
    assert "There is no study 'evenin' (did you mean 'evening'?)" in refused(command("--study", "evenin"))
    assert "has 1 finished trial, too few" in refused(command("--study", "evening"))


# What is refused


def test_one_run_is_no_comparison(command: Callable[..., Any]) -> None:
    assert "two runs or more, 1 given" in refused(command("one"))
    assert "two runs or more, none given" in refused(command())


def test_runs_and_a_study_are_not_both_taken(command: Callable[..., Any]) -> None:
    assert "not both" in refused(command("one", "two", "--study", "night"))


def test_an_unknown_run_is_refused(add: Add, command: Callable[..., Any], tmp_path: Path) -> None:
    run = add("there")
    assert "There is no run 'nowhere'" in refused(command(run, "nowhere"))
    assert not (tmp_path / "out").exists()


def test_the_same_run_twice_is_refused(add: Add, command: Callable[..., Any]) -> None:
    run = add("only")
    assert "is named twice" in refused(command(run, run[:10]))


def test_a_store_without_records_is_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    said = refused(command("one", "two", "--tracking.root", str(tmp_path / "none")))
    assert "There are no records" in said
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_refused(
    add: Add, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = add("w1"), add("w2")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/inside"):
        said = refused(command(*runs, "--out", str(tmp_path / place)))
        assert "is not a folder" in said
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    said = refused(command(*runs))
    assert f"No permission to write in {tmp_path / 'out'}" in said


def test_a_store_that_takes_no_files_leaves_those_on_disk(
    store: tuple[Server, Any],
    add: Add,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("away")

    runs = add("s1"), add("s2")
    monkeypatch.setattr(type(store[1]), "log_artifact", fail)
    status, out, _ = command(*runs)
    assert status == 0
    assert "could not be put into run" in out
    assert "(away)" in out
    assert (tmp_path / "out" / "comparison.html").exists()


def test_mistakes_of_words_are_user_errors() -> None:
    with pytest.raises(UserError, match="unrecognized arguments: --nope"):
        compare.parse(["a", "b", "--nope"])


def test_it_needs_no_torch() -> None:
    code = "import sys, runner.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_rows_of_nothing() -> None:
    assert match_rows([])[1] == []
