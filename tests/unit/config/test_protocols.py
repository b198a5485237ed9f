"""Protocols: the settings that they stand for, and what contradicts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest

from runner.config.data_schema import SplitConfig
from runner.config.parser import parse
from runner.config.protocols import PROTOCOLS
from runner.config.tree import as_tree, from_tree, override

THIRTY = "--split.protocol", "caltech101-30"
SOLVED = "--config", "caltech101-solved"


def test_the_setting_names_the_protocols() -> None:
    names, none = get_args(get_type_hints(SplitConfig)["protocol"])
    assert list(get_args(names)) == [*PROTOCOLS]
    assert none is type(None)


def test_a_protocol_stands_for_settings() -> None:
    experiment, _ = parse(THIRTY)
    assert experiment.split == SplitConfig("count", 30, "rest", 50, protocol="caltech101-30")
    experiment, _ = parse(["--split.protocol", "50-25-25"])
    assert experiment.split == SplitConfig("fraction", 0.5, 0.25, 0.25, protocol="50-25-25")


def test_a_protocol_of_the_command_line_overrides_the_sizes_and_the_refit_of_a_file(
    write: Callable[[str], str],
) -> None:
    assert parse([*SOLVED])[0].train.refit
    assert not parse([*SOLVED, *THIRTY])[0].train.refit
    assert parse([*SOLVED, "--split.protocol", "50-25-25"])[0].train.refit
    file = write("data: {kind: digits}\nsplit: {by: count, train: 20, val: 5, test: 9}")
    assert parse(["--config", file, *THIRTY])[0].split.train == 30


def test_a_protocol_of_a_file_is_left_out_with_null(write: Callable[[str], str]) -> None:
    file = write("data: {kind: digits}\nsplit: {protocol: caltech101-30}")
    assert parse(["--config", file])[0].split.by == "count"
    assert parse(["--config", file, "--split.protocol", "null"])[0].split == SplitConfig()
    assert parse(["--config", file, "--split.protocol", "50-25-25"])[0].split.by == "fraction"


def test_an_experiment_with_a_protocol_is_read_back_equal() -> None:
    experiment, _ = parse([*SOLVED, *THIRTY])
    assert from_tree(as_tree(experiment)) == experiment
    assert override(experiment, {"seed.split": 3}).split == experiment.split


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--split.train", "20"), "split.train is 20, but split.protocol=caltech101-30 sets it to 30"),
        (
            ("--split.by", "fraction"),
            "split.by is fraction, but split.protocol=caltech101-30 sets it to count",
        ),
        (("--split.val", "5"), "split.val is 5, but split.protocol=caltech101-30 sets it to rest"),
        (("--split.test", "0.25"), "split.test is 0.25, but split.protocol=caltech101-30 sets it to 50"),
        (("--train.refit", "true"), "train.refit is true, but split.protocol=caltech101-30 sets it to false"),
        (("--split.folds", "5"), "leave out split.folds and use --repeat 5 --repeat-over split"),
        (("--split.folds", "5", "--split.fold_as", "val"), "leave out split.folds and use --repeat 5"),
        (("--split.protocol", "caltech101"), "split.protocol must be 50-25-25, caltech101-30 or null"),
    ],
)
def test_what_contradicts_a_protocol_is_refused(
    refusal: Callable[..., str], words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(*SOLVED, *THIRTY, *words)


def test_the_remedies_for_folds_work(refusal: Callable[..., str]) -> None:
    fractions = ["--data.kind", "digits", "--split.protocol", "50-25-25", "--split.folds", "5"]
    assert "set split.fold_as=val" in refusal(*fractions)
    assert parse([*fractions, "--split.fold_as", "val"])[0].split.folds == 5
    parse(["--data.kind", "digits", *THIRTY, "--repeat", "5", "--repeat-over", "split"])


def test_a_size_on_the_command_line_contradicts_the_protocol_of_a_file(
    refusal: Callable[..., str], write: Callable[[str], str]
) -> None:
    file = write("data: {kind: digits}\nsplit: {protocol: caltech101-30}")
    assert "split.test is 20, but" in refusal("--config", file, "--split.test", "20")


@pytest.mark.parametrize(
    "split", ["caltech101-30", "{protocol: [1]}", "{protocol: {a: 1}}", "[protocol]", "null"]
)
def test_odd_values_are_refused_in_one_sentence(
    refusal: Callable[..., str], write: Callable[[str], str], split: str
) -> None:
    assert "split" in refusal("--config", write(f"data: {{kind: digits}}\nsplit: {split}"))


def test_the_rest_needs_sizes_by_count(refusal: Callable[..., str]) -> None:
    assert refusal("--split.val", "rest") == "split.val=rest needs split.by=count."
    assert "split.val must be a number > 0 or rest" in refusal("--split.val", "some")
    split = parse(["--split.by", "count", "--split.train", "9", "--split.val", "rest", "--split.test", "5"])[
        0
    ].split
    assert split.sizes == (9, 0, 5)
