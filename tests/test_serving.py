"""A model behind `mlflow models serve`: what it answers over HTTP, and what it refuses."""

from __future__ import annotations

import io
import json
import textwrap
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import COLOURS
from PIL import Image
from test_models import asked, served
from test_predict import save_kind, trained

from runner import load_model
from runner.serving.predictor import LoadedModel


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    return trained(tmp_path_factory, accelerator)


@pytest.fixture(scope="module")
def model(place: Path) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return load_model("small@champion", str(place / "mlruns"), "cpu")


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """Of one server for all tests here: starting one takes ten seconds."""
    with served(place, "models:/small@champion") as url:
        yield url


@pytest.fixture(scope="module")
def some(place: Path) -> list[Path]:
    return [place / "pictures" / label / "07.png" for label in sorted(COLOURS)]


def text_of(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def wanted(model: LoadedModel, paths: list[Path], top: int = 5) -> list[list[tuple[str, float]]]:
    return [[(guess.name, guess.probability) for guess in each.top] for each in model.predict(paths, top)]


def answered(outcome: tuple[int, Any]) -> list[list[tuple[str, float]]]:
    status, said = outcome
    assert status == 200, said
    return [[(guess["class"], guess["probability"]) for guess in row["top"]] for row in said["predictions"]]


def test_the_server_says_that_it_is_well(address: str) -> None:
    for path in ("ping", "health"):
        with urllib.request.urlopen(f"{address}/{path}", timeout=30) as answer:
            assert answer.status == 200


def test_what_is_served_is_what_the_model_says(address: str, model: LoadedModel, some: list[Path]) -> None:
    said = answered(asked(address, {"inputs": {"image": [text_of(path) for path in some]}}))
    assert said == wanted(model, some)


@pytest.mark.parametrize("form", ["inputs", "dataframe_split", "dataframe_records", "list"])
def test_requests_of_every_form(address: str, model: LoadedModel, some: list[Path], form: str) -> None:
    texts = [text_of(path) for path in some[:2]]
    body = {
        "inputs": {"inputs": {"image": texts}},
        "dataframe_split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        "dataframe_records": {"dataframe_records": [{"image": text} for text in texts]},
        "list": {"inputs": [{"image": text} for text in texts]},
    }[form]
    assert answered(asked(address, body)) == wanted(model, some[:2])


@pytest.mark.parametrize(("top", "told"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_may_be_asked_for(address: str, model: LoadedModel, some: list[Path], top: int, told: int) -> None:
    body = {"inputs": {"image": [text_of(some[0])]}, "params": {"top": top}}
    assert answered(asked(address, body)) == wanted(model, some[:1], told)


def test_a_picture_is_served_alike_in_any_batch(address: str, model: LoadedModel, some: list[Path]) -> None:
    paths = (some * 4)[:11]
    said = answered(asked(address, {"inputs": {"image": [text_of(path) for path in paths]}}))
    assert said == [wanted(model, [path])[0] for path in paths]


@pytest.mark.parametrize("kind", ["gray", "16 bit", "RGBA", "CMYK", "EXIF 6", "palette"])
def test_pictures_of_every_kind_are_served(address: str, model: LoadedModel, kind: str, tmp_path: Path) -> None:
    path, _ = save_kind(kind, tmp_path)
    assert answered(asked(address, {"inputs": {"image": [text_of(path)]}})) == wanted(model, [path])


def test_a_data_address_is_taken(address: str, model: LoadedModel, some: list[Path]) -> None:
    body = {"inputs": {"image": [f"data:image/png;base64,{text_of(some[0])}"]}}
    assert answered(asked(address, body)) == wanted(model, some[:1])


def test_wrapped_base64_is_taken(address: str, model: LoadedModel, some: list[Path]) -> None:
    """As `base64 photo.jpg` writes it."""
    body = {"inputs": {"image": ["\n".join(textwrap.wrap(text_of(some[0]), 76)) + "\n"]}}
    assert answered(asked(address, body)) == wanted(model, some[:1])


def _bomb() -> str:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("no base64!", "Image 1 is not base64."),
        ("ä", "Image 1 "),
        (b64encode(b"no image").decode(), "Image 1 is not an image that Pillow knows."),
        ("bomb", "Image 1 cannot be decoded (Image size (400000000 pixels) exceeds limit"),
        ("cut", "Image 1 cannot be decoded ("),
    ],
    ids=["no base64", "no ascii", "no image", "bomb", "cut"],
)
def test_a_bad_image_is_named(address: str, some: list[Path], image: str, sentence: str) -> None:
    bad = {"bomb": _bomb, "cut": lambda: text_of(some[0])[:400]}.get(image, lambda: image)()
    status, said = asked(address, {"inputs": {"image": [text_of(some[0]), bad]}})
    assert status == 400
    assert sentence in json.loads(said)["message"]


def test_the_sentence_is_all_that_is_said(address: str, some: list[Path]) -> None:
    """MLflow puts the whole request, megabytes of base64, in front of it."""
    status, said = asked(address, {"inputs": {"image": [text_of(some[0]), "no base64!"]}})
    assert status == 400
    assert json.loads(said)["message"] == "Image 1 is not base64."


@pytest.mark.parametrize("image", ["", b64encode(b"no image").decode()], ids=["nothing", "no image"])
def test_the_sentence_tells_nothing_of_our_insides(address: str, image: str) -> None:
    status, said = asked(address, {"inputs": {"image": [image]}})
    assert status == 400
    assert "BytesIO" not in said


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
def test_a_bad_request_is_refused(address: str, body: dict[str, Any]) -> None:
    status, said = asked(address, body)
    assert status == 400, said


def test_the_server_goes_on_after_bad_requests(address: str, model: LoadedModel, some: list[Path]) -> None:
    asked(address, {"inputs": {"image": ["no base64!"]}})
    assert answered(asked(address, {"inputs": {"image": [text_of(some[1])]}})) == wanted(model, some[1:2])


@pytest.mark.parametrize("top", [0, -3])
def test_top_is_one_at_least(address: str, some: list[Path], top: int) -> None:
    said = answered(asked(address, {"inputs": {"image": [text_of(some[0])]}, "params": {"top": top}}))
    assert [len(row) for row in said] == [1]
