"""Images that are named without a flag: `runner train path/to/images`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli.main import main
from runner.config.images_argument import dataset_name
from runner.config.parser import parse
from runner.study.options import make_plan
from runner.study.options import parse as parse_study

Refusal = Callable[..., str]


@pytest.fixture
def images(tmp_path: Path) -> str:
    (tmp_path / "birds" / "owl").mkdir(parents=True)
    return str(tmp_path / "birds")


@pytest.mark.parametrize("place", [0, 2, 3, 5])
def test_a_path_stands_anywhere_for_the_images(place: int, images: str) -> None:
    flags = ["--lr", "0.01", "--train.batch-size=5", "--seed", "3"]
    experiment = parse([*flags[:place], images, *flags[place:]])[0]
    assert experiment == parse([*flags, "--data.root", images, "--data.kind", "folder"])[0]
    assert (experiment.name, experiment.data.root) == ("birds", images)
    assert experiment.model.weights == "VGG16_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize("switch", ["--dry-run", "--dry_run", "--smoke"])
def test_a_path_may_follow_a_switch(switch: str, images: str) -> None:
    experiment, options = parse([switch, images])
    assert experiment.data.root == images
    assert options.dry_run == (switch != "--smoke")
    assert not parse(["--dry-run", "false", images])[1].dry_run


def test_a_path_may_follow_resume_only_behind_its_run(images: str) -> None:
    experiment, options = parse(["--resume", "auto", images])
    assert (options.resume, experiment.data.root) == ("auto", images)


def test_a_path_goes_with_an_experiment_file(images: str, tmp_path: Path) -> None:
    """The images are those of a folder, whatever the file is about; an explicit kind counts."""
    experiment = parse([images, "--config", "caltech101-pooled"])[0]
    assert (experiment.data.kind, experiment.data.root, experiment.name) == ("folder", images, "birds")
    assert experiment.optim == parse(["--config", "caltech101-pooled", "--data.root", "x"])[0].optim
    assert parse([images, "--data.kind", "caltech101"])[0].data.kind == "caltech101"
    own = tmp_path / "own.yaml"
    own.write_text("name: mine\ndata: {kind: digits}\n")
    assert parse(["--config", str(own), images])[0].name == "mine"


def test_a_study_takes_a_path(images: str) -> None:
    for words in ([images, "--study", "s"], ["--study", "s", "--lr", "0.001", images, "--trials", "3"]):
        plan = make_plan(*parse_study(words), checked=False)
        assert (plan.baseline.data.root, plan.baseline.data.kind) == (images, "folder")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("birds.zip", "birds"),
        ("birds.tar", "birds"),
        ("birds.tar.gz", "birds"),
        ("v1.2.TGZ", "v1.2"),
        ("birds.zip/", "birds.zip"),
        ("v1.2/", "v1.2"),
    ],
)
def test_a_dataset_is_called_as_its_folder_or_archive(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.touch()
    assert dataset_name(str(path)) == expected


def test_help_says_where_images_stand(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], [images]):
        with pytest.raises(SystemExit):
            parse([*words, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "usage: runner train [IMAGES]" in text
        assert "the same as --data.root IMAGES --data.kind folder" in text
        assert f"defaults below are those of {'folder' if words else 'quickstart'}.yaml" in text


# Mistakes


def test_a_second_path_is_refused(images: str, refusal: Refusal) -> None:
    assert "only one place of images" in refusal(images, images)
    assert "Unexpected word '4'" in refusal("--epochs", "3", images, "4")


def test_a_path_beside_data_root_is_refused(images: str, refusal: Refusal) -> None:
    assert f"named twice, as {images} and as --data.root x" in refusal(images, "--data.root", "x")


def test_a_path_without_anything_suggests_what_is_near(images: str, refusal: Refusal) -> None:
    assert "There is no folder or archive ''" in refusal("")
    assert "did you mean" not in refusal("/nowhere/at/all")
    assert f"(did you mean {images!r}?)" in refusal(images.replace("birds", "brids"))
    assert "settings as --name value" in refusal("train.epochs=3")
    assert "is a URL" in refusal("s3://bucket/images")


@pytest.mark.parametrize("word", ["caltech101-pooled", "folder", "experiments/folder.yaml", "my.yml"])
def test_an_experiment_is_not_a_path_of_images(word: str, refusal: Refusal) -> None:
    assert f"write --config {word} " in refusal(word)


def test_an_unknown_flag_is_named_before_its_value(refusal: Refusal) -> None:
    assert "'train.epoch'" in refusal("--train.epoch", "3", "elsewhere")


def test_a_path_without_a_verb_is_refused_with_the_verb(
    images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([images]) == 2
    assert f"to train on the images in it, write train {images}." in capsys.readouterr().err
