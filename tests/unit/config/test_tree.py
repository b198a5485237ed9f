"""Experiments as plain values and YAML, and back; single settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.config.augment_schema import AugmentConfig
from runner.config.data_schema import DataConfig, SplitConfig
from runner.config.parser import parse
from runner.config.reference import commented_yaml
from runner.config.schema import (
    Experiment,
    FeaturesConfig,
    ModelConfig,
    Normalization,
    OptimConfig,
    SeedConfig,
    TrackingConfig,
)
from runner.config.tree import as_tree, as_yaml, check_setting, flatten, from_tree, override
from runner.utils.errors import UserError
from runner.utils.safe_yaml import parse_yaml

DIGITS = DataConfig(kind="digits")
whole = st.integers(1, 10**6)
count = whole.map(float)
positive = st.floats(1e-9, 1e9)
share = st.floats(0, 1)
experiments = st.builds(
    Experiment,
    name=st.from_regex(r"[a-z0-9][a-z0-9 ._-]{0,11}[a-z0-9]", fullmatch=True),
    data=st.builds(
        DataConfig,
        kind=st.just("caltech101"),
        root=st.text("aé ä:'", max_size=8).map(lambda end: f"/x{end}x"),
        workers=st.just("auto") | st.integers(0, 64),
        download=st.booleans(),
    ),
    split=st.builds(SplitConfig, by=st.just("count"), train=count, val=count, test=count),
    augment=st.builds(
        AugmentConfig,
        views=st.sampled_from(["none", "fresh"]) | whole,
        crop=st.integers(32, 256),
        scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
        flip=share,
        rotation=st.floats(0, 180),
        hue=st.floats(0, 0.5),
    ),
    model=st.builds(
        ModelConfig,
        weights=st.none() | st.just("weights/own.safetensors"),
        normalize=st.just("statistics")
        | st.builds(Normalization, st.tuples(share, share, share), st.tuples(positive, positive, positive)),
        dropout=st.floats(0, 0.99),
    ),
    features=st.builds(FeaturesConfig, store=st.booleans(), batch_size=st.just("auto") | whole),
    optim=st.builds(
        OptimConfig,
        lr=positive,
        groups=st.dictionaries(st.sampled_from(["features", "features.24"]), positive),
    ),
    seed=st.builds(SeedConfig, st.integers(-9, 10**9), st.integers(), st.integers()),
    cache=st.sampled_from(
        ["0o17", "08", "1_000", "1:30", "+1", ".5", "1.", "1E5", "~", "=", "<<", "a: b", "-"]
    ),
)


@settings(max_examples=40, deadline=None)
@example(Experiment(name="1e3", data=DIGITS, tracking=TrackingConfig(root="1e3")))
@example(Experiment(name="yes", data=DIGITS, cache="007", tracking=TrackingConfig(root="1.5")))
@example(Experiment(name="null", data=DIGITS))
@example(Experiment(data=DataConfig(kind="folder", root="/bücher/a: b"), optim=OptimConfig(lr=1e-5)))
@given(experiments)
def test_an_experiment_written_and_read_back_is_equal(experiment: Experiment) -> None:
    assert from_tree(parse_yaml(as_yaml(experiment))) == experiment
    assert from_tree(parse_yaml(commented_yaml(experiment))) == experiment
    assert yaml.safe_load(as_yaml(experiment)) == as_tree(experiment), "for readers of YAML 1.1 too"


def test_a_tree_holds_plain_values() -> None:
    experiment = parse(["--optim.groups", "{features: 0.5}", "--augment.views", "3", "--optim.lr", "1"])[0]
    tree = as_tree(experiment)
    flat = flatten(tree)
    assert {type(value) for value in flat.values()} <= {str, int, float, bool, list, dict, type(None)}
    assert type(flat["optim.lr"]) is float
    assert flat["optim.groups.features"] == 0.5
    assert flatten({"a": {}}) == {"a": {}}


# Single settings


@pytest.fixture
def baseline() -> Experiment:
    return parse([])[0]


def test_overrides_are_exact_to_the_bit(baseline: Experiment) -> None:
    lr, dropout = math.nextafter(0.1, 1), 1 / 3
    changed = override(baseline, {"optim.lr": lr, "model.dropout": dropout, "train.batch_size": 17})
    assert (changed.optim.lr.hex(), changed.model.dropout.hex()) == (lr.hex(), dropout.hex())
    was, now = flatten(as_tree(baseline)), flatten(as_tree(changed))
    assert {name for name in was if was[name] != now[name]} == {
        "optim.lr",
        "model.dropout",
        "train.batch_size",
    }
    assert override(baseline, {}) == baseline


def test_only_the_combination_of_overrides_counts(baseline: Experiment) -> None:
    assert override(baseline, {"augment.crop": 224, "augment.resize": 224}).augment.crop == 224
    with pytest.raises(UserError, match=r"augment\.crop"):
        override(baseline, {"augment.crop": 224})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.lr", 1e-3),
        ("optim.lr", 1),
        ("train.batch_size", 8),
        ("model.weights", None),
        ("optim.name", "sgd"),
    ],
)
def test_a_setting_that_takes_a_value_passes(name: str, value: Any, baseline: Experiment) -> None:
    check_setting("space.yaml", baseline, name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.lr", 0),
        ("optim.lr", math.inf),
        ("optim.lr", "0.1"),
        ("optim.lr", True),
        ("optim.name", "sdg"),
        ("train.batch_size", 0),
        ("train.batch_size", 32.5),
        ("train.class_weights", 1),
        ("model.normalize", "weights"),
        ("no.such", 1),
    ],
)
def test_a_setting_that_does_not_take_a_value_is_refused(name: str, value: Any, baseline: Experiment) -> None:
    with pytest.raises(UserError) as refused:
        check_setting("space.yaml", baseline, name, value)
    assert str(refused.value).startswith("space.yaml cannot be ")
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
