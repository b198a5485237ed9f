"""Plots of studies and the table of trials, for studies in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from studies import CONDITIONAL, LR, OPTIMIZER, SPACE, Dimension, Space, score

from runner.study.grid import grid_points
from runner.study.plots import StudyPlots, importances, trials_csv, why_unknown
from runner.study.scales import is_log, is_number, scale
from runner.study.trials import to_distribution
from runner.utils.figures import new_figure


def study_of(count: int, space: Space = SPACE, values: Sequence[float] | None = None) -> optuna.Study:
    """A study of complete trials, the first of which is the baseline."""
    study = optuna.create_study(direction="maximize")
    for number in range(count):
        params = space.pick({}, lambda each, number=number: _pick(grid_points(each), number))
        study.add_trial(
            create_trial(
                value=score(params) if values is None else values[number],
                params=params,
                distributions={
                    each.setting: to_distribution(each) for each in space.dimensions if each.setting in params
                },
                user_attrs={"baseline": True} if number == 0 else {},
            )
        )
    return study


def _pick(points: list[Any], number: int) -> Any:
    return points[(number + number // len(points)) % len(points)]


def saved(study: optuna.Study, folder: Path) -> set[str]:
    """Names of the plots, after a look at each."""
    files = StudyPlots(study, "some $study_1", "validation top-1").save_all(folder)
    for path in files:
        with Image.open(path) as image:
            assert image.width > 300
            assert len(image.convert("L").getcolors()) > 2, "something is on it"
    return {path.stem for path in files}


def rows(study: optuna.Study, space: Space = SPACE) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(trials_csv(study.trials, space.settings))))


@pytest.fixture
def default_style() -> Iterator[None]:
    """Matplotlib's default style, whatever other tests have set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def test_a_study_without_complete_trials_has_no_plots(tmp_path: Path) -> None:
    study = study_of(0)
    assert saved(study, tmp_path) == set()
    study.ask()
    assert saved(study, tmp_path) == set()
    assert [row["state"] for row in rows(study)] == ["RUNNING"]


@pytest.mark.parametrize("trials", [1, 2])
def test_a_tiny_study_has_a_plot(trials: int, tmp_path: Path) -> None:
    study = study_of(trials)
    assert "history" in saved(study, tmp_path)
    assert [row["trial"] for row in rows(study)] == [str(number) for number in range(trials)]
    assert not StudyPlots(study, "some", "validation top-1").save_interactive(tmp_path / "page.html")


def test_equal_values_have_a_plot(tmp_path: Path) -> None:
    study = study_of(12, values=[0.5, 0.5 + 1e-12] * 6)
    assert saved(study, tmp_path) == {"history", "slices"}, "nothing that would show differences"
    assert not StudyPlots(study, "some", "validation top-1").save_interactive(tmp_path / "page.html")


def test_importances_are_not_told_by_noise() -> None:
    assert why_unknown(study_of(12, values=[1.0] * 12)) == "all have the same value"
    assert why_unknown(study_of(9)) == "too few"
    assert importances(study_of(9)) == {}
    assert why_unknown(study_of(12)) == ""
    assert importances(study_of(12))


def test_a_contour_needs_two_numbers(tmp_path: Path) -> None:
    switch = Dimension("train.refit", choices=(False, True))
    rates = Dimension("optim.weight_decay", choices=(1e-6, 1e-4, 1e-2))
    assert "contour" not in saved(study_of(12, Space((LR, OPTIMIZER, switch))), tmp_path)
    assert "contour" in saved(study_of(12, Space((LR, OPTIMIZER, rates))), tmp_path)


def test_scales_of_numbers() -> None:
    distribution = CategoricalDistribution
    assert is_number(distribution((1, 2.5)))
    assert is_number(FloatDistribution(0, 1))
    assert not is_number(distribution((False, True)))
    assert not is_number(distribution((1, "auto")))
    assert is_log(distribution((1e-6, 1e-3)))
    assert is_log(FloatDistribution(1, 2, log=True))
    assert not is_log(distribution((1, 100)))
    assert not is_log(distribution((0, 1000)))


