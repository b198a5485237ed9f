"""Runs are named and described by what they are."""

from __future__ import annotations

import pytest

from runner.config.parser import parse
from runner.training.run_names import run_name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "vgg16-pooled lr=3e-4 seed=0"),
        (["--lr", "0.01", "--seed", "7"], "vgg16-pooled lr=0.01 seed=7"),
        (["--lr", "0.000125", "--seed.split", "2"], "vgg16-pooled lr=1.25e-4 seed=0 split=2"),
        (["--model.head", "classifier", "--model.arch", "vgg11"], "vgg11 lr=3e-4 seed=0"),
        (["--model.trainable", "all", "--lr", "1e-5"], "vgg16-pooled trains=all lr=1e-5 seed=0"),
    ],
)
def test_a_name_says_what_a_run_is(words: list[str], name: str) -> None:
    assert run_name(parse(["--config", "caltech101-pooled", "--data.root", "x", *words])[0]) == name
