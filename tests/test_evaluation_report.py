"""The report of an evaluation, and pictures of what a model looks at, as a user asks for them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import QUIET
from PIL import Image, ImageDraw
from objects import OBJECTS, SIDE, SIZE, objects_words, write_objects

from runner import train
from runner.cli import evaluate as evaluation
from runner.cli import main
from runner.evaluation import report
from runner.evaluation.predictions import read_csv
from runner.evaluation.report import _boxes, sample
from runner.portable.images import open_rgb
from runner.portable.transform import evaluation_transform
from runner.serving.load import load_model
from runner.serving.predictor import LoadedModel
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main

TEST = 24
"""Images of the test split."""
FIGURES = ("confusion_matrix", "reliability", "topk", "recall_by_class")


@pytest.fixture(scope="module", autouse=True)
def _on_the_processor() -> Iterator[None]:
    """On the processor, with no store but the one that a test names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield


@dataclass(frozen=True)
class Kept:
    """A finished run on the objects of `tests/objects.py`, whose places are known."""

    place: Path
    pictures: Path
    boxes: dict[str, tuple[int, int, int, int]]
    client: Any
    run_id: str

    @property
    def tracking(self) -> list[str]:
        return ["--tracking.root", str(self.place / "mlruns")]

    def metrics(self, under: str) -> dict[str, float]:
        found = self.client.get_run(self.run_id).data.metrics
        return {name.removeprefix(under): value for name, value in found.items() if name.startswith(under)}

    def files(self, under: str) -> list[str]:
        """Paths of the run's artifacts in a folder, relative to it."""
        found: list[str] = []
        for each in self.client.list_artifacts(self.run_id, under):
            found += self.files(each.path) if each.is_dir else [each.path]
        return sorted(found)

    def fetch(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.run_id, path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    from mlflow import MlflowClient

    place = tmp_path_factory.mktemp("report")
    boxes = write_objects(place / "pictures")
    assert run_main(lambda: train.main(objects_words(place / "pictures", place))) == 0
    client = MlflowClient(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("objects")
    (run,) = client.search_runs([experiment.experiment_id])
    return Kept(place, place / "pictures", boxes, client, run.info.run_id)


@pytest.fixture
def evaluate(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`evaluate("--json")`: status, output and errors of `runner evaluate RUN`, launched within this process."""
    monkeypatch.setattr("runner.cli.launcher.launch", lambda _script, argv, _processes: evaluation.main(argv))
    monkeypatch.setattr(report, "SHOWN", 1)

    def start(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["evaluate", kept.run_id, *kept.tracking, *words])
        said = capfd.readouterr()
        return status, said.out, said.err

    return start


@pytest.fixture(scope="module")
def reported(kept: Kept) -> Kept:
    """The run, with the report of its test split."""
    assert run_main(lambda: evaluation.main([kept.run_id, *kept.tracking])) == 0
    return kept


def one_sentence(errors: str) -> str:
    """The one line that says what is wrong, after checking that there is one, and no traceback."""
    said = [line for line in errors.splitlines() if line.startswith("runner: ")]
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    return said[0].removeprefix("runner: ")


# The report


def test_a_run_logs_its_gallery_to_mlflow(kept: Kept) -> None:
    files = kept.files("images")
    assert len(files) % 4 == 0, "two images, each in two files, at every step"
    steps = {int(name.split("+step+")[1].split("+")[0]) for name in files}
    best = int(kept.metrics("best_")["epoch"])
    assert steps == {0, best, 10}
    assert kept.client.get_run(kept.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_a_report_lies_beside_its_run(reported: Kept) -> None:
    files = reported.files("evaluation/test")
    pictures = [name for name in files if "/galleries/" in name]
    assert set(files) - set(pictures) == {
        f"evaluation/test/{name}"
        for name in (
            *("report.html", "predictions.csv", "per_class.csv", "confused.csv"),
            *(f"{name}.png" for name in FIGURES),
        )
    }
    rows = read_csv(reported.fetch("evaluation/test/predictions.csv").read_bytes().decode())
    errors = sum(not row.right for row in rows)
    assert sum("/error-" in name for name in pictures) == min(12, errors)
    assert sum("/hit-" in name for name in pictures) == min(12, TEST - errors)
    for name in (*pictures, *(f"evaluation/test/{name}.png" for name in FIGURES)):
        with Image.open(reported.fetch(name)) as picture:
            assert picture.format == "PNG"
            picture.load()


def test_predictions_are_those_of_the_run(reported: Kept) -> None:
    table = reported.fetch("evaluation/test/predictions.csv").read_bytes()
    rows = read_csv(table.decode())
    assert len(rows) == TEST
    assert sum(row.right for row in rows) / TEST == reported.metrics("test/best/")["top1"]
    assert all(row.true == row.path.split("/")[0] for row in rows)
    assert table == reported.fetch("predictions.csv").read_bytes(), "the table that the run itself left"


def test_a_page_is_one_file_that_can_be_passed_on(reported: Kept) -> None:
    page = reported.fetch("evaluation/test/report.html").read_text(encoding="utf-8")
    pictures = [name for name in reported.files("evaluation/test") if "/galleries/" in name]
    assert page.count('src="data:image/') == len(pictures) + len(FIGURES)
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []
    assert reported.run_id in page
    for said in ("95 % interval", "Least confident hits", "Confusion matrix", "Calibration", *OBJECTS):
        assert said in page


def test_scores_of_a_report_are_metrics_of_its_run(reported: Kept) -> None:
    found = reported.metrics("evaluation/test/")
    names = {f"{name}_{end}" for name in ("top1", "top5", "recall") for end in ("low", "high")}
    assert set(found) >= {*names, "ece", "ece_scaled", "temperature"}
    top1 = reported.metrics("test/best/")["top1"]
    assert 0 <= found["top1_low"] <= top1 <= found["top1_high"] <= 1
    assert found["top5_low"] == found["top5_high"] == 1, "there are three classes"


def test_a_second_report_takes_the_place_of_the_first(
    reported: Kept, evaluate: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHOWN", 12)
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    files, metrics = reported.files("evaluation"), reported.metrics("evaluation/")
    assert evaluate()[0] == 0
    assert reported.files("evaluation") == files
    assert reported.metrics("evaluation/") == metrics
    run = reported.client.get_run(reported.run_id)
    assert run.info.status == "FINISHED"
    assert len(reported.client.search_runs([run.info.experiment_id])) == 1


def blank(view: Any, found: Any, above: str, about: str, path: Path) -> None:
    """In place of a picture: drawing takes a quarter of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_json_is_all_that_standard_output_holds(
    kept: Kept, evaluate: Callable[..., tuple[int, str, str]]
) -> None:
    status, output, errors = evaluate("--json")
    assert status == 0
    said = json.loads(output)
    assert (said["run"], said["split"], said["images"]) == (kept.run_id, "test", TEST)
    assert set(said["checkpoints"]) == {"best", "last"}
    assert "report" in errors


def test_no_report_leaves_nothing_but_the_scores(
    kept: Kept, evaluate: Callable[..., tuple[int, str, str]]
) -> None:
    before = kept.files("evaluation"), kept.metrics("evaluation/")
    status, output, _ = evaluate("--no-report", "--split", "train")
    assert status == 0
    assert "train split" in output
    assert "report" not in output
    assert (kept.files("evaluation"), kept.metrics("evaluation/")) == before


def test_a_report_of_validation_says_what_its_temperature_is_worth(
    kept: Kept, evaluate: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    status, output, _ = evaluate("--split", "val", "--out", str(out))
    assert status == 0
    assert str(out / "report.html") in output.replace("\n", "")
    inside = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert inside == [name.removeprefix("evaluation/val/") for name in kept.files("evaluation/val")]
    assert "flattered" in (out / "report.html").read_text(encoding="utf-8")
    assert "temperature" in kept.metrics("evaluation/val/")
    rows = read_csv((out / "predictions.csv").read_bytes().decode())
    assert sum(row.right for row in rows) / len(rows) == kept.metrics("val/best/")["top1"]


def test_a_report_tells_whether_the_object_is_looked_at(
    kept: Kept, evaluate: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """With the boxes of all pictures, of which those of the split count, and ROAD of a few."""
    status, output, errors = evaluate("--boxes", str(box_table(tmp_path, kept.boxes)), "--faithfulness", "4")
    assert status == 0, errors
    found = kept.metrics("evaluation/test/")
    assert found["pointing_chance"] == pytest.approx(SIZE**2 / SIDE**2)
    assert found["pointing"] > max(0.5, 3 * found["pointing_chance"])
    assert found["pointing_energy"] > 1.25 * found["pointing_chance"]
    assert found["road_gain"] == pytest.approx(found["road"] - found["road_random"])
    assert found["road_gain_low"] < found["road_gain"] < found["road_gain_high"]
    assert found["road_gain"] > 0
    page = kept.fetch("evaluation/test/report.html").read_text(encoding="utf-8")
    assert f"{TEST} images with boxes" in page
    assert "ROAD on 4 images" in page
    assert f"{100 * found['pointing']:.1f}%" in output.replace("\n", "")


def box_table(folder: Path, boxes: Mapping[str, tuple[float, float, float, float]]) -> Path:
    path = folder / "boxes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "left", "top", "right", "bottom"))
        writer.writerows([name, *box] for name, box in boxes.items())
    return path


def test_the_images_that_are_measured_are_the_same_each_time() -> None:
    digests = [f"{place * 7919 % 101:040x}" for place in range(20)]
    chosen = {digests[place] for place in sample(digests, 5)}
    assert {digests[::-1][place] for place in sample(digests[::-1], 5)} == chosen
    assert chosen < {digests[place] for place in sample(digests, 9)}
    assert sample(digests, 5) == sorted(sample(digests, 5))
    assert sample(digests, 99) == list(range(20))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--faithfulness", "1"], "2 images or more"),
        (["--faithfulness", "-3"], "2 images or more"),
        (["--faithfulness", "many"], "--faithfulness"),
        (["--no-report", "--boxes", "b.csv"], "--no-report"),
        (["--no-report", "--out", "there"], "--no-report"),
        (["--no-report", "--faithfulness", "2"], "--no-report"),
        (["--split", "tset"], "tset"),
    ],
    ids=" ".join,
)
def test_bad_words_are_refused_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setattr("runner.cli.launcher.launch", lambda *_: pytest.fail("it was launched"))
    assert main.main(["evaluate", "latest", *words]) == 2
    assert said in one_sentence(capfd.readouterr().err)


@pytest.mark.parametrize("option", ["--boxes", "--out"])
def test_what_cannot_be_read_or_written_is_refused(
    evaluate: Callable[..., tuple[int, str, str]], tmp_path: Path, option: str
) -> None:
    place = tmp_path / "nothing.csv"
    if option == "--out":
        place.write_text("a file, and no folder")
    status, _, errors = evaluate(option, str(place))
    assert status == 2
    assert str(place) in one_sentence(errors)


# Boxes


def judged(root: Path, *paths: str, resize: int = 64, crop: int = 64) -> Any:
    """What `_boxes` asks of an evaluation of these images."""
    manifest = SimpleNamespace(
        root=root, select=lambda _split: [SimpleNamespace(path=each) for each in paths]
    )
    views = SimpleNamespace(resize=resize, crop=crop)
    ready = SimpleNamespace(manifest=manifest, experiment=SimpleNamespace(views=views))
    return SimpleNamespace(ready=ready, split="test")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of 128 × 64 and 64 × 64 pixels."""
    (tmp_path / "cup").mkdir()
    Image.new("RGB", (128, 64)).save(tmp_path / "cup" / "wide.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "cup" / "square.png")
    return tmp_path


def test_boxes_are_those_of_the_splits_images_in_their_views(photos: Path) -> None:
    table = box_table(
        photos,
        {
            "cup/wide.png": (32, 0, 64, 32),
            "cup/square.png": (8, 16, 24, 32),
            "cup/of another split.png": (0, 0, 1, 1),
        },
    )
    found = _boxes(table, judged(photos, "cup/square.png", "cup/wide.png"), QUIET)
    assert found == {1: (0, 0, 32, 32), 0: (8, 16, 24, 32)}
    assert _boxes(table, judged(photos, "cup/square.png"), QUIET) == {0: (8, 16, 24, 32)}


def test_boxes_may_come_from_a_spreadsheet(photos: Path) -> None:
    """With a byte-order mark, further columns, and lines that end as Windows' do."""
    table = photos / "b.csv"
    table.write_bytes(
        "path,note,left,top,right,bottom\r\ncup/square.png,ü,1,2.5,30,40\r\n".encode("utf-8-sig")
    )
    assert _boxes(table, judged(photos, "cup/square.png"), QUIET) == {0: (1, 2.5, 30, 40)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,left,top,right\ncup/square.png,1,2,3\n", "path,left,top,right,bottom"),
        (b"file,x,y,w,h\ncup/square.png,1,2,3,4\n", "path,left,top,right,bottom"),
        (b"path,left,top,right,bottom\ncup/square.png,1,2,three,4\n", "three"),
        (b"path,left,top,right,bottom\ncup/square.png,1,2\n", "path,left,top,right,bottom"),
        (b"path,left,top,right,bottom\ncup/square.png,70,70,90,90\n", "has no box in the view"),
        (b"path,left,top,right,bottom\ncup/square.png,9,9,9,20\n", "is empty"),
        (b"path,left,top,right,bottom\ncup/none.png,1,2,3,4\n", "of an image of the test split"),
        (b"path,left,top,right,bottom\n", "cup/square.png"),
        (b"", "cup/square.png"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is no table"),
        (b"path,left,top,right,bottom\ncup/square.png,nan,2,3,4\n", "nan"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(photos: Path, content: bytes, said: str) -> None:
    table = photos / "b.csv"
    table.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        _boxes(table, judged(photos, "cup/square.png"), QUIET)
    assert said in str(refusal.value)
    assert str(table) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_table_that_is_not_there_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        _boxes(photos / "none.csv", judged(photos, "cup/square.png"), QUIET)


def test_a_folder_in_place_of_a_table_is_refused(photos: Path) -> None:
    with pytest.raises(UserError):
        _boxes(photos / "cup", judged(photos, "cup/square.png"), QUIET)


def test_a_box_is_of_the_image_as_a_person_sees_it(tmp_path: Path) -> None:
    """Cameras keep images lying, and say in the file how to turn them."""
    shown = Image.new("RGB", (96, 192))
    ImageDraw.Draw(shown).rectangle((20, 80, 59, 109), fill="white")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned right by 90 degrees
    shown.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=turned)
    view = evaluation_transform(64, 64, "bilinear")(open_rgb(tmp_path / "a.png"))
    white = (view[0] > 127).nonzero()
    (top, left), (bottom, right) = white.amin(0).tolist(), white.amax(0).tolist()
    found = _boxes(box_table(tmp_path, {"a.png": (20, 80, 60, 110)}), judged(tmp_path, "a.png"), QUIET)
    assert found[0] == pytest.approx((left, top, right + 1, bottom + 1), abs=1.5)


# Several processes


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-m", "runner.cli.main", *words],
        env={**environment, "ACCELERATE_USE_CPU": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
    )


@pytest.mark.slow
def test_two_processes_write_the_report_of_one(reported: Kept, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = reported.files("evaluation/test")
    told = command(
        *("evaluate", reported.run_id, "-n", "2", "--json", "--out", str(out), *reported.tracking),
    )
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stdout)
    assert (said["processes"], said["images"]) == (2, TEST)
    assert {f"evaluation/test/{path.relative_to(out)}" for path in out.rglob("*.*")} == set(files)
    here, there = (
        read_csv(path.read_bytes().decode())
        for path in (out / "predictions.csv", reported.fetch("predictions.csv"))
    )
    assert [(row.path, row.predicted, row.rank) for row in here] == [
        (row.path, row.predicted, row.rank) for row in there
    ]


@pytest.mark.slow
def test_two_processes_refuse_a_bad_table_in_one_sentence(kept: Kept, tmp_path: Path) -> None:
    told = command(
        *("evaluate", kept.run_id, "-n", "2", "--boxes", str(tmp_path / "none.csv"), *kept.tracking),
    )
    assert told.returncode == 2, told.stderr
    assert "none.csv" in one_sentence(told.stderr)


# Pictures of what a model looks at


@pytest.fixture(scope="module")
def model(kept: Kept) -> LoadedModel:
    return load_model(kept.run_id, str(kept.place / "mlruns"))


@pytest.fixture
def explain(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`explain("--target", "rose", "a.png")`: status and errors of `runner explain`, which writes to `tmp_path`/out."""
    monkeypatch.setattr("runner.cli.explain.load_model_concurrently", lambda *_: model)
    monkeypatch.chdir(tmp_path)

    def start(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main.main(["explain", *words, *(() if "--out" in words else ("--out", "out"))])
        return status, capfd.readouterr().err

    return start


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """The title and the words beside the colour bar of each picture, by its file's name; none is drawn."""
    told: dict[str, tuple[str, str]] = {}

    def draw(view: Any, found: Any, above: str, about: str, path: Path) -> None:
        told[path.name] = (above, about)
        assert found.shape == view.shape[-2:]
        blank(view, found, above, about, path)

    monkeypatch.setattr("runner.explain.overlay.draw", draw)
    return told


def test_an_explanation_is_a_picture_of_each_image(
    kept: Kept, explain: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, errors = explain(str(kept.pictures / "rose" / "00.png"), str(kept.pictures / "leaf" / "00.png"))
    assert (status, errors) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00.gradcam.2.png",
        "00.gradcam.png",
    ]
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size[0] > 1.5 * picture.size[1] > 300


def test_a_folder_is_explained_with_all_that_is_beneath_it(
    kept: Kept, explain: Callable[..., tuple[int, str]], titles: dict[str, tuple[str, str]], model: LoadedModel
) -> None:
    assert explain(str(kept.pictures / "rose"))[0] == 0
    assert set(titles) == {f"{number:02}.gradcam.png" for number in range(32)}
    said = model.predict(sorted((kept.pictures / "rose").iterdir()), 1)
    for guess, (above, about) in zip([each.top[0] for each in said], titles.values(), strict=True):
        mark, true = ("✓", "") if guess.name == "rose" else ("✗", ", true: rose")
        assert above == f"{mark} {guess.name}, {100 * guess.probability:.0f} %{true}"
        assert about == f"Grad-CAM for {guess.name}"


def test_an_image_outside_of_the_class_folders_has_no_mark(
    kept: Kept, explain: Callable[..., tuple[int, str]], titles: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes((kept.pictures / "rose" / "00.png").read_bytes())
    assert explain("x.png", "--target", "leaf", "--method", "layercam", "--layer", "features.14") == (0, "")
    ((name, (above, about)),) = titles.items()
    assert (name, about) == ("x.layercam.png", "LayerCAM for leaf")
    assert re.fullmatch(r"\w+, \d+ %", above)


def test_the_true_class_is_the_name_of_the_folder(
    kept: Kept, explain: Callable[..., tuple[int, str]], titles: dict[str, tuple[str, str]]
) -> None:
    words = [str(kept.pictures / label / "01.png") for label in OBJECTS]
    assert explain(*words, "--target", "true")[0] == 0
    assert sorted(about for _, about in titles.values()) == [
        f"Grad-CAM for {label}" for label in sorted(OBJECTS)
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "rosse"], "did you mean 'rose'"),
        (["--target", "tulip"], "3 classes"),
        (["--layer", "features.91"], "did you mean 'features.9'"),
        (["--layer", "classifier.1"], "'classifier.1'"),
        (["--method", "gradkam"], "gradkam"),
        (["--out", "x.png"], "x.png is not a folder"),
        (["--out", "x.png/inside"], "x.png/inside"),
        (["--target", "true"], "name the class with --target"),
        (["nothing.png"], "There is no nothing.png"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_explained_is_refused(
    kept: Kept,
    explain: Callable[..., tuple[int, str]],
    titles: dict[str, tuple[str, str]],
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    (tmp_path / "x.png").write_bytes((kept.pictures / "rose" / "00.png").read_bytes())
    status, errors = explain("x.png", *words)
    assert status == 2
    assert said in one_sentence(errors)
    assert titles == {}, "nothing was drawn"


def test_a_damaged_file_stops_no_other(
    kept: Kept, explain: Callable[..., tuple[int, str]], titles: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    whole = (kept.pictures / "rose" / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "text.png").write_text("not an image")
    status, errors = explain("cut.png", "empty.png", "good.png", "text.png")
    assert status == 1
    assert set(titles) == {"good.gradcam.png"}
    assert [line.split()[1] for line in errors.splitlines()] == ["cut.png", "empty.png", "text.png"]
    assert "Traceback" not in errors
    status, errors = explain("cut.png", "empty.png")
    assert status == 2
    assert "None of 2 files is an image that can be read." in errors


def test_a_long_file_name_can_be_explained(
    kept: Kept, explain: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / f"{'n' * 245}.png").write_bytes((kept.pictures / "rose" / "00.png").read_bytes())
    assert explain(f"{'n' * 245}.png")[0] == 0


def test_pictures_can_be_had_with_predictions(
    kept: Kept,
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    titles: dict[str, tuple[str, str]],
) -> None:
    monkeypatch.setattr("runner.cli.predict.load_model_concurrently", lambda *_: model)
    words = ["predict", str(kept.pictures / "leaf" / "03.png"), "--json", "--explain", str(tmp_path / "out")]
    assert main.main(words) == 0
    assert set(titles) == {"03.gradcam.png"}


@pytest.mark.slow
def test_runner_explain_is_a_command(kept: Kept, tmp_path: Path) -> None:
    """As a user gives it, in a process of its own."""
    out = tmp_path / "out"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    image = kept.pictures / "coin" / "05.png"
    told = command(
        *("explain", str(image), str(broken), "--model", kept.run_id[:8], "--out", str(out), *kept.tracking)
    )
    assert told.returncode == 1, told.stderr
    assert [path.name for path in out.iterdir()] == ["05.gradcam.png"]
    assert str(broken) in one_sentence(told.stderr)
    assert f"pictures in {out}: 1" in told.stdout
