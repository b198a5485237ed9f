"""The command line of studies, and the roles of their processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runner.evaluation.metrics import METRICS
from runner.study.options import ROLE_VARIABLE, Role, make_plan, parse
from runner.utils.errors import UserError

HEAVY = ("torch", "optuna", "mlflow", "numpy", "pandas")


def test_options_and_settings_are_told_apart() -> None:
    words = ["--study", "some", "--seeds", "3", "--seed", "7", "--sampler_seed", "2", "--optim.lr", "0.003"]
    options, rest = parse(words)
    assert (options.study, options.seeds, options.sampler_seed) == ("some", 3, 2)
    assert rest == ["--seed", "7", "--optim.lr", "0.003"]
    plan = make_plan(options, rest, checked=True)
    assert (plan.seeds, plan.baseline.seed.train, plan.sampler_seed) == (3, 7, 2)
    assert (plan.trials, plan.objective, plan.sampler, plan.pruner) == (50, "top1", "tpe", "auto")
    assert plan.storage.endswith("mlruns/studies.journal")


def test_every_metric_can_be_the_objective() -> None:
    for name, metric in METRICS.items():
        options, rest = parse(["--study", "some", "--objective", name])
        assert make_plan(options, rest, checked=True).metric is metric


@pytest.mark.parametrize(
    "words",
    [
        ["--study", ""],
        ["--study", "a/b"],
        ["--study", ".hidden"],
        ["--trials", "0"],
        ["--trials", "many"],
        ["--trials", "1.5"],
        ["--trials", "²"],
        ["--workers", "-1"],
        ["--threads", "0"],
        ["--batch", "0"],
        ["--batch", "65"],
        ["--seeds", "0"],
        ["--confirm", "-1"],
        ["--objective", "accuracy"],
        ["--sampler", "nsga"],
        ["--pruner", "some"],
        ["--sampler-seed", "x"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_refused_by_name(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(["--study", "some", *words])
    assert words[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--repeat", "2"], ["--dry-run"]])
def test_options_of_a_training_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--repeat and --dry-run are for \./launch\.sh train"):
        make_plan(*parse(["--study", "some", *words]), checked=True)


@pytest.mark.parametrize(
    "role", [Role(), Role(writes_report=False, worker=1, workers=4), Role(runs_trials=False)]
)
def test_a_role_is_passed_by_the_environment(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROLE_VARIABLE, raising=False)
    assert not Role.from_environment().has_coordinator
    for name, value in role.to_environment().items():
        monkeypatch.setenv(name, "" if role == Role() else value)
    assert Role.from_environment() == role


def test_the_command_line_is_read_without_heavy_imports() -> None:
    """So help and wrong options are answered at once."""
    code = (
        "import sys, runner.study.coordinator, runner.study.options as options\n"
        "options.parse(['--study', 'some'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_folds_are_of_a_study_or_of_one_training() -> None:
    options, rest = parse(["--study", "some", "--folds", "5"])
    plan = make_plan(options, rest, checked=True)
    assert (plan.folds, plan.trainings, plan.baseline.split.folds) == (5, 5, None)
    experiments = [plan.training(plan.baseline, index) for index in range(5)]
    assert [(each.split.fold, each.split.fold_as) for each in experiments] == [
        (fold, "val") for fold in range(5)
    ]
    assert plan.training_name(1) == "fold 2 of 5"
    for words, message in (
        (["--split.folds", "5"], "--folds K gives each trial K folds"),
        (["--split.folds", "5", "--folds", "5"], "leave out split"),
        (
            [
                "--split.by",
                "count",
                "--split.train",
                "5",
                "--split.val",
                "2",
                "--split.test",
                "2",
                "--folds",
                "2",
            ],
            "count",
        ),
    ):
        options, rest = parse(["--study", "some", *words])
        with pytest.raises(UserError, match=message):
            make_plan(options, rest, checked=True)
    options, rest = parse(["--study", "some", "--split.folds", "5", "--split.fold", "1"])
    assert make_plan(options, rest, checked=True).trainings == 1
