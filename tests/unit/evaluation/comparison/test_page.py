"""The plot of a comparison's curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compared_runs import compared_run
from matplotlib.figure import Figure

from runner.evaluation.comparison.comparison import ComparedRun
from runner.evaluation.comparison.page import draw_curves

Draw = Callable[..., Figure]


@pytest.fixture
def figure_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Draw:
    """`figure_of(run, …)`: the figure that is drawn for these runs."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *args, **options: (drawn.append(args[0]), save(*args, **options))
    )

    def draw(*runs: ComparedRun) -> Figure:
        draw_curves(runs, "$title$", tmp_path / "curves.png")
        return drawn[-1]

    return draw


def test_nothing_overlaps(figure_of: Draw) -> None:
    curves = {"val/top1": [(1, 0.5), (3, 0.7)], "val/loss": [(1, 1.0)]}
    name = f"{'long ' * 30}$x$"
    figure = figure_of(*(compared_run(f"{number:08}", name=name, curves=curves) for number in range(8)))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [figure.legends[0].get_window_extent(renderer), *(axes.get_tightbbox() for axes in figure.axes)]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_eight_runs_are_drawn(figure_of: Draw) -> None:
    curves = {"val/top1": [(1, 0.5)], "val/loss": [(1, 1.0)]}
    figure = figure_of(*(compared_run(str(number), curves=curves) for number in range(11)))
    assert [len(axes.lines) for axes in figure.axes] == [8, 8]
    assert "the first 8 of 11 runs" in figure.get_suptitle()


def test_a_run_without_curves_is_named(figure_of: Draw) -> None:
    figure = figure_of(compared_run("a"), compared_run("b", curves={}))
    assert all("(no curve)" in text.get_text() for text in figure.legends[0].get_texts())
    assert figure.axes[0].texts[0].get_text() == "no points"


def test_a_diverged_run_does_not_hide_the_others(figure_of: Draw) -> None:
    figure = figure_of(
        compared_run("a", curves={"val/loss": [(1, 0.2)]}),
        compared_run("b", curves={"val/loss": [(1, 900.0)]}),
    )
    assert figure.axes[1].get_yscale() == "log"
    assert "log scale" in figure.axes[1].get_ylabel()
