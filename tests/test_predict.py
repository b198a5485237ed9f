"""Predictions: any file, any batch, any order, any model; what is bare, what is told, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, draw
from helpers import QUIET
from PIL import Image
from test_models import numbers, plain_environment, refused, words  # noqa: F401 (a fixture for all tests here)

from runner import load_model
from runner.cli import main
from runner.config.parser import parse
from runner.models import checkpoint
from runner.serving.predictor import LoadedModel
from runner.tracking.mlflow_server import server
from runner.tracking.model_registry import MODEL_TAG
from runner.training.seeds import train as train_all
from runner.utils.errors import UserError
from runner.utils.image_paths import find_images

Command = Callable[..., tuple[int, str, str]]
_trained: list[Path] = []


def trained(factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    """A folder with pictures/, and mlruns/ with one finished run of them; made once for all files of tests."""
    if not _trained:
        folder = factory.mktemp("predict")
        for label in COLOURS:
            (folder / "pictures" / label).mkdir(parents=True)
            for number in range(12):
                draw(label, number).save(folder / "pictures" / label / f"{number:02}.png")
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.setattr(
                "runner.training.curves.curves", lambda *files: [file.touch() for file in files[2:]]
            )
            train_all(parse(words(folder))[0], 1, accelerator, QUIET)
        _trained.append(folder)
    return _trained[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    return trained(tmp_path_factory, accelerator)


@pytest.fixture(scope="module")
def root(place: Path) -> str:
    return str(place / "mlruns")


@pytest.fixture(scope="module")
def client(root: str) -> Any:
    return server(root).connect()


@pytest.fixture(scope="module")
def model(root: str) -> LoadedModel:
    return load_model(tracking=root, device="cpu")


@pytest.fixture(scope="module")
def run(client: Any, model: LoadedModel) -> Any:
    """The trained run."""
    return client.get_run(client.get_model_version_by_alias("small", "champion").run_id)


@pytest.fixture(scope="module")
def checkpoints(client: Any, run: Any) -> Path:
    return Path(client.download_artifacts(run.info.run_id, "checkpoints"))


@pytest.fixture(scope="module")
def images(place: Path) -> list[Path]:
    """Twenty pictures, no two alike."""
    return sorted((place / "pictures").rglob("*.png"))[:20]


@pytest.fixture(scope="module")
def alone(model: LoadedModel, images: list[Path]) -> dict[Path, Any]:
    """What is said of each picture when it is asked about alone."""
    return {path: numbers(model, [path])[0] for path in images}


@pytest.fixture
def command(root: str, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(…)`: `runner predict …` on the module's run: status, standard output and standard error."""

    def call(*rest: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["predict", *rest, "--tracking.root", root])
        return status, *capfd.readouterr()

    return call


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file that claims a size, with whatever data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


# Batches


@pytest.mark.parametrize("count", range(1, 21))
def test_a_picture_is_told_alike_among_any_others(
    model: LoadedModel, images: list[Path], alone: dict[Path, Any], count: int, tmp_path: Path
) -> None:
    draws = random.Random(count)
    asked = draws.sample(images, count)
    for number in range(draws.randrange(3)):
        bad = tmp_path / f"bad {number}.png"
        bad.write_bytes(b"no image")
        asked.insert(draws.randrange(len(asked) + 1), bad)
    said = model.predict(asked, 9)
    assert [each.path for each in said] == [str(path) for path in asked]
    for path, each in zip(asked, said, strict=True):
        assert bool(each.error) == (path not in alone)
        assert tuple((guess.name, guess.probability) for guess in each.top) == alone.get(path, ())


