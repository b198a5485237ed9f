"""Search spaces: what is read from YAML, what is refused, and what values do to an experiment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from runner.config import parser
from runner.config.schema import Experiment, as_tree, flatten
from runner.study import space
from runner.study.plan import Plan
from runner.study.samplers import distribution, points
from runner.study.space import Dimension, Space, applied, find_space, same
from runner.utils.errors import UserError

SHIPPED = sorted(parser.EXPERIMENTS.glob("*.yaml"))
LR = "optim.lr: {low: 1.0e-4, high: 0.1, log: true}\n"
NAMES = "optim.name: [adam, adamw, sgd]\n"
MOMENTUM = "optim.momentum: {low: 0.5, high: 0.99, when: {optim.name: sgd}}\n"


@pytest.fixture(scope="module")
def baseline() -> Experiment:
    return parser.parse(["--config", "quickstart"])[0]


def load(folder: Path, text: str, baseline: Experiment, checked: bool = True) -> Space:
    path = folder / "some.yaml"
    path.write_text(text)
    return space.read(path, baseline, checked)


def refusal(folder: Path, text: str, baseline: Experiment) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, baseline, checked=False)
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder / "some.yaml") in said
    return said


# The shipped ones


def test_there_are_shipped_experiments_and_spaces() -> None:
    assert {each.stem for each in SHIPPED} >= {"quickstart", "caltech101", "caltech101-pooled"}
    assert {each.stem for each in space.SPACES.glob("*.yaml")} == {"around-baseline", "wide"}


@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        *(("around-baseline", each.stem) for each in SHIPPED),
        ("wide", "caltech101-pooled"),
        ("wide", "quickstart"),
    ],
)
def test_a_shipped_space_holds_the_experiments_it_is_for(name: str, experiment: str) -> None:
    given = parser.parse(["--config", experiment])[0]
    read = space.read(find_space(name), given, checked=True)
    flat = flatten(as_tree(given))
    values = read.pick(flat, lambda each: flat[each.setting])
    assert "optim.lr" in values
    assert applied(given, values) == given
    assert ("schedule.factor" in values) == (given.schedule.kind == "report")


@pytest.mark.parametrize("name", ["around-baseline", "wide"])
def test_the_settings_take_what_a_shipped_space_names(name: str, baseline: Experiment) -> None:
    assert space.read(find_space(name), baseline).dimensions


def test_a_space_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(LR)
    assert find_space(str(path)) == path
    assert find_space("wide") == find_space("wide.yaml") == space.SPACES / "wide.yaml"
    with pytest.raises(UserError, match="did you mean 'around-baseline'"):
        find_space("around-basline")


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.learning: [1, 2]", "no setting"),
        ("optim.lrr: [0.1, 0.2]", "did you mean 'optim.lr'"),
        ("lr: [0.1, 0.2]", "did you mean 'optim.lr'"),
        ("optim: [0.1, 0.2]", "no setting"),
        ("model.dropout: {low: 0.0, high: 1.5}", "model.dropout cannot be 1.5"),
        ("train.batch_size: {low: 0, high: 64}", "train.batch_size cannot be 0"),
        ("schedule.factor: {low: 1, high: 5}", "schedule.factor cannot be 1"),
        ("optim.name: [adam, sdg]", "'sdg'"),
        ("train.batch_size: [64, large]", "'large'"),
        ("train.batch_size: [64, 32.5]", "32.5"),
        ("", "is empty"),
        ("{}", "is empty"),
        ("# nothing\n", "is empty"),
        ("optim.lr: [1, 2", "is not a YAML file"),
        ("optim.lr: {low: 1\n: }}", "is not a YAML file"),
        ("[optim.lr]", "no search space"),
        ("optim.lr", "no search space"),
        ("optim.lr: 0.1", "a list of values, or a range"),
        ("optim.lr: {low: 0.1, high: 0.01}", "less than high"),
        ("optim.lr: {low: 0.1, high: 0.1}", "less than high"),
        ("optim.weight_decay: {low: 0, high: 0.1, log: true}", "above 0"),
        ("optim.lr: {low: 0.0001, high: 0.1, log: 1}", "true or false"),
        ("optim.lr: {low: 0.0001, high: .inf}", "must be a number"),
        ("optim.lr: {low: .nan, high: 0.1}", "must be a number"),
        ("optim.lr: {low: small, high: 0.1}", "must be a number"),
        ("optim.lr: {low: true, high: 2}", "must be a number"),
        ("optim.lr: {low: 0.001}", "low and high"),
        ("optim.lr: {low: 0.001, hihg: 0.1}", "did you mean 'high'"),
        ("optim.lr: {low: 0.001, high: 0.1, step: 0}", "step"),
        ("optim.lr: {low: 0.001, high: 0.1, step: 0.001, log: true}", "step"),
        ("train.batch_size: {low: 16, high: 64.5}", "whole numbers"),
        ("train.batch_size: {low: 16, high: 64, step: 0.5}", "whole numbers"),
        ("augment.scale: {low: 0.5, high: 1}", "name its categories"),
        ("model.arch: {low: 11, high: 19}", "name its categories"),
        ("augment.views: {low: 1, high: 4}", "name its categories"),
        ("train.class_weights: {low: 0, high: 1}", "name its categories"),
        ("augment.scale: [[0.5, 1.0], [0.9, 1.0]]", "must be one value"),
        ("train.batch_size: [64]", "two values or more"),
        ("train.batch_size: []", "two values or more"),
        ("train.batch_size: {choices: 64}", "two values or more"),
        ("train.batch_size: {choices: [32, 64], low: 1}", "both choices and low"),
        ("train.batch_size: [64, 32, 64]", "twice"),
        ("train.batch_size: [64, 32, 64.0]", "twice"),
        ("optim.lr: [0.003, 0.003]", "twice"),
        (LR + LR, "twice"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(
    text: str, said: str, tmp_path: Path, baseline: Experiment
) -> None:
    assert said in refusal(tmp_path, text, baseline)


@pytest.mark.parametrize(
    "setting",
    [
        *("name", "data.root", "data.kind", "split.train", "split.by", "seed.train", "seed.split", "cache"),
        *("tracking.root", "tracking.system_metrics", "features.store", "train.precision", "train.best"),
    ],
)
def test_what_would_change_the_question_is_no_dimension(
    setting: str, tmp_path: Path, baseline: Experiment
) -> None:
    assert "cannot be searched" in refusal(tmp_path, f"{setting}: [1, 2]", baseline)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MOMENTUM.replace("optim.name", "optim.nmae"), "did you mean 'optim.name'"),
        (NAMES + MOMENTUM.replace("sgd", "rmsprop"), "which it never is"),
        (LR + MOMENTUM.replace("optim.name: sgd", "optim.lr: 5"), "which it never is"),
        (MOMENTUM.replace("{optim.name: sgd}", "sgd"), "when must name settings"),
        (
            "optim.lr: {low: 1.0e-4, high: 0.1, when: {model.dropout: 0.1}}\n"
            "model.dropout: {low: 0.0, high: 0.5, when: {optim.lr: 0.01}}\n",
            "lead back to itself",
        ),
        ("optim.lr: {low: 1.0e-4, high: 0.1, when: {optim.lr: 0.01}}\n", "lead back to itself"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(
    text: str, said: str, tmp_path: Path, baseline: Experiment
) -> None:
    assert said in refusal(tmp_path, text, baseline)


@pytest.mark.parametrize(
    "text",
    ["optim.lr: {low: 0.01, high: 0.1}", "train.batch_size: [16, 32]", "optim.name: [adamw, sgd]"],
)
def test_the_baseline_must_be_inside(text: str, tmp_path: Path, baseline: Experiment) -> None:
    said = refusal(tmp_path, text, baseline)
    assert "the baseline's" in said
    assert "does not hold" in said


def test_a_baseline_between_steps_is_outside(tmp_path: Path, baseline: Experiment) -> None:
    text = "model.dropout: {low: 0.0, high: 0.4, step: 0.2}"
    assert "the baseline's model.dropout is 0.1" in refusal(tmp_path, text, baseline)


# What is read


@pytest.mark.parametrize("word", ["1e-4", "1.0e-4", "1E-4", "0.0001"])
def test_numbers_need_no_dot(word: str, tmp_path: Path, baseline: Experiment) -> None:
    (lr,) = load(tmp_path, f"optim.lr: {{low: {word}, high: 1e-1}}", baseline).dimensions
    assert (lr.low, lr.high) == (1e-4, 1e-1)
    (lr,) = load(tmp_path, f"optim.lr: [{word}, 3e-3]", baseline, checked=False).dimensions
    assert lr.choices == (1e-4, 3e-3)


def test_whole_numbers_stay_whole(tmp_path: Path, baseline: Experiment) -> None:
    (size,) = load(tmp_path, "train.batch_size: {low: 16.0, high: 64, step: 16}", baseline).dimensions
    assert size.whole
    assert [type(each) for each in (size.low, size.high, size.step)] == [int, int, int]
    assert points(size) == [16, 32, 48, 64]
    (lr,) = load(tmp_path, "optim.lr: {low: 0.001, high: 1}", baseline).dimensions
    assert not lr.whole
    assert type(lr.high) is float


def test_categories_of_a_whole_number_are_whole(tmp_path: Path, baseline: Experiment) -> None:
    """32.0 images a batch would break the training: it is refused, or read as 32."""
    try:
        (size,) = load(tmp_path, "train.batch_size: [32.0, 64]", baseline, checked=False).dimensions
    except UserError:
        return
    assert [type(each) for each in size.choices] == [int, int]


def test_a_setting_may_be_null(tmp_path: Path, baseline: Experiment) -> None:
    weights = "model.weights: [null, VGG16_Weights.IMAGENET1K_V1]"
    (found,) = load(tmp_path, weights, baseline, checked=False).dimensions
    assert found.choices == (None, "VGG16_Weights.IMAGENET1K_V1")


def test_conditions_come_first(tmp_path: Path, baseline: Experiment) -> None:
    read = load(tmp_path, MOMENTUM + LR + NAMES, baseline)
    names = [each.setting for each in read.dimensions]
    assert names.index("optim.name") < names.index("optim.momentum")
    assert sorted(names) == ["optim.lr", "optim.momentum", "optim.name"]


def test_a_setting_is_picked_where_its_condition_holds(tmp_path: Path, baseline: Experiment) -> None:
    read = load(tmp_path, MOMENTUM + LR + NAMES, baseline)
    flat = flatten(as_tree(baseline))

    def choose(name: str) -> dict[str, Any]:
        return read.pick(flat, lambda each: name if each.setting == "optim.name" else 0.7)

    assert choose("adam") == {"optim.name": "adam", "optim.lr": 0.7}
    assert choose("sgd") == {"optim.name": "sgd", "optim.lr": 0.7, "optim.momentum": 0.7}


def test_a_condition_may_be_on_what_is_not_searched(tmp_path: Path, baseline: Experiment) -> None:
    read = load(tmp_path, MOMENTUM + LR, baseline)
    for name, picked in (("adam", {"optim.lr"}), ("sgd", {"optim.lr", "optim.momentum"})):
        flat = {**flatten(as_tree(baseline)), "optim.name": name}
        assert set(read.pick(flat, lambda each, flat=flat: flat[each.setting])) == picked


def test_a_condition_hangs_on_what_was_picked(tmp_path: Path, baseline: Experiment) -> None:
    """The baseline's value of a setting that is searched, but not in this trial, counts for nothing."""
    text = NAMES + MOMENTUM + "train.clip: {low: 0, high: 1, when: {optim.momentum: 0.9}}\n"
    read = load(tmp_path, text, baseline)
    flat = flatten(as_tree(baseline))
    assert flat["optim.momentum"] == 0.9
    assert set(read.pick(flat, lambda each: flat[each.setting])) == {"optim.name"}


