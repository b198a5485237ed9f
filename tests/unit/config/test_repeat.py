"""Repeated runs: which seeds count up, and what is said about it."""

from __future__ import annotations

import pytest

from runner.config.parser import parse
from runner.config.repeat import Over, Repeat
from runner.utils.errors import UserError

WORDS = ["--config", "quickstart", "--seed.train", "5", "--seed.split", "2"]


@pytest.mark.parametrize(
    ("over", "seeds", "labels", "description"),
    [
        ("seed", [(5, 2), (6, 2)], ["seed 5", "seed 6"], "2 training seeds on one split"),
        ("split", [(5, 2), (5, 3)], ["split 2", "split 3"], "2 splits with one training seed"),
        (
            "both",
            [(5, 2), (6, 3)],
            ["split 2 seed 5", "split 3 seed 6"],
            "2 splits, each with another training seed",
        ),
    ],
)
def test_what_counts_up(
    over: Over, seeds: list[tuple[int, int]], labels: list[str], description: str
) -> None:
    experiment, options = parse([*WORDS, "--repeat", "2", "--repeat-over", over])
    repeat = options.repeated
    experiments = repeat.experiments(experiment)
    assert experiments[0] == experiment
    assert [(each.seed.train, each.seed.split) for each in experiments] == seeds
    assert [repeat.label(each) for each in experiments] == labels
    assert repeat.describe(experiment) == description


@pytest.mark.parametrize(
    ("words", "seeds", "labels", "description"),
    [
        ([], [(5, 2, 0), (5, 2, 1)], ["fold 0", "fold 1"], "2 folds"),
        (
            ["--repeat", "2"],
            [(5, 2, 0), (5, 2, 1), (6, 2, 0), (6, 2, 1)],
            ["fold 0 seed 5", "fold 1 seed 5", "fold 0 seed 6", "fold 1 seed 6"],
            "2 folds × 2 training seeds",
        ),
        (
            ["--repeat", "2", "--repeat-over", "split"],
            [(5, 2, 0), (5, 2, 1), (5, 3, 0), (5, 3, 1)],
            ["split 2 fold 0", "split 2 fold 1", "split 3 fold 0", "split 3 fold 1"],
            "2 folds × 2 divisions into folds with one training seed",
        ),
        (
            ["--repeat", "2", "--repeat-over", "both"],
            [(5, 2, 0), (5, 2, 1), (6, 3, 0), (6, 3, 1)],
            [
                "split 2 fold 0 seed 5",
                "split 2 fold 1 seed 5",
                "split 3 fold 0 seed 6",
                "split 3 fold 1 seed 6",
            ],
            "2 folds × 2 divisions into folds, each with another training seed",
        ),
    ],
)
def test_folds_are_trained_with_each_seed(
    words: list[str], seeds: list[tuple[int, int, int]], labels: list[str], description: str
) -> None:
    experiment, options = parse([*WORDS, "--split.folds", "2", *words])
    assert experiment.split.is_cross_validation
    repeat = options.repeated
    experiments = repeat.experiments(experiment)
    assert [(each.seed.train, each.seed.split, each.split.fold) for each in experiments] == seeds
    assert not any(each.split.is_cross_validation for each in experiments)
    assert [repeat.label(each) for each in experiments] == labels
    assert repeat.describe(experiment) == description


def test_a_fold_alone_is_a_run_of_its_own() -> None:
    experiment, options = parse([*WORDS, "--split.folds", "3", "--split.fold", "0"])
    assert options.repeated.experiments(experiment) == [experiment]
    with pytest.raises(UserError, match="must be less than"):
        parse([*WORDS, "--split.folds", "3", "--split.fold", "3"])
    with pytest.raises(UserError, match="needs split"):
        parse([*WORDS, "--split.fold", "0"])


def test_a_choice_of_seeds_needs_a_number_of_runs() -> None:
    with pytest.raises(UserError, match="--repeat-over both needs --repeat K"):
        parse([*WORDS, "--repeat-over", "both"])
    assert parse(WORDS)[1].repeated == Repeat()


def test_it_is_said_as_on_the_command_line() -> None:
    assert Repeat(3).words == "--repeat 3"
    assert Repeat(3, "split").words == "--repeat 3 --repeat-over split"
