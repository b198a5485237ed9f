"""The contact sheet shows the views that a training sees, and what was drawn for each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUIET
from pictures import draw
from PIL import Image

from runner.cli import augment, main
from runner.config.augment_schema import AugmentConfig
from runner.config.parser import parse
from runner.data.contact_sheet import spread_over_classes
from runner.data.images import Images
from runner.data.manifest import scan_dataset
from runner.data.transforms import ViewTransform
from runner.data.view_parameters import described_view

EVERYTHING = AugmentConfig(
    resize=64,
    crop=48,
    flip=0.5,
    brightness=0.2,
    contrast=0.1,
    saturation=0.3,
    hue=0.1,
    policy="randaugment",
    erasing=0.5,
)


def described(settings: AugmentConfig, view: int) -> str:
    return "\n".join(described_view(ViewTransform(settings, 0), draw("red", 0), "content", view)[1])


def test_the_view_is_that_of_training_before_and_after() -> None:
    transform = ViewTransform(EVERYTHING, 3)
    for view in range(6):
        usual = transform(draw("red", 1), "content", view)
        shown, words = described_view(transform, draw("red", 1), "content", view)
        assert torch.equal(shown, usual)
        assert torch.equal(transform(draw("red", 1), "content", view), usual)
        assert len(words) >= 8, words


def test_what_was_drawn_is_true() -> None:
    """Of a flat picture: the crop's area, the mirroring and the erased box can be measured."""
    left = Image.new("RGB", (80, 80), "white")
    left.paste((0, 0, 0), (0, 0, 40, 80))
    settings = AugmentConfig(
        resize=80,
        crop=80,
        scale=(1, 1),
        ratio=(1, 1),
        flip=0.5,
        rotation=0,
        erasing=0.5,
        interpolation="nearest",
    )
    seen = set()
    for view in range(12):
        pixels, words = described_view(ViewTransform(settings, 0), left, "content", view)
        assert words[0] == "crop of 100%, 1.00 : 1"
        erased = (pixels == torch.tensor([124, 116, 104])[:, None, None]).all(0)
        size = [re.fullmatch(r"erased (\d+) × (\d+) px", word) for word in words]
        boxes = [(int(each[1]), int(each[2])) for each in size if each]
        assert [(int(erased.any(0).sum()), int(erased.any(1).sum()))] * bool(erased.any()) == boxes
        corner = pixels[:, 0, 0].tolist()
        if not erased[0, 0]:
            assert ("mirrored" in words) == (corner == [255, 255, 255])
        seen |= {("mirrored" in words, bool(boxes))}
    assert len(seen) == 4, "mirrored or not, erased or not"


def test_operations_and_factors_are_named() -> None:
    texts = [described(EVERYTHING, view) for view in range(20)]
    assert all(
        re.search(r"brightness × [01]\.\d\d\ncontrast × .*\nsaturation × .*\nhue [+-]0\.\d\d", each)
        for each in texts
    )
    assert all(re.search(r"rotated -?\d+\.\d°", each) for each in texts)
    assert any("Solarize" in each for each in texts)
    trivial = AugmentConfig(resize=64, crop=48, rotation=0, policy="trivialaugment")
    assert len({described(trivial, view).splitlines()[-1] for view in range(20)}) > 5


def test_images_are_of_different_classes(words: list[str]) -> None:
    entries = scan_dataset(parse(words)[0], QUIET).split(parse(words)[0]).select("train")
    assert [each.label for each in spread_over_classes(entries, 3)] == ["blue", "green", "red"]
    assert len(spread_over_classes(entries, 7)) == 7
    assert len(spread_over_classes(entries, 1000)) == len(entries)
    assert isinstance(spread_over_classes(entries, 2), Images)


def test_the_command_draws_a_row_for_each_image(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert (
        augment.main(
            [*words, "--augment.views", "fresh", "--images", "2", "--views", "3", "--show", str(sheet)]
        )
        == 0
    )
    assert "3 views of each of 2 images" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (pixels.std(2) > 10).mean() > 0.2, "colored pictures"
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--augment.views", "none"), "augment.views is none: the images are not augmented"),
        (("--show", "no/such/folder/sheet.png"), "There is no folder no/such/folder"),
        (("--views", "0"), "--views"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(
    more: tuple[str, ...], reason: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["augment", *words, *more]) == 2
    assert reason in capsys.readouterr().err
