"""The gallery: the same few validation images at several epochs, logged as MLflow's stepped images."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, Recorder, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw
from PIL import Image
from torch import Tensor

from runner.config.schema import TrackingConfig
from runner.data.images import Entry, Images
from runner.explain import cam, overlay
from runner.explain.gallery import Gallery, select_images
from runner.models.transfer_model import TransferModel

NAME = re.compile(
    r"images/gallery~(?P<number>\d+) (?P<label>.+)\+step\+(?P<step>\d+)\+timestamp\+(?P<time>\d+)"
    r"\+(?P<unique>[0-9a-f-]{36})(?P<end>\.png|\+compressed\.webp)"
)
"""How MLflow's page reads an image's name."""
IMAGES = 9


@dataclass
class ImagesInMemory:
    """In place of the loader: one random image per entry, by its digest."""

    def batches(self, entries: Sequence[Entry], view: int, batches: Sequence[range]) -> Iterator[Tensor]:
        for batch in batches:
            yield torch.stack([image_of(entries[index]) for index in batch])


@dataclass
class TaggedRecorder(Recorder):
    """Also remembers tags, and knows artifacts of before an interruption."""

    tags: dict[str, str] = field(default_factory=dict)
    logged_before: tuple[str, ...] = ()

    def set_tags(self, values: dict[str, str]) -> None:
        self.tags.update(values)

    def logged_artifacts(self, prefix: str) -> list[str]:
        return [name for name in self.logged_before if name.startswith(prefix)]


def image_of(entry: Entry) -> Tensor:
    generator = torch.Generator().manual_seed(int(entry.digest, 16) % 2**31)
    return torch.randint(0, 256, (3, 32, 32), generator=generator).to(torch.uint8)


def split(count: int, classes: Sequence[str] = CLASSES) -> Images:
    """A validation split of `count` images, whose order is not that of the digests."""
    labels = [classes[index % len(classes)] for index in range(count)]
    return Images.of(
        Entry(f"{label}/{index}.png", label, "val", 1, f"{index * 7919 % 1009:040x}")
        for index, label in enumerate(labels)
    )


def sample_results(wrong: Sequence[bool]) -> Tensor:
    """n × 3: loss, rank of the true class, predicted class."""
    rows = [[0.5, float(is_wrong), 0.0] for is_wrong in wrong]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


def blank(image: Tensor, found: np.ndarray, title: str, label: str, path: Path) -> None:
    """In place of a picture, because drawing takes a quarter of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def tracker(tmp_path: Path) -> TaggedRecorder:
    return TaggedRecorder(tmp_path / "run")


def gallery(
    tracker: Recorder, model: TransferModel | None = None, entries: Images | None = None, **changes: int
) -> Gallery:
    """A gallery of three images (or `gallery=…`) that draws every 10 epochs (or `gallery_every=…`)."""
    chosen = TrackingConfig(**{"gallery": 3, "gallery_every": 10, **changes})
    model = model or small_model().eval()
    return Gallery(model, entries or split(IMAGES), ImagesInMemory(), chosen, tracker)  # type: ignore[arg-type]


def run_epochs(pictures: Gallery, epochs: int, best: int) -> None:
    """Call a gallery as a run does: after every epoch, and at the end for the best one."""
    results = sample_results([index % 2 == 0 for index in range(IMAGES)])
    for epoch in range(1, epochs + 1):
        if pictures.due(epoch):
            pictures.show(epoch, results)
    pictures.show(best, results)


def logged(tracker: Recorder) -> list[dict[str, str]]:
    """The parts of the names of all logged pictures."""
    matches = [NAME.fullmatch(name) for name in tracker.artifacts]
    assert all(matches), tracker.artifacts
    return [match.groupdict() for match in matches if match]


# Which images


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12))
def test_half_of_the_images_are_misclassified_if_there_are_enough(wrong: list[bool], count: int) -> None:
    indices = select_images(split(len(wrong)), sample_results(wrong), count)
    assert indices == sorted(set(indices))
    assert len(indices) == min(count, len(wrong))
    selected, total = sum(wrong[index] for index in indices), sum(wrong)
    if total >= count // 2 and len(wrong) - total >= count - count // 2:
        assert selected == count // 2
    else:
        assert selected in (total, len(indices) - (len(wrong) - total))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 8), st.randoms())