def test_a_condition_may_name_several_values(tmp_path: Path, baseline: Experiment) -> None:
    text = NAMES + "optim.weight_decay: {low: 0, high: 1, when: {optim.name: [sgd, adamw]}}"
    read = load(tmp_path, text, baseline)
    for name, count in (("adam", 1), ("adamw", 2), ("sgd", 2)):
        assert len(read.pick({}, lambda each, name=name: name if each.choices else 0.5)) == count


# Values


def test_values_are_applied_to_the_bit(baseline: Experiment) -> None:
    lr, dropout = math.nextafter(0.1, 1), 1 / 3
    changed = applied(baseline, {"optim.lr": lr, "model.dropout": dropout, "train.batch_size": 17})
    assert changed.optim.lr.hex() == lr.hex()
    assert changed.model.dropout.hex() == dropout.hex()
    was, now = flatten(as_tree(baseline)), flatten(as_tree(changed))
    assert {name for name in was if was[name] != now[name]} == {
        *("optim.lr", "model.dropout", "train.batch_size")
    }
    assert applied(baseline, {}) == baseline
    assert parser.parse(["--config", "quickstart"])[0] == baseline, "it is left alone"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"augment.crop": 224}, "augment.crop"),
        ({"train.accumulate": 65}, "train.accumulate"),
        ({"model.normalize": "weights"}, "model.weights"),
        ({"optim.lr": math.inf}, "finite"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(
    values: dict[str, Any], said: str, baseline: Experiment
) -> None:
    with pytest.raises(UserError, match=said):
        applied(baseline, values)


def test_only_the_combination_counts(baseline: Experiment) -> None:
    assert applied(baseline, {"augment.crop": 224, "augment.resize": 224}).augment.crop == 224


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension("a", 0.5, 2.0), [0.5, 1, 2.0], [0.49, 2.01, "1", None, True, math.nan]),
        (Dimension("a", 1, 5, whole=True), [1, 3, 5, 3.0], [0, 6, 2.5, True]),
        (Dimension("a", 0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], [0.05, 0.15, 0.4]),
        (Dimension("a", 2, 10, whole=True, step=4), [2, 6, 10], [4, 8]),
        (Dimension("a", choices=(0, 1, "x", None)), [0, 1, 1.0, "x", None], [True, False, "y", 2]),
        (Dimension("a", choices=(True, False)), [True, False], [1, 0, None]),
    ],
)
def test_what_a_dimension_holds(dimension: Dimension, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not dimension.holds(value)] == []
    assert [value for value in outside if dimension.holds(value)] == []