@pytest.mark.parametrize("low", [1.1, 3e-5, 1e-6])
@pytest.mark.parametrize("span", [1.05, 3, 30, 100, 1e5, 1e12])
def test_logarithmic_axes_have_few_ticks(low: float, span: float) -> None:
    axes = new_figure(3, 3).subplots()
    axes.scatter([low, low * span], [0, 1])
    scale(axes, "x", FloatDistribution(low, low * span, log=True))
    ticks = list(axes.get_xticks())
    assert 2 <= len(ticks) <= 5
    assert ticks == sorted(set(ticks))
    left, right = axes.get_xlim()
    assert left <= ticks[0] < ticks[-1] <= right


def test_a_study_has_all_plots(tmp_path: Path) -> None:
    study = study_of(16, CONDITIONAL)
    assert saved(study, tmp_path) >= {"history", "importances", "parallel_coordinates", "slices"}
    assert StudyPlots(study, "some", "validation top-1").save_interactive(tmp_path / "page.html")
    assert "plotly" in (tmp_path / "page.html").read_text()
    shares = list(importances(study).values())
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
@pytest.mark.usefixtures("default_style")
def test_plots_leave_the_style_of_matplotlib_unchanged(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    assert "parallel_coordinates" in saved(study_of(8), tmp_path), "Optuna's plot"
    changed = {name for name, value in matplotlib.rcParams.items() if before[name] != value}
    assert changed <= {"backend", "backend_fallback"}, "a backend may be selected, but no style"


@pytest.mark.slow
@pytest.mark.usefixtures("default_style")
def test_our_plots_do_not_have_the_style_of_optunas(tmp_path: Path) -> None:
    """Those of a second report are drawn after Optuna's parallel coordinates of the first one."""
    plots = StudyPlots(study_of(8), "some", "validation top-1")
    slices = []
    for _ in range(2):
        plots.save_all(tmp_path)
        with Image.open(tmp_path / "slices.png") as image:
            slices.append(image.tobytes())
    assert slices[0] == slices[1]


def test_bad_values_do_not_squeeze_the_scale() -> None:
    values = [0.9, 0.91, 0.92, 0.93, 0.1]
    plots = StudyPlots(study_of(5, values=values), "some", "validation top-1")
    low, high = plots.span
    assert high == 0.93
    assert 0.1 < low < 0.9
    minimized = optuna.create_study(direction="minimize")
    minimized.add_trials(create_trial(value=value) for value in (0.1, 0.2, 0.3, 9.0))
    low, high = StudyPlots(minimized, "some", "validation loss").span
    assert low == 0.1
    assert 0.3 < high < 9.0


def test_the_table_has_a_row_for_each_trial() -> None:
    study = study_of(3, CONDITIONAL)
    ended = {"run": "run 3", "scores": {"top1": 0.5, "balanced_accuracy": 0.4, "loss": 1.25}, "seconds": 1.5}
    for state, value, attributes in (
        (TrialState.COMPLETE, 0.75, ended),
        (TrialState.PRUNED, 0.25, {"reason": "pruned at epoch 1"}),
        (TrialState.FAIL, None, {"reason": "it broke"}),
        (TrialState.FAIL, None, {"lost": "stopped by SIGINT"}),
    ):
        study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
    table = rows(study, CONDITIONAL)
    assert [row["state"] for row in table] == [*["COMPLETE"] * 4, "PRUNED", "FAIL", "LOST"]
    assert [row["reason"] for row in table[4:]] == ["pruned at epoch 1", "it broke", "stopped by SIGINT"]
    assert [row["baseline"] for row in table[:2]] == ["yes", ""]
    assert [row["value"] for row in table[3:]] == ["0.75", "0.25", "", ""]
    assert (table[3]["val/loss"], table[3]["run"], table[3]["seconds"]) == ("1.25", "run 3", "1.50")
    for row, trial in zip(table[:3], study.trials, strict=False):
        assert row["value"] == repr(trial.value)
        assert float(row["optim.lr"]) == trial.params["optim.lr"]
        assert (row["optim.momentum"] != "") == (row["optim.name"] == "sgd")
