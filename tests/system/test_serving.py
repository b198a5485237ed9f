"""A model behind `mlflow models serve`: what it answers over HTTP, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import CLASSES, listening
from image_kinds import save_kind
from PIL import Image
from trained import TrainedRun

from runner import load_model
from runner.serving.predictor import LoadedModel

MOST_IMAGES, MOST_PIXELS = 20, 200 * 100
"""Limits of the server here."""

Rows = list[list[tuple[str, float]]]


@pytest.fixture(scope="module")
def model(trained_run: TrainedRun) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        return load_model("small@champion", trained_run.tracking, "cpu")


@pytest.fixture(scope="module")
def address(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve`. Starting it takes ten seconds: all tests share one."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{trained_run.folder / 'mlruns' / 'mlflow.db'}",
        "RUNNER_SERVE_MAX_IMAGES": str(MOST_IMAGES),
        "RUNNER_SERVE_MAX_PIXELS": str(MOST_PIXELS),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # as in an activated environment
    }
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/small@champion"]
    words += ["--env-manager", "local", "--port", "{port}", "--workers", "1"]
    output = tmp_path_factory.mktemp("server") / "output.txt"
    with listening(words, "/ping", output, environment) as url:
        yield url


@pytest.fixture(scope="module")
def files(trained_run: TrainedRun) -> list[Path]:
    """Three images, one of each class."""
    return [trained_run.pictures / label / "07.png" for label in CLASSES]


def post(address: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and answer of a request; the answer to a refused one is its text."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def encoded(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def expected(model: LoadedModel, paths: list[Path], top: int = 5) -> Rows:
    return [[(item.name, item.probability) for item in each.top] for each in model.predict(paths, top)]


def answered(outcome: tuple[int, Any]) -> Rows:
    status, answer = outcome
    assert status == 200, answer
    return [[(item["class"], item["probability"]) for item in row["top"]] for row in answer["predictions"]]


# Answers


def test_health_checks_succeed(address: str) -> None:
    for path in ("ping", "health"):
        with urllib.request.urlopen(f"{address}/{path}", timeout=30) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("form", ["inputs", "dataframe_split", "dataframe_records", "list"])
def test_a_request_of_any_form_gets_the_models_predictions(
    address: str, model: LoadedModel, files: list[Path], form: str
) -> None:
    texts = [encoded(path) for path in files]
    body = {
        "inputs": {"inputs": {"image": texts}},
        "dataframe_split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        "dataframe_records": {"dataframe_records": [{"image": text} for text in texts]},
        "list": {"inputs": [{"image": text} for text in texts]},
    }[form]
    assert answered(post(address, body)) == expected(model, files)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (3, 3), (99, 3), (0, 1), (-3, 1)])
def test_the_number_of_classes_can_be_chosen(
    address: str, model: LoadedModel, files: list[Path], top: int, count: int
) -> None:
    body = {"inputs": {"image": [encoded(files[0])]}, "params": {"top": top}}
    assert answered(post(address, body)) == expected(model, files[:1], count)


def test_an_answer_does_not_depend_on_the_other_images(
    address: str, model: LoadedModel, files: list[Path]
) -> None:
    paths = (files * 4)[:11]
    rows = answered(post(address, {"inputs": {"image": [encoded(path) for path in paths]}}))
    assert rows == [expected(model, [path])[0] for path in paths]


@pytest.mark.parametrize("kind", ["gray", "16 bit", "RGBA", "CMYK", "EXIF 6", "palette"])
def test_every_kind_of_image_is_read(address: str, model: LoadedModel, kind: str, tmp_path: Path) -> None:
    path, _ = save_kind(kind, tmp_path)
    assert answered(post(address, {"inputs": {"image": [encoded(path)]}})) == expected(model, [path])


def test_data_urls_and_wrapped_base64_are_read(address: str, model: LoadedModel, files: list[Path]) -> None:
    text = encoded(files[0])
    wrapped = "\n".join(textwrap.wrap(text, 76)) + "\n"  # as the command base64 writes it
    for image in (f"data:image/png;base64,{text}", wrapped):
        assert answered(post(address, {"inputs": {"image": [image]}})) == expected(model, files[:1])


# Refusals


def bomb() -> str:
    """A small file that would decode to 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("no base64!", "Image 1 is not base64."),
        ("ä", "Image 1 "),
        (b64encode(b"no image").decode(), "Image 1 is not an image"),
        ("bomb", "Image 1 cannot be decoded (Image size (400000000 pixels) exceeds limit"),
        ("large", "Image 1 cannot be decoded (it has 20,200 pixels, more than 20,000)."),
        ("cut", "Image 1 cannot be decoded ("),
        ("", "Image 1 "),
    ],
    ids=["no base64", "no ascii", "no image", "bomb", "large", "cut", "nothing"],
)
def test_the_sentence_names_the_image_and_nothing_else(
    address: str, files: list[Path], image: str, sentence: str
) -> None:
    """MLflow itself would put the whole request, megabytes of base64, in front of it."""
    made = {"bomb": bomb, "large": lambda: blank(101), "cut": lambda: encoded(files[0])[:400]}
    text = made.get(image, lambda: image)()
    status, answer = post(address, {"inputs": {"image": [encoded(files[0]), text]}})
    assert status == 400
    message = json.loads(answer)["message"]
    assert message.startswith(sentence)
    assert len(message) < 300
    assert "BytesIO" not in answer


def blank(height: int) -> str:
    """A white image of that height and 200 pixels' width."""
    file = io.BytesIO()
    Image.new("L", (200, height), "white").save(file, "png")
    return b64encode(file.getvalue()).decode()


def test_the_largest_request_is_answered_and_a_larger_one_refused(address: str, files: list[Path]) -> None:
    texts = [blank(100)] * MOST_IMAGES
    assert len(answered(post(address, {"inputs": {"image": texts}}))) == MOST_IMAGES
    status, answer = post(address, {"inputs": {"image": [*texts, encoded(files[0])]}})
    assert status == 400
    message = json.loads(answer)["message"]
    assert message == f"The request holds 21 images, more than {MOST_IMAGES}; send several requests."


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"picture": ["x"]}},
        {"inputs": {"image": [5]}},
        {"inputs": {"image": [None]}},
        {"inputs": {}},
        {"picture": ["x"]},
        {},
        {"inputs": {"image": ["x"]}, "params": {"top": "many"}},
    ],
    ids=str,
)
def test_a_malformed_request_is_refused(address: str, body: dict[str, Any]) -> None:
    status, answer = post(address, body)
    assert status == 400, answer


def test_the_server_answers_after_refused_requests(
    address: str, model: LoadedModel, files: list[Path]
) -> None:
    post(address, {"inputs": {"image": ["no base64!"]}})
    assert answered(post(address, {"inputs": {"image": [encoded(files[1])]}})) == expected(model, files[1:2])
