"""Which settings of an experiment decide its result."""

from __future__ import annotations

import pytest

from runner.config.effective import decisive_settings
from runner.config.metadata import changes_results
from runner.config.parser import parse


def settings(*words: str) -> set[str]:
    return set(decisive_settings(parse(["--data.kind", "digits", *words])[0]))


def test_places_and_the_name_decide_nothing() -> None:
    known = settings()
    assert {"train.epochs", "optim.lr", "seed.train", "split.train", "model.arch"} <= known
    assert not [name for name in known if not changes_results(name)]
    assert not {"name", "cache", "data.root"} & known


@pytest.mark.parametrize(
    ("with_effect", "without", "names"),
    [
        (["--optim.name", "sgd"], ["--optim.name", "adam"], {"optim.momentum"}),
        (
            ["--schedule.kind", "reduce_on_drop"],
            ["--schedule.kind", "cosine"],
            {"schedule.factor", "schedule.reductions"},
        ),
        (["--model.head", "pooled"], ["--model.head", "classifier"], {"model.pool", "model.pooled_layers"}),
        (["--model.head", "classifier"], ["--model.head", "linear"], {"model.width", "model.dropout"}),
        (
            ["--augment.views", "4"],
            ["--augment.views", "none"],
            {
                "augment.flip",
                "augment.scale",
                "augment.rotation_interpolation",
                "augment.hue",
                "seed.augment",
            },
        ),
    ],
)
def test_settings_without_effect_are_left_out(
    with_effect: list[str], without: list[str], names: set[str]
) -> None:
    assert names <= settings(*with_effect)
    assert not names & settings(*without)
    assert {"augment.resize", "augment.crop", "augment.interpolation"} <= settings(*without)
