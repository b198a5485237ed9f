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
    assert [repeat.label(each.seed) for each in experiments] == labels
    assert repeat.description == description


def test_a_choice_of_seeds_needs_a_number_of_runs() -> None:
    with pytest.raises(UserError, match="--repeat-over both needs --repeat K"):
        parse([*WORDS, "--repeat-over", "both"])
    assert parse(WORDS)[1].repeated == Repeat()


def test_it_is_said_as_on_the_command_line() -> None:
    assert Repeat(3).words == "--repeat 3"
    assert Repeat(3, "split").words == "--repeat 3 --repeat-over split"
