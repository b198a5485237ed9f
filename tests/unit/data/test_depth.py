"""Gray values of more than 8 bits: one white for all images of an experiment, in training and in prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from loaded import INFERENCE
from PIL import Image

from runner.config.augment_schema import AugmentConfig
from runner.config.schema import Experiment
from runner.data.manifest import build_manifest
from runner.data.transforms import EVALUATION_VIEW, ViewTransform
from runner.portable.images import open_rgb
from runner.serving import packaging
from runner.serving.predictor import LoadedModel
from runner.training.setup import prepare
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]
ALL = {"uint16": np.uint16, "int32": np.int32, "float": np.float32}


def save_gray(path: Path, kind: str, largest: float, number: int = 0) -> Path:
    """A gray picture whose values go from 0 to `largest`."""
    values = np.random.default_rng(number).random((12, 16)) * largest
    values[0, :2] = 0, largest
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(ALL[kind])).save(path)
    return path


@pytest.fixture
def gray(tmp_path: Path) -> Callable[..., str]:
    """Makes a folder of two classes of twelve pictures of a type; the second class is darker."""

    def draw(kind: str, largest: float) -> str:
        for label, factor in (("bright", 1.0), ("dark", 0.5)):
            for number in range(12):
                path = tmp_path / "gray" / label / f"{kind} {number}.tiff"
                save_gray(path, kind, largest * factor, number + (12 if label == "dark" else 0))
        return str(tmp_path / "gray")

    return draw


@pytest.mark.parametrize(
    ("kind", "largest", "depth"),
    [
        *(("uint16", 65535, None), ("int32", 255, 8), ("int32", 65535, 16), ("int32", 2**31 - 200, 32)),
        *(("float", 1, 1), ("float", 255, 8), ("float", 65535, 16)),
    ],
)
def test_the_range_of_all_images_decides_what_is_white(
    make: Make, silent: Terminal, gray: Callable[..., str], kind: str, largest: float, depth: int | None
) -> None:
    root = gray(kind, largest)
    for _ in range(2):  # the second time from the cache of the scan
        manifest = build_manifest(make("--data.root", root), silent)
        assert manifest.depth == depth
    brightest = np.asarray(open_rgb(Path(root, "bright", f"{kind} 0.tiff"), depth=depth)).max()
    darker = np.asarray(open_rgb(Path(root, "dark", f"{kind} 0.tiff"), depth=depth)).max()
    assert brightest == (127 if depth == 32 else 255)
    assert darker in (brightest // 2, brightest // 2 + 1)
    said = [remark for remark in manifest.remarks if "gray values" in remark]
    assert bool(said) == (depth is not None), "a chosen white is said"


@pytest.mark.parametrize(
    ("kind", "largest", "bits"), [("uint16", 4095, 12), ("int32", 4095, 12), ("float", 300, 9)]
)
def test_a_suspicious_range_is_said_with_the_setting(
    make: Make, silent: Terminal, gray: Callable[..., str], kind: str, largest: float, bits: int
) -> None:
    root = gray(kind, largest)
    (remark,) = build_manifest(make("--data.root", root), silent).remarks
    assert f"from 0 to {largest:,}" in remark
    assert remark.endswith(f"so that they are dark; if they have {bits} bits, set data.depth={bits}")
    words = ("--data.root", root, "--data.depth", str(bits))
    assert build_manifest(make(*words), silent).remarks == ()
    image = open_rgb(Path(root, "bright", f"{kind} 0.tiff"), depth=bits)
    assert np.asarray(image).max() in (255, round(255 * largest / (2**bits - 1)))
    (remark,) = build_manifest(make(*words[:-1], "4"), silent).remarks
    assert "those above 15 are cut off" in remark


def test_infinite_values_become_black_or_white_and_nan_is_refused(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.2, 1.0, np.inf, -np.inf, -3.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.asarray(open_rgb(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 51, 255, 255, 0, 0]
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match="NaN"):
        open_rgb(tmp_path / "b.tiff")


def test_an_infinite_value_does_not_hide_the_range(
    make: Make, silent: Terminal, gray: Callable[..., str]
) -> None:
    root = gray("float", 1)
    values = np.full((12, 16), 0.5, np.float32)
    values[0, 0] = np.inf
    Image.fromarray(values).save(Path(root, "bright", "infinite.tiff"))
    assert build_manifest(make("--data.root", root), silent).depth == 1


def test_values_that_no_depth_holds_are_to_be_scaled(
    make: Make, silent: Terminal, gray: Callable[..., str]
) -> None:
    (remark,) = build_manifest(make("--data.root", gray("float", 3e38)), silent).remarks
    assert remark.endswith("those above 4,294,967,295 are cut off; scale them")


@pytest.mark.parametrize("others", [False, True])
def test_images_without_a_finite_value_are_said(
    make: Make, silent: Terminal, gray: Callable[..., str], others: bool
) -> None:
    root = Path(gray("uint16" if others else "float", 1000 if others else 1))
    paths = [root / "dark" / "infinite.tiff"] if others else sorted(root.rglob("*.tiff"))
    for number, path in enumerate(paths):  # each with another content
        values = np.full((12, 16), np.inf, np.float32)
        values[0, : number % 16] = values[1, : number // 16] = -np.inf
        Image.fromarray(values).save(path)
    remarks = build_manifest(make("--data.root", str(root)), silent).remarks
    count = "1 floating-point image" if others else "24 floating-point images"
    assert any(remark.startswith(f"no value is finite in {count}:") for remark in remarks)
    assert not any("inf " in remark for remark in remarks)


def test_values_up_to_1_beside_others_are_refused(
    make: Make, silent: Terminal, gray: Callable[..., str]
) -> None:
    gray("uint16", 65535)
    root = gray("float", 1)
    with pytest.raises(UserError, match=r"values up to 1 and stand beside 16-bit images"):
        build_manifest(make("--data.root", root), silent)
    assert build_manifest(make("--data.root", root, "--data.depth", "16"), silent).depth == 16


def test_negative_values_are_said(make: Make, silent: Terminal, gray: Callable[..., str]) -> None:
    root = gray("float", 1)
    Image.fromarray(np.full((12, 16), -0.5, np.float32)).save(Path(root, "dark", "negative.tiff"))
    remarks = build_manifest(make("--data.root", root), silent).remarks
    assert remarks[-1] == "gray values from -0.5 to 1 in 25 floating-point images: negative ones become black"


def test_a_depth_of_more_than_32_bits_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"data\.depth must be auto or a whole number from 1 to 32"):
        make("--data.depth", "33")


def test_views_of_another_depth_have_another_recipe(tmp_path: Path) -> None:
    settings = AugmentConfig(resize=36, crop=32)
    transforms = [ViewTransform(settings, 0, depth) for depth in (None, 8, 12)]
    recipes = [str(transform.recipe(view)) for transform in transforms for view in (EVALUATION_VIEW, 0)]
    assert len(set(recipes)) == 6
    assert "depth" not in recipes[0], "features of other images stay valid"


def test_a_trained_model_predicts_with_the_same_white(
    make: Make, silent: Terminal, gray: Callable[..., str], accelerator: Accelerator, tmp_path: Path
) -> None:
    root = gray("float", 65535)
    setup = prepare(make("--data.root", root, "--model.weights", "null"), accelerator, silent)
    assert setup.experiment.data.depth == 16
    seen = next(setup.loader.batches(setup.manifest.entries, EVALUATION_VIEW, [[14]]))
    inference = packaging.inference_settings(setup.experiment)
    classifier = packaging.to_classifier(
        setup.model, packaging.describe(setup.model, inference, epoch=1, val={}), "cpu"
    )
    path = Path(root, setup.manifest.entries[14].path)
    assert torch.equal(classifier.load_image(path), seen[0])
    model = LoadedModel(classifier, "a model")
    by_path, in_memory = model.predict([path, Image.open(path)])
    assert by_path.top == in_memory.top
    dim = save_gray(tmp_path / "dim.tiff", "float", 200)
    assert classifier.load_image(dim).max() <= 1, "not by the range of the image"
    del inference["depth"]
    assert inference.keys() == INFERENCE.keys()
