"""The curves of a run show its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from runner.evaluation.metrics import Scores
from runner.training.curves import draw_curves
from runner.training.results import EpochResult


def epoch_result(
    number: int, top1: float, best: bool, lr_reduced: bool = False, lr: float = 0.01
) -> EpochResult:
    values = {"top1": top1, "top5": 1.0, "balanced_accuracy": top1, "loss": 2 - top1}
    val = Scores(values, images=100, hits1=int(100 * top1), hits5=100)
    return EpochResult(
        number=number,
        train_loss=3 - top1,
        train_top1=top1 / 2,
        val=val,
        lr=lr,
        seconds=1.5,
        images_per_second=100.0,
        best=best,
        lr_reduced=lr_reduced,
    )


HISTORY = [
    epoch_result(1, 0.2, best=True),
    epoch_result(2, 0.6, best=True),
    epoch_result(3, 0.5, best=False, lr_reduced=True),
    epoch_result(4, 0.55, best=False, lr=0.002),
    epoch_result(5, 0.4, best=False, lr_reduced=True, lr=0.002),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test saves, in order."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *words: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def draw(history: list[EpochResult], folder: Path) -> tuple[Path, Path]:
    loss, accuracy = folder / "loss.png", folder / "accuracy.png"
    draw_curves(history, "small", loss, accuracy)
    return loss, accuracy


def test_curves_are_two_pictures(tmp_path: Path) -> None:
    for path in draw(HISTORY, tmp_path):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert 600 <= picture.width <= 2000
            assert 300 <= picture.height <= 1500
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 10, "it is not blank"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "loss.png"]


def test_curves_replace_older_pictures(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_text("old")
    loss, _ = draw(HISTORY, tmp_path)
    assert loss.read_bytes().startswith(b"\x89PNG")


def test_curves_have_titles_and_labels(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(HISTORY, tmp_path)
    loss, accuracy = (figure.axes[0] for figure in drawn)
    assert (loss.get_title(), accuracy.get_title()) == ("small: loss", "small: top-1 accuracy")
    for figure in drawn:
        assert figure.axes[-1].get_xlabel() == "epoch", "below the lowest panel"
        assert all(axes.get_ylabel() for axes in figure.axes)
    assert loss.get_ylabel() == "cross-entropy (nats per image)"
    assert accuracy.get_ylabel() == "top-1 accuracy (%)"
    for axes in (loss, accuracy):
        named = " ".join(text.get_text() for text in axes.get_legend().get_texts())
        assert "training" in named
        assert "validation" in named
        assert "best: epoch 2" in named


def test_curves_show_the_numbers_of_the_history(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(HISTORY, tmp_path)
    loss, accuracy = (figure.axes[0].get_lines() for figure in drawn)
    for lines in (loss, accuracy):
        assert list(lines[0].get_xdata()) == list(lines[1].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(loss[0].get_ydata()) == [each.train_loss for each in HISTORY]
    assert list(loss[1].get_ydata()) == [each.val["loss"] for each in HISTORY]
    assert list(accuracy[0].get_ydata()) == pytest.approx([10, 30, 25, 27.5, 20])
    assert list(accuracy[1].get_ydata()) == pytest.approx([20, 60, 50, 55, 40])
    assert (list(accuracy[2].get_xdata()), list(accuracy[2].get_ydata())) == ([2], pytest.approx([60]))


def test_curves_mark_reductions_of_the_learning_rate(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(HISTORY, tmp_path)
    for figure in drawn:
        upright = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in upright] == [3, 5]
        named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert named.count("learning rate reduced") == 1


def test_curves_without_a_reduction_have_no_label_for_it(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(HISTORY[:2], tmp_path)
    named = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert "learning rate reduced" not in named


def test_curves_of_one_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    for path in draw([epoch_result(1, 0.5, best=True)], tmp_path):
        with Image.open(path) as picture:
            assert picture.width >= 600
    assert [list(figure.axes[0].get_lines()[0].get_xdata()) for figure in drawn] == [[1], [1]]


def test_curves_do_not_change_the_state_of_matplotlib(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw(HISTORY, tmp_path)
    assert pyplot.get_fignums() == before


def test_curves_show_the_learning_rate(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(HISTORY, tmp_path)
    for figure in drawn:
        (line,) = figure.axes[1].get_lines()
        assert list(line.get_ydata()) == [0.01, 0.01, 0.01, 0.002, 0.002]


def test_dollar_signs_in_a_name_are_not_a_formula(tmp_path: Path) -> None:
    """The user chooses the name of a run; a picture must not make a finished run fail."""
    draw_curves(HISTORY, r"a $\frac{$ b", tmp_path / "loss.png", tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