def test_true_is_not_one() -> None:
    assert same(1, 1.0)
    assert same(None, None)
    assert not same(True, 1)
    assert not same(0, False)


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (Dimension("a", choices=("x", None)), ["x", None]),
        (Dimension("a", 1, 3, whole=True), [1, 2, 3]),
        (Dimension("a", 1e-4, 1.0, log=True), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (Dimension("a", 0.0, 1.0), [0, 0.25, 0.5, 0.75, 1]),
        (Dimension("a", 1, 100, whole=True), [1, 26, 50, 75, 100]),
        (Dimension("a", 0.0, 0.5, step=0.125), [0, 0.125, 0.25, 0.375, 0.5]),
        (Dimension("a", 0.0, 0.3, step=0.1), [0, 0.1, 0.2, 0.3]),
    ],
)
def test_the_points_of_a_grid(dimension: Dimension, expected: list[Any]) -> None:
    found = points(dimension)
    assert found == (expected if dimension.choices else pytest.approx(expected))
    assert all(dimension.holds(value) for value in found)
    contained = distribution(dimension)
    assert all(contained._contains(contained.to_internal_repr(value)) for value in found)


def test_a_space_is_stored_as_plain_values(tmp_path: Path, baseline: Experiment) -> None:
    import json

    read = load(tmp_path, NAMES + MOMENTUM + LR, baseline)
    plain = Plan("s", baseline, read, "").identity()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["space"]["optim.momentum"] == {
        "low": 0.5,
        "high": 0.99,
        "log": False,
        "whole": False,
        "when": {"optim.name": ["sgd"]},
    }