def test_only_bad_files_between_are_passed_over(
    model: LoadedModel, images: list[Path], alone: dict[Path, Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    asked = [bad] * 40 + [images[0]] + [bad] * 40 + [images[1]] + [bad] * 3
    said = model.predict(asked, 9)
    assert len(said) == len(asked)
    good = [each for each in said if not each.error]
    assert [each.path for each in good] == [str(images[0]), str(images[1])]
    assert tuple((guess.name, guess.probability) for guess in good[1].top) == alone[images[1]]


def test_a_picture_asked_twice_is_told_twice(model: LoadedModel, images: list[Path]) -> None:
    first, second, _ = model.predict([images[0], images[0], images[1]])
    assert first == second


def test_nothing_asked_is_nothing_told(model: LoadedModel) -> None:
    assert model.predict([]) == []


def test_hundreds_of_files_keep_their_order(
    command: Command, alone: dict[Path, Any], images: list[Path], tmp_path: Path
) -> None:
    names = [tmp_path / f"{number:03}.png" for number in range(300)]
    for number, name in enumerate(names):
        name.symlink_to(images[number * 7 % 20])
    names[123].unlink()
    names[123].write_bytes(images[0].read_bytes()[:200])
    status, out, err = command(str(tmp_path), "--json")
    assert status == 1
    told = json.loads(out)
    assert [each["path"] for each in told] == [str(name) for name in names if name != names[123]]
    for each in told:
        given = tuple((guess["class"], guess["probability"]) for guess in each["top"])
        assert given == alone[images[int(Path(each["path"]).stem) * 7 % 20]]
    assert [line for line in err.splitlines() if line.startswith("runner: ")] == [
        f"runner: {names[123]} cannot be read (image file is truncated)"
    ]


def test_progress_counts_every_file(model: LoadedModel, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    done: list[int] = []
    model.predict([*images, tmp_path / "bad.png"], advance=done.append)
    assert sum(done) == 21


# Pictures of every kind


def _square() -> np.ndarray:
    values = np.zeros((40, 44, 3), np.uint8)
    values[:20, :, 0], values[:, :22, 1], values[10:, 10:, 2] = 250, 120, 60
    values[5:9, 5:9] = 255
    return values


def _gray() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 44), np.uint8)


def _as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, 2)


def _palette() -> tuple[Image.Image, np.ndarray]:
    image = Image.fromarray(_square()).quantize(8)
    return image, np.asarray(image.convert("RGB"))


def _holes() -> tuple[np.ndarray, np.ndarray]:
    """Where it is transparent, and the picture as it is seen on white."""
    alpha = np.full((40, 44), 255, np.uint8)
    alpha[:20, :20] = 0
    return alpha, np.where(alpha[..., None] == 0, np.uint8(255), _square())


