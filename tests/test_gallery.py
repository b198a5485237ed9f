"""The gallery: the same few validation images at a run's epochs, some of them wrong, as MLflow's stepped pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw
from helpers import CLASSES, VAL, Make, Recorder, checkpoint_content, comparable
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from runner.data.manifest import Entry
from runner.explain import cam, overlay
from runner.explain.gallery import Gallery, select_images
from runner.models.network import Network
from runner.training import run
from runner.training.loop import EpochResult
from runner.training.run import RunResult

Train = Callable[..., tuple[run.RunResult, Recorder]]
NAME = re.compile(
    r"images/gallery~(?P<number>\d+) (?P<label>.+)\+step\+(?P<step>\d+)\+timestamp\+(?P<time>\d+)"
    r"\+(?P<unique>[0-9a-f-]{36})(?P<end>\.png|\+compressed\.webp)"
)
"""As MLflow's page takes an image's name apart."""


@pytest.fixture
def gallery_of(make: Make, train: Train) -> Callable[..., tuple[RunResult, Recorder, list[dict[str, str]]]]:
    """`gallery_of("--tracking.gallery", "4")`: a run's result and records, and the parts of its pictures' names."""

    def start(*words: str) -> tuple[RunResult, Recorder, list[dict[str, str]]]:
        result, tracker = train(make("--schedule.kind", "constant", "--tracking.model", "false", *words))
        names = [name for name in tracker.artifacts if name.startswith("images/")]
        parts = [NAME.fullmatch(name) for name in names]
        assert all(parts), names
        return result, tracker, [each.groupdict() for each in parts if each]

    return start


# Which images


def split(count: int) -> list[Entry]:
    return [Entry(f"c/{place}.png", "c", "val", 1, f"{place * 7919 % 1009:040x}") for place in range(count)]


def judgements(wrong: list[bool]) -> Tensor:
    """n × 3: loss, rank of the true class, predicted class."""
    return torch.tensor([[0.5, float(each), 0.0] for each in wrong], dtype=torch.float64).reshape(-1, 3)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12))
def test_half_of_the_images_are_wrong_where_there_are_so_many(wrong: list[bool], count: int) -> None:
    places = select_images(split(len(wrong)), judgements(wrong), count)
    assert places == sorted(set(places))
    assert len(places) == min(count, len(wrong))
    chosen_wrong, all_wrong = sum(wrong[place] for place in places), sum(wrong)
    if all_wrong >= count // 2 and len(wrong) - all_wrong >= count - count // 2:
        assert chosen_wrong == count // 2
    else:
        assert chosen_wrong in (all_wrong, len(places) - (len(wrong) - all_wrong))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 8), st.randoms())
def test_the_choice_is_of_images_whatever_their_order(wrong: list[bool], count: int, shuffle: Any) -> None:
    entries = split(len(wrong))
    chosen = {entries[place].path for place in select_images(entries, judgements(wrong), count)}
    order = list(range(len(wrong)))
    shuffle.shuffle(order)
    again = select_images(
        [entries[place] for place in order], judgements([wrong[place] for place in order]), count
    )
    assert {entries[order[place]].path for place in again} == chosen


def test_an_image_that_got_no_answer_is_wrong() -> None:
    judged = judgements([False] * 6)
    judged[4, 1] = torch.inf
    assert 4 in select_images(split(6), judged, 2)


# When


def test_pictures_are_drawn_before_training_at_a_settings_epochs_and_of_the_best(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    result, _, names = gallery_of(
        "--tracking.gallery", "3", "--tracking.gallery_every", "2", "--train.epochs", "5"
    )
    epochs = {0, 2, 4, result.best_epoch.number}
    assert {int(each["step"]) for each in names} == epochs
    assert len(names) == 3 * 2 * len(epochs), "none is drawn twice"
    of_step: dict[str, list[str]] = {}
    for each in names:
        of_step.setdefault(each["step"], []).append(f"{each['number']} {each['label']}")
    assert len({tuple(sorted(each)) for each in of_step.values()}) == 1, "the same images each time"


def test_pictures_are_of_the_start_and_the_best_epoch_where_no_other_is_wanted(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    result, _, names = gallery_of(
        "--tracking.gallery", "2", "--tracking.gallery_every", "0", "--train.epochs", "2"
    )
    assert [each["step"] for each in names] == ["0"] * 4 + [str(result.best_epoch.number)] * 4


def blank(view: Tensor, found: np.ndarray, above: str, about: str, path: Path) -> None:
    """In place of a picture: drawing takes a quarter of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(path)


@pytest.mark.parametrize(
    ("count", "every", "epochs"), [(3, 10, [10, 20, 30]), (3, 1, list(range(1, 31))), (3, 0, []), (0, 10, [])]
)
def test_some_epochs_are_due(make: Make, count: int, every: int, epochs: list[int]) -> None:
    experiment = make("--tracking.gallery", str(count), "--tracking.gallery_every", str(every))
    pictures: Any = SimpleNamespace(ready=SimpleNamespace(experiment=experiment))
    assert [each for each in range(1, 31) if Gallery.due(pictures, SimpleNamespace(number=each))] == epochs  # type: ignore[arg-type]