def test_the_selection_does_not_depend_on_the_order(wrong: list[bool], count: int, shuffle: Any) -> None:
    entries = split(len(wrong))
    selected = {entries[index].path for index in select_images(entries, sample_results(wrong), count)}
    order = list(range(len(wrong)))
    shuffle.shuffle(order)
    shuffled = entries.take(order)
    again = select_images(shuffled, sample_results([wrong[index] for index in order]), count)
    assert {shuffled[index].path for index in again} == selected


def test_an_image_whose_logits_are_not_finite_counts_as_misclassified() -> None:
    results = sample_results([False] * 6)
    results[4, 1] = torch.inf
    assert 4 in select_images(split(6), results, 2)


# When


def test_pictures_are_drawn_before_training_at_due_epochs_and_at_the_best(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    run_epochs(gallery(tracker, gallery_every=2), epochs=5, best=4)
    pictures = logged(tracker)
    assert [picture["step"] for picture in pictures] == ["0"] * 6 + ["2"] * 6 + ["4"] * 6, (
        "4 is not drawn twice"
    )
    of_step: dict[str, list[str]] = {}
    for picture in pictures:
        of_step.setdefault(picture["step"], []).append(f"{picture['number']} {picture['label']}")
    assert len({tuple(sorted(names)) for names in of_step.values()}) == 1, "the same images each time"


def test_without_due_epochs_only_the_start_and_the_best_are_drawn(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    run_epochs(gallery(tracker, gallery=2, gallery_every=0), epochs=4, best=3)
    assert [picture["step"] for picture in logged(tracker)] == ["0"] * 4 + ["3"] * 4


@pytest.mark.parametrize(
    ("count", "every", "epochs"), [(3, 10, [10, 20, 30]), (3, 1, list(range(1, 31))), (3, 0, []), (0, 10, [])]
)
def test_due_epochs(tracker: TaggedRecorder, count: int, every: int, epochs: list[int]) -> None:
    pictures = gallery(tracker, gallery=count, gallery_every=every)
    assert [epoch for epoch in range(1, 31) if pictures.due(epoch)] == epochs


def test_no_picture_is_drawn_if_none_is_wanted(tracker: TaggedRecorder) -> None:
    run_epochs(gallery(tracker, gallery=0, gallery_every=1), epochs=2, best=1)
    assert (tracker.artifacts, tracker.tags) == ([], {})


def test_a_resumed_run_draws_neither_the_start_nor_a_logged_epoch_again(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    run_epochs(gallery(tracker, gallery_every=1), epochs=1, best=1)
    before = tuple(f"images/{Path(name).name}" for name in tracker.artifacts)
    resumed = TaggedRecorder(tracker.folder, logged_before=before)
    pictures = gallery(resumed, gallery_every=1)
    pictures.select([0, 4, 8])
    pictures.show(1, sample_results([]))
    pictures.show(2, sample_results([]))
    labels = {(picture["number"], picture["label"], picture["step"]) for picture in logged(resumed)}
    drawn_before = {(match["number"], match["label"]) for match in map(NAME.fullmatch, before) if match}
    assert {step for _, _, step in labels} <= {"1", "2"}
    assert not {(number, label, "1") for number, label in drawn_before} & labels
    assert len([label for label in labels if label[2] == "2"]) == 3


def test_a_picture_of_which_one_file_is_logged_gets_no_second_name(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    first = gallery(tracker, gallery_every=1)
    run_epochs(first, epochs=1, best=1)
    before = [f"images/{Path(name).name}" for name in tracker.artifacts]
    resumed = TaggedRecorder(tracker.folder, logged_before=tuple(before[:-1]))
    pictures = gallery(resumed, gallery_every=1)
    pictures.select(first.indices)
    pictures.show(1, sample_results([]))
    assert [f"images/{Path(name).name}" for name in resumed.artifacts] == before[-2:]


# What


def test_each_picture_is_a_png_file_and_a_small_webp_file(tracker: TaggedRecorder) -> None:
    run_epochs(gallery(tracker, gallery=2), epochs=1, best=1)
    pictures = logged(tracker)
    assert sorted(picture["end"] for picture in pictures) == ["+compressed.webp"] * 4 + [".png"] * 4
    assert len({picture["unique"] for picture in pictures}) == 4, "of two images at two steps"
    for name in tracker.artifacts:
        with Image.open(tracker.folder / name) as picture:
            assert picture.format == ("PNG" if name.endswith(".png") else "WEBP")
            assert min(picture.size) > 300
            picture.load()
    assert list(tracker.folder.rglob("*.partial")) == []
    assert tracker.tags["mlflow.loggedImages"] == "True", "MLflow's page looks for this tag"


def test_pictures_have_names_like_those_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    names: list[str] = []
    tags: list[tuple[str, object]] = []

    def log_artifact(_self: object, _run: str, path: str, folder: str = "") -> None:
        names.append(f"{folder}/{Path(path).name}")

    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    monkeypatch.setattr(MlflowClient, "set_tag", lambda _, run, key, value, *__: tags.append((key, value)))
    picture = io.BytesIO()
    draw("red", 0).save(picture, "png")
    client = MlflowClient("http://127.0.0.1:1")  # never contacted
    client.log_image("r", Image.open(picture), key="gallery/1 red", step=3)
    matches = [NAME.fullmatch(name) for name in names]
    assert [match and (match["number"], match["label"], match["step"]) for match in matches] == [
        ("1", "red", "3")
    ] * 2
    assert [(key, str(value)) for key, value in tags] == [("mlflow.loggedImages", "True")]


def test_titles_show_the_prediction_of_the_model_at_that_step(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 0 shows the model from before training; afterwards the model has its trained weights again."""
    drawn: dict[str, tuple[Tensor, str, str]] = {}

    def remember(image: Tensor, found: np.ndarray, title: str, label: str, path: Path) -> None:
        assert found.shape == image.shape[-2:] == (32, 32)
        drawn[path.name] = (image, title, label)
        blank(image, found, title, label, path)

    monkeypatch.setattr("runner.explain.overlay.draw", remember)
    untrained, trained = small_model().eval(), small_model().eval()
    pictures = gallery(tracker, trained, gallery=IMAGES)
    with torch.no_grad():
        for parameter in trained.classifier.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    pictures.show(1, sample_results([True] * IMAGES))
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())

    entries = split(IMAGES)
    assert len(drawn) == 2 * IMAGES
    for name, (image, title, label) in drawn.items():
        parts = NAME.fullmatch(f"images/{name}")
        assert parts
        entry = entries[pictures.indices[int(parts["number"]) - 1]]
        assert torch.equal(image, image_of(entry))
        with torch.no_grad():
            probabilities = (untrained if parts["step"] == "0" else trained)(image[None]).softmax(1)[0]
        predicted = CLASSES[int(probabilities.argmax())]
        assert title == overlay.title(predicted, float(probabilities.max()), entry.label)
        assert label == f"Grad-CAM for {predicted}"


@pytest.mark.parametrize(("trainable", "calls"), [("head", 1), ("features.18", 3)])
def test_only_trained_convolutions_are_computed_again(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch, trainable: str, calls: int
) -> None:
    computed: list[int] = []
    activations = cam.activations

    def counting(model: Any, images: Tensor, layer: str) -> Tensor:
        computed.append(len(images))
        return activations(model, images, layer)

    monkeypatch.setattr("runner.explain.cam.activations", counting)
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    model = small_model(trainable=trainable).eval()
    run_epochs(gallery(tracker, model, gallery=2, gallery_every=1), epochs=2, best=2)
    assert computed == [2] * calls


# Names of classes


def test_a_long_class_name_is_shortened(tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    entries = split(IMAGES, ("blue", "green", "red " + "very " * 40 + "much"))
    run_epochs(gallery(tracker, entries=entries, gallery=IMAGES), epochs=1, best=1)
    assert max(len(Path(name).name) for name in tracker.artifacts) <= 255
    assert len(logged(tracker)) == 2 * 2 * IMAGES


def test_all_images_are_shown_if_more_are_wanted_whatever_their_classes_are_called(
    tracker: TaggedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    entries = split(IMAGES, ("猫+step+1%~#", "犬+step+1%~#", "green"))
    run_epochs(gallery(tracker, entries=entries, gallery=100), epochs=1, best=1)
    pictures = logged(tracker)
    assert {int(picture["number"]) for picture in pictures} == set(range(1, IMAGES + 1))
    assert all(re.fullmatch(r"[\w .-]+", picture["label"], re.ASCII) for picture in pictures)