def save_kind(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A file of a kind, and the RGB values that a person sees in it."""
    gray, square = _gray(), _square()
    alpha, seen = _holes()
    path = folder / f"{kind}.png"
    options: dict[str, Any] = {}
    if kind == "gray":
        image, wanted = Image.fromarray(gray), _as_rgb(gray)
    elif kind == "one bit":
        image = Image.fromarray(gray).convert("1")
        wanted = _as_rgb(np.asarray(image).astype(np.uint8) * 255)
    elif kind == "16 bit":
        image, wanted = Image.fromarray(gray.astype(np.uint16) * 257), _as_rgb(gray)
    elif kind == "float":
        path = folder / "float.tif"
        image, wanted = Image.fromarray(gray.astype(np.float32)), _as_rgb(gray)
    elif kind == "palette":
        image, wanted = _palette()
    elif kind == "transparent palette":
        image, wanted = _palette()
        options["transparency"] = place = int(np.asarray(image)[0, 0])
        wanted = np.where(np.asarray(image)[..., None] == place, np.uint8(255), wanted)
    elif kind == "RGBA":
        image, wanted = Image.fromarray(np.dstack([square, alpha])), seen
    elif kind == "gray with alpha":
        image = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
        wanted = _as_rgb(np.where(alpha == 0, np.uint8(255), gray))
    elif kind == "CMYK":
        path = folder / "cmyk.tif"
        ink = np.dstack([255 - square, np.zeros((40, 44), np.uint8)])
        image, wanted = Image.fromarray(ink, "CMYK"), square
    elif kind.startswith("EXIF"):
        orientation = int(kind.split()[1])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
        stored = {3: np.rot90(square, 2), 6: np.rot90(square, 1), 8: np.rot90(square, -1), 2: square[:, ::-1]}
        image, wanted = Image.fromarray(np.ascontiguousarray(stored[orientation])), square
    else:
        path = folder / f"picture.{kind}"
        image, wanted = Image.fromarray(square), square
        options = {"lossless": True} if kind == "webp" else {}
    image.save(path, **options)
    return path, wanted


@pytest.mark.parametrize(
    "kind",
    [
        *("gray", "one bit", "16 bit", "float", "palette", "transparent palette", "RGBA", "gray with alpha"),
        *("CMYK", "EXIF 2", "EXIF 3", "EXIF 6", "EXIF 8", "webp", "bmp", "tif", "ppm"),
    ],
)
def test_a_picture_is_judged_as_a_person_sees_it(model: LoadedModel, kind: str, tmp_path: Path) -> None:
    path, wanted = save_kind(kind, tmp_path)
    Image.fromarray(wanted).save(tmp_path / "plain.png")
    said, plain = numbers(model, [path, tmp_path / "plain.png"])
    assert said == plain


def test_a_file_may_be_called_anything(
    model: LoadedModel, images: list[Path], alone: dict[Path, Any], tmp_path: Path
) -> None:
    for name in ("no suffix", "text.txt", "猫.png", "a\nb.png", "[1].png", "-x", "ü\u0308.PNG"):
        shutil.copy(images[3], tmp_path / name)
        assert find_images([str(tmp_path / name)]) == [tmp_path / name]
        assert numbers(model, [tmp_path / name]) == [alone[images[3]]]


def test_tiny_and_thin_pictures_are_judged(model: LoadedModel, tmp_path: Path) -> None:
    for size in ((1, 1), (1, 200), (200, 1), (3, 2)):
        Image.new("RGB", size, "red").save(tmp_path / f"{size}.png")
    assert not [each.error for each in model.predict(sorted(tmp_path.iterdir())) if each.error]


def test_a_thin_picture_is_no_bomb(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shorter side is brought to the crop, and the longer one grows along: 1 × 80,000 to 36 × 2,880,000."""
    areas: list[int] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(image, size if areas[-1] < 10**7 else (36, 36), *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    Image.new("RGB", (1, 80_000)).save(tmp_path / "thin.png")
    model.predict([tmp_path / "thin.png"])
    assert max(areas, default=0) <= Image.MAX_IMAGE_PIXELS  # type: ignore[operator]


# Files that are no pictures


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image that Pillow knows"),
        (b"\x89PNG\r\n\x1a\n", "is not an image"),
        (png(30, 30), "cannot"),
        (png(50_000, 50_000), "cannot be decoded (Image size (2500000000 pixels) exceeds limit"),
        (b"GIF89a" + b"\xff" * 30, "is not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "is not an image"),
        (pickle.dumps({"x": 1}), "is not an image"),
    ],
    ids=["empty", "text", "signature", "no rows", "bomb", "gif", "jpeg", "pickle"],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(
    model: LoadedModel, images: list[Path], content: bytes, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    bad, good = model.predict([path, images[0]])
    assert bad.top == ()
    assert bad.error.startswith(error)
    assert "\n" not in bad.error
    assert not good.error


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_half_a_picture_is_none(model: LoadedModel, kind: str, share: float, tmp_path: Path) -> None:
    whole = io.BytesIO()
    draw("red", 1, (200, 160)).save(whole, kind)
    path = tmp_path / "half"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    (said,) = model.predict([path])
    assert said.error
    assert "\n" not in said.error


def test_a_picture_above_the_limit_is_left_out(
    model: LoadedModel, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    (said,) = model.predict([images[0]])
    assert "decompression bomb" in said.error


def test_files_that_cannot_be_opened_are_told(
    model: LoadedModel, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked.png"
    shutil.copy(images[0], locked)
    whole = Image.open

    def careful(file: Any, *rest: Any) -> Any:
        if file == locked:
            raise PermissionError(13, "Permission denied", str(file))
        return whole(file, *rest)

    monkeypatch.setattr(Image, "open", careful)
    said = model.predict([locked, tmp_path, tmp_path / "gone.png", "a\0b", "x" * 300, "/dev/zero", images[0]])
    assert [each.error for each in said] == [
        "cannot be read (Permission denied)",
        "cannot be read (Is a directory)",
        "cannot be read (No such file or directory)",
        "cannot be decoded (embedded null byte)",
        "cannot be read (File name too long)",
        "is empty",
        "",
    ]


def test_no_picture_among_the_files(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    (tmp_path / "b.png").write_bytes(b"")
    status, out, err = command(str(tmp_path), "--json")
    assert (status, json.loads(out)) == (2, [])
    assert [line for line in err.splitlines() if line.startswith("runner: ")] == [
        f"runner: {tmp_path / 'a.png'} is not an image that Pillow knows",
        f"runner: {tmp_path / 'b.png'} is empty",
        "runner: None of 2 files is an image that can be read.",
    ]


def test_a_bad_file_of_an_odd_name_takes_one_line(
    command: Command, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a\nb\x1b[31m.png").write_bytes(b"no")
    _, _, err = command(str(tmp_path), str(images[0]), "--json")
    (line,) = [line for line in err.splitlines() if "is not an image" in line]
    assert line.startswith("runner: ")
    assert "\x1b" not in line


# What is said


def test_the_newest_finished_run_is_taken_and_named(
    command: Command, client: Any, run: Any, images: list[Path]
) -> None:
    failed = client.create_run(run.info.experiment_id, run_name="failed").info.run_id
    client.set_tag(failed, MODEL_TAG, "m-none")
    client.set_terminated(failed, "FAILED")
    running = client.create_run(run.info.experiment_id, run_name="running").info.run_id
    try:
        status, out, err = command(str(images[0]))
    finally:
        client.delete_run(failed)
        client.delete_run(running)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"run {run.info.run_id[:8]} (small, {run.info.run_name}), 3 classes"
    assert out.splitlines()[2] == str(images[0])


def test_text_tells_the_likeliest_first(command: Command, alone: dict[Path, Any], images: list[Path]) -> None:
    _, out, _ = command(str(images[0]), "--top", "2")
    wanted = [f"  {100 * value:6.2f} %  {name}" for name, value in alone[images[0]][:2]]
    assert out.splitlines()[3:] == wanted


@pytest.mark.parametrize(("top", "told"), [(1, 1), (3, 3), (99, 3)])
def test_json_holds_what_the_model_said(
    command: Command, alone: dict[Path, Any], images: list[Path], top: int, told: int
) -> None:
    _, out, _ = command(str(images[5]), str(images[2]), "--json", "--top", str(top))
    assert json.loads(out) == [
        {
            "path": str(path),
            "top": [{"class": name, "probability": value} for name, value in alone[path][:told]],
        }
        for path in (images[5], images[2])
    ]


def test_tables_survive_odd_names(
    command: Command, alone: dict[Path, Any], images: list[Path], tmp_path: Path
) -> None:
    odd = tmp_path / 'a,"b"\n猫.png'
    shutil.copy(images[0], odd)
    _, out, _ = command(str(odd), "--csv", "--top", "1")
    name, value = alone[images[0]][0]
    assert list(csv.reader(io.StringIO(out, newline=""))) == [
        ["path", "rank", "class", "probability"],
        [str(odd), "1", name, f"{value:.6f}"],
    ]


@pytest.mark.parametrize("way", ["--json", "--csv", "--top=1"])
def test_names_that_are_no_text_are_told(
    root: str, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(images[0], odd)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict"))
    assert main.main(["predict", str(odd), way, "--tracking.root", root]) == 0


def test_probabilities_are_a_softmax(model: LoadedModel, images: list[Path]) -> None:
    for each in model.predict(images, 9):
        values = [guess.probability for guess in each.top]
        assert sum(values) == pytest.approx(1, abs=1e-12)
        assert values == sorted(values, reverse=True)


# Which model


def test_a_run_that_kept_no_model_is_used_by_its_checkpoint(
    client: Any,
    run: Any,
    root: str,
    checkpoints: Path,
    images: list[Path],
    alone: dict[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that was stopped, or tracks no model."""
    settings = client.download_artifacts(run.info.run_id, "experiment.yaml", str(tmp_path))
    stopped = client.create_run(run.info.experiment_id, run_name="stopped").info.run_id
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "fetched"))
    (tmp_path / "fetched").mkdir()
    try:
        client.log_artifacts(stopped, str(checkpoints), "checkpoints")
        with pytest.raises(UserError, match=r"has no experiment\.yaml"):
            load_model("stopped", root, "cpu")
        client.log_artifact(stopped, settings)
        client.set_terminated(stopped, "KILLED")
        opened = load_model("stopped", root, "cpu")
    finally:
        client.delete_run(stopped)
    assert f"run {stopped[:8]} (small, stopped), epoch" in opened.source
    assert numbers(opened, images[:3]) == [alone[path] for path in images[:3]]
    assert list((tmp_path / "fetched").iterdir()) == [], "what was fetched is cleared away"


def test_a_run_without_anything_is_refused(
    command: Command, client: Any, run: Any, images: list[Path]
) -> None:
    bare = client.create_run(run.info.experiment_id, run_name="bare").info.run_id
    try:
        for reference in (bare, bare[:8], "bare", "latest"):
            sentence = refused(command(str(images[0]), "--model", reference))
            assert sentence == (
                f"Run {bare[:8]} (bare, RUNNING) has no model and no checkpoint; choose another run."
            )
    finally:
        client.delete_run(bare)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("small@2", "The model 'small' has no '2'; it has the aliases champion, and versions by number."),
        ("small@", "The model 'small' has no ''; it has the aliases champion, and versions by number."),
        ("models:/smal@champion", "There is no registered model 'smal' (did you mean 'small'?);"),
        ("@champion", "There is no registered model ''; there are small;"),
        ("zzz", "There is no run 'zzz';"),
        ("nowhere/best.safetensors", "There is no nowhere/best.safetensors;"),
        ("best.safetensors", "There is no best.safetensors;"),
        ("a" * 300, "There is no"),
        ("~nobody-at-all/x", "~nobody"),
    ],
    ids=lambda text: text[:25],
)
def test_models_that_are_not_there(
    command: Command, images: list[Path], reference: str, sentence: str
) -> None:
    assert sentence in refused(command(str(images[0]), "--model", reference))


def test_a_folder_without_a_model_is_refused(command: Command, images: list[Path], tmp_path: Path) -> None:
    assert "holds no model (model.json) and no checkpoint" in refused(
        command(str(images[0]), "--model", str(tmp_path))
    )


class Payload:
    """Pickled code: it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", ["best.pth", "best.pt", "best.safetensors", "model.pkl"])
def test_pickled_code_is_not_run(command: Command, images: list[Path], name: str, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(mark)))
    sentence = refused(command(str(images[0]), "--model", str(tmp_path / name)))
    assert ("is damaged" if name == "best.safetensors" else "pickled ones are not opened") in sentence
    assert not mark.exists()


@pytest.fixture
def copied(checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "copied"))


def test_a_checkpoint_needs_its_own_frozen_file(
    model: LoadedModel, copied: Path, command: Command, images: list[Path], alone: dict[Path, Any]
) -> None:
    best, frozen = copied / "best.safetensors", copied / checkpoint.FROZEN
    opened = load_model(best, device="cpu")
    assert numbers(opened, images[:1]) == [alone[images[0]]]
    network = checkpoint.load(best).network
    network.get_parameter("features.0.bias").data[0] += 1e-3
    frozen.unlink()
    sentence = refused(command(str(images[0]), "--model", str(best)))
    assert sentence == f"There is no {frozen}; a checkpoint needs frozen.safetensors beside it."
    checkpoint.save_frozen(network, copied)
    sentence = refused(command(str(images[0]), "--model", str(best)))
    assert sentence == f"{frozen} is not the one that best.safetensors was trained on; restore that one."


def test_the_frozen_file_is_no_model(copied: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint of this version"):
        load_model(copied / checkpoint.FROZEN, device="cpu")


def test_a_checkpoint_whose_use_is_not_whole_is_refused(copied: Path) -> None:
    kept = checkpoint.load(copied / "best.safetensors")
    frozen = checkpoint.frozen_digest(kept.network)
    checkpoint.save(kept.network, copied / "best.safetensors", 1, {}, frozen, {"name": "small"})
    with pytest.raises(UserError):
        load_model(copied / "best.safetensors", device="cpu")