# What


def test_pictures_are_pictures_one_to_open_and_one_to_show(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: dict[str, str] = {}
    monkeypatch.setattr(Recorder, "tags", lambda _, values: tags.update(values))
    _, tracker, names = gallery_of("--tracking.gallery", "2", "--train.epochs", "1")
    assert sorted(each["end"] for each in names) == ["+compressed.webp"] * 4 + [".png"] * 4
    assert len({each["unique"] for each in names}) == 4, "of two images at two steps"
    for name in tracker.artifacts:
        if name.startswith("images/"):
            with Image.open(tracker.folder / name) as picture:
                assert picture.format == ("PNG" if name.endswith(".png") else "WEBP")
                assert min(picture.size) > 300
                picture.load()
    assert list(tracker.folder.rglob("*.partial")) == []
    assert tags["mlflow.loggedImages"] == "True", "MLflow's page looks for that"


def test_pictures_bear_the_names_that_mlflow_gives_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    names: list[str] = []
    tags: list[tuple[str, object]] = []

    def log_artifact(_self: object, _run: str, path: str, folder: str = "") -> None:
        names.append(f"{folder}/{Path(path).name}")

    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    monkeypatch.setattr(MlflowClient, "set_tag", lambda _, run, key, value, *__: tags.append((key, value)))
    picture = io.BytesIO()
    draw("red", 0).save(picture, "png")
    client = MlflowClient("http://127.0.0.1:1")  # nobody is asked
    client.log_image("r", Image.open(picture), key="gallery/1 red", step=3)
    parts = [NAME.fullmatch(name) for name in names]
    assert [each and (each["number"], each["label"], each["step"]) for each in parts] == [
        ("1", "red", "3")
    ] * 2
    assert [(key, str(value)) for key, value in tags] == [("mlflow.loggedImages", "True")]


def test_titles_say_what_the_network_said(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """True class, predicted class and its probability, as the network was at that step: at step 0 untrained."""
    drawn: list[tuple[Tensor, np.ndarray, str, str]] = []
    steps: list[int] = []

    def keep(view: Tensor, found: np.ndarray, above: str, about: str, path: Path) -> None:
        drawn.append((view, found, above, about))
        blank(view, found, above, about, path)

    draw_step, show = Gallery._draw, Gallery.show

    def watched(self: Gallery, step: int) -> None:
        drawn.clear()
        draw_step(self, step)
        steps.append(step)
        network = self.ready.network.eval()
        fresh = Network(network.architecture, 0, random=True).state_dict()
        assert (step == 0) == all(
            torch.equal(value, fresh[name]) for name, value in network.state_dict().items()
        )
        for (view, found, above, about), place in zip(drawn, self.places, strict=True):
            with torch.no_grad():
                likely = network(view[None]).softmax(1)[0]
            said, true = CLASSES[int(likely.argmax())], CLASSES[self.labels[place]]
            assert above == overlay.title(said, float(likely.max()), true)
            assert about == f"Grad-CAM for {said}"
            assert found.shape == view.shape[-2:] == (32, 32)

    def shown(self: Gallery, epoch: EpochResult) -> None:
        show(self, epoch)
        if steps[-1] == epoch.number:
            wrong = [above.startswith("✗") for _, _, above, _ in drawn]
            assert wrong == [bool(epoch.judged[place, 1] > 0) for place in self.places]

    monkeypatch.setattr("runner.explain.overlay.draw", keep)
    monkeypatch.setattr(Gallery, "_draw", watched)
    monkeypatch.setattr(Gallery, "show", shown)
    gallery_of("--tracking.gallery", "9", "--tracking.gallery_every", "1", "--train.epochs", "2")
    assert steps == [0, 1, 2]


def test_frozen_convolutions_are_run_once(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    activations = cam.activations

    def counting(network: Any, images: Tensor, layer: str) -> Tensor:
        asked.append(len(images))
        return activations(network, images, layer)

    monkeypatch.setattr("runner.explain.cam.activations", counting)
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    words = ("--tracking.gallery", "2", "--tracking.gallery_every", "1", "--train.epochs", "2")
    gallery_of(*words)
    assert asked == [2]


# A run does not notice


@pytest.mark.parametrize("trainable", ["head", "features.18"])
def test_a_run_with_a_gallery_has_the_numbers_of_one_without(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trainable: str
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    words = ("--model.trainable", trainable, "--tracking.gallery_every", "1", "--train.epochs", "2")
    with_it, one, names = gallery_of(*words, "--tracking.gallery", "3")
    without, other, none = gallery_of(*words, "--tracking.gallery", "0")
    assert names
    assert not none
    assert comparable(with_it.history) == comparable(without.history)
    assert (with_it.best, with_it.last) == (without.best, without.last)
    for which in ("best", "last"):
        (tensors, told), (others, told_too) = (
            checkpoint_content(each.folder / "checkpoints" / f"{which}.safetensors") for each in (one, other)
        )
        assert told == told_too
        assert tensors.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in tensors.items())


def test_a_long_class_name_stops_no_run(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    (pictures / "red").rename(pictures / ("red " + "very " * 40 + "much"))
    assert gallery_of("--tracking.gallery", "9", "--train.epochs", "1")[2]


def test_more_images_than_there_are_are_all_whatever_their_class_is_called(
    gallery_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    (pictures / "red").rename(pictures / "猫+step+1%~#")
    (pictures / "blue").rename(pictures / "犬+step+1%~#")
    _, _, names = gallery_of("--tracking.gallery", "100", "--train.epochs", "1")
    assert len({(each["number"], each["label"]) for each in names}) == VAL
    assert sorted({int(each["number"]) for each in names}) == list(range(1, VAL + 1))
    assert all(re.fullmatch(r"[\w .-]+", each["label"], re.ASCII) for each in names)


# A picture


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`drawn(above, about)`: the figure of a picture, after seeing that it became a PNG file."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *words: Any, **named: Any) -> None:
        figures.append(self)
        save(self, *words, **named)

    monkeypatch.setattr(Figure, "savefig", keep)

    def start(above: str = "✓ lamp, 98 %", about: str = "Grad-CAM for lamp") -> Figure:
        view = torch.randint(0, 256, (3, 40, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        found = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
        path = tmp_path / "new folder" / "picture.png"
        overlay.draw(view, found, above, about, path)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
        assert list(path.parent.iterdir()) == [path]
        return figures[-1]

    return start


def test_a_picture_is_the_image_beside_its_overlay_and_a_colour_bar(drawn: Callable[..., Any]) -> None:
    figure = drawn()
    left, right, bar = figure.axes
    assert [len(axes.images) for axes in (left, right)] == [1, 2]
    np.testing.assert_array_equal(left.images[0].get_array(), right.images[0].get_array())
    shade = right.images[1]
    assert shade.get_array().shape == (40, 48)
    assert shade.get_clim() == (0, 1)
    assert 0.3 < shade.get_alpha() < 0.8
    assert bar.get_ylabel() == "Grad-CAM for lamp"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.0", "0.5", "1.0"]
    assert figure.get_suptitle() == "✓ lamp, 98 %"
    assert bar.get_window_extent().x0 > right.get_window_extent().x1 > left.get_window_extent().x1


def test_marks_and_dollar_signs_are_drawn_as_they_are(
    drawn: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    figure = drawn(overlay.title("$a_b$ \\frac", 0.5, "100 %_^{"), "Grad-CAM for $x$ $")
    assert figure.get_suptitle() == "✗ $a_b$ \\frac, 50 %, true: 100 %_^{"
    assert [str(each.message) for each in recwarn if "lyph" in str(each.message)] == []


NAMES = ["lamp", "Northern Bobwhite or Virginia Quail", "a long name of many words " * 3, "x" * 120]


def outside(figure: Figure, text: Any) -> float:
    """Pixels of a text that lie outside of the picture, or on another text."""
    whole, own = figure.bbox, text.get_window_extent()
    return float(max(whole.x0 - own.x0, own.x1 - whole.x1, whole.y0 - own.y0, own.y1 - whole.y1, 0))


@pytest.mark.parametrize("name", NAMES[:3], ids=len)
def test_the_title_fits_into_the_picture(drawn: Callable[..., Any], name: str) -> None:
    figure = drawn(overlay.title(name, 0.61, name), "Grad-CAM")
    assert outside(figure, figure._suptitle) < 2
    own, panel = figure._suptitle.get_window_extent(), figure.axes[0].get_window_extent()
    assert own.y0 >= panel.y1, "it covers no image"


@pytest.mark.parametrize("name", NAMES[1:3], ids=len)
def test_the_colour_bars_label_fits_into_the_picture(drawn: Callable[..., Any], name: str) -> None:
    figure = drawn(overlay.title("lamp", 0.61), f"Grad-CAM for {name}")
    label = figure.axes[2].yaxis.label
    assert outside(figure, label) < 2
    assert not label.get_window_extent().overlaps(figure._suptitle.get_window_extent())


def test_a_long_word_fits_into_the_picture(drawn: Callable[..., Any]) -> None:
    figure = drawn(overlay.title(NAMES[3], 0.61, "lamp"), "Grad-CAM")
    assert outside(figure, figure._suptitle) < 2


@pytest.mark.parametrize(
    ("said", "title"),
    [
        (("lamp", 0.983, "lamp"), "✓ lamp, 98 %"),
        (("lamp", 0.61, "cup"), "✗ lamp, 61 %, true: cup"),
        (("lamp", 1.0), "lamp, 100 %"),
    ],
)
def test_a_title_says_predicted_class_probability_and_true_class(said: Any, title: str) -> None:
    assert overlay.title(*said) == title
