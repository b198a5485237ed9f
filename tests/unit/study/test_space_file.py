"""Search spaces in files: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from studies import quickstart

from runner.config import parser
from runner.config.metadata import table
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten, override
from runner.study import space
from runner.study.space import Space, find_space, read_space
from runner.utils.errors import UserError

SHIPPED = sorted(path.stem for path in parser.EXPERIMENTS.glob("*.yaml"))
LR = "optim.lr: {low: 1.0e-4, high: 0.1, log: true}\n"
OPTIMIZER = "optim.name: [adam, adamw, sgd]\n"
MOMENTUM = "optim.momentum: {low: 0.5, high: 0.99, when: {optim.name: sgd}}\n"
Load = Callable[..., Space]


@pytest.fixture(scope="module")
def baseline() -> Experiment:
    return quickstart()


@pytest.fixture
def load(tmp_path: Path, baseline: Experiment) -> Load:
    """`load(text)`: the space in a file with that text."""

    def read(text: str, checked: bool = False) -> Space:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return read_space(path, baseline, checked)

    return read


@pytest.fixture
def refusal(load: Load, tmp_path: Path) -> Callable[[str], str]:
    """`refusal(text)`: the sentence with which a space is refused. It is one line and names the file."""

    def refuse(text: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text)
        sentence = str(caught.value)
        assert str(tmp_path / "some.yaml") in sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")
        return sentence

    return refuse


# The shipped spaces


def test_the_shipped_spaces() -> None:
    assert {path.stem for path in space.SPACES.glob("*.yaml")} == {
        "around-baseline",
        "finetune",
        "solved",
        "wide",
    }


def test_the_shipped_space_of_solved_heads() -> None:
    words = ["--config", "caltech101-solved", "--train.penalty", "1", "--train.penalty_by", "validation"]
    baseline = parser.parse(words)[0]
    space = read_space(find_space("solved"), baseline)
    first = space.pick(flatten(as_tree(baseline)), lambda dimension: dimension.choices[0])
    assert first["model.pool"] == "[1]"
    assert override(baseline, space.settings_of(first)).model.pool == (1,)


def test_choices_may_be_lists(load: Load, baseline: Experiment) -> None:
    space = load("model.pool: [2, [1, 2], [1, 2, 3]]\n")
    (pools,) = space.dimensions
    assert pools.choices == (2, "[1, 2]", "[1, 2, 3]")
    assert pools.contains([1, 2])
    assert pools.contains((1, 2))
    assert not pools.contains([1])
    experiments = [override(baseline, space.settings_of({"model.pool": each})) for each in pools.choices]
    assert [each.model.pool for each in experiments] == [2, (1, 2), (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        *(("around-baseline", each) for each in SHIPPED),
        ("wide", "caltech101-pooled"),
        ("wide", "quickstart"),
        ("finetune", "caltech101-pooled"),
    ],
)
def test_a_shipped_space_contains_the_experiments_it_is_for(name: str, experiment: str) -> None:
    root = ["--data.root", "x"] if experiment == "folder" else []
    baseline = parser.parse(["--config", experiment, *root])[0]
    space = read_space(find_space(name), baseline)
    settings = flatten(as_tree(baseline))
    values = space.pick(settings, lambda each: settings[each.setting])
    assert "optim.lr" in values
    assert override(baseline, values) == baseline
    reduces = baseline.schedule.kind == "reduce_on_drop" and name != "finetune"
    assert ("schedule.factor" in values) == reduces


def test_a_space_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(LR)
    assert find_space(str(path)) == path
    assert find_space("wide") == find_space("wide.yaml") == space.SPACES / "wide.yaml"
    with pytest.raises(UserError, match="did you mean 'around-baseline'"):
        find_space("around-basline")


# What is read


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "1E-4", "0.0001"])
def test_numbers_need_no_dot(number: str, load: Load) -> None:
    (lr,) = load(f"optim.lr: {{low: {number}, high: 1e-1}}").dimensions
    assert (lr.low, lr.high) == (1e-4, 1e-1)
    (lr,) = load(f"optim.lr: [{number}, 3e-3]").dimensions
    assert lr.choices == (1e-4, 3e-3)


def test_whole_numbers_stay_whole(load: Load) -> None:
    (size,) = load("train.batch_size: {low: 16.0, high: 64, step: 16}").dimensions
    assert size.whole
    assert [type(each) for each in (size.low, size.high, size.step)] == [int, int, int]
    (lr,) = load("optim.lr: {low: 0.001, high: 1}").dimensions
    assert not lr.whole
    assert type(lr.high) is float


def test_choices_of_a_whole_number_are_whole(load: Load) -> None:
    """32.0 images per batch would break the training: it is refused, or read as 32."""
    try:
        (size,) = load("train.batch_size: [32.0, 64]").dimensions
    except UserError:
        return
    assert [type(each) for each in size.choices] == [int, int]


def test_a_choice_may_be_null(load: Load) -> None:
    (weights,) = load("model.weights: [null, VGG16_Weights.IMAGENET1K_V1]").dimensions
    assert weights.choices == (None, "VGG16_Weights.IMAGENET1K_V1")


def test_a_setting_comes_after_those_of_its_condition(load: Load) -> None:
    names = load(MOMENTUM + LR + OPTIMIZER).settings
    assert names.index("optim.name") < names.index("optim.momentum")
    assert sorted(names) == ["optim.lr", "optim.momentum", "optim.name"]


def test_a_coordinator_validates_values_once(load: Load) -> None:
    text = "optim.lr: {low: 0.0001, high: 0.1}\nmodel.dropout: {low: 0.0, high: 1.5}\n"
    with pytest.raises(UserError, match=r"model\.dropout"):
        load(text)
    assert load(text, checked=True).settings == ["optim.lr", "model.dropout"]


# What is refused


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("optim.learning: [1, 2]", "optim.learning"),
        ("optim.lrr: [0.1, 0.2]", "did you mean 'optim.lr'"),
        ("lr: [0.1, 0.2]", "did you mean 'optim.lr'"),
        ("optim: [0.1, 0.2]", "optim"),
        ("model.dropout: {low: 0.0, high: 1.5}", "model.dropout"),
        ("train.batch_size: {low: 0, high: 64}", "train.batch_size"),
        ("optim.name: [adam, sdg]", "sdg"),
        ("train.batch_size: [64, large]", "large"),
        ("train.batch_size: [64, 32.5]", "32.5"),
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("optim.lr: [1, 2", "YAML"),
        ("train.batch_size: !!python/object/apply:os.system ['true']", "YAML"),
        ("[optim.lr]", "name settings"),
        ("optim.lr", "name settings"),
        ("optim.lr: 0.1", "optim.lr"),
        ("optim.lr: {low: 0.1, high: 0.1}", "less than high"),
        ("optim.weight_decay: {low: 0, high: 0.1, log: true}", "above 0"),
        ("optim.lr: {low: 0.0001, high: 0.1, log: 1}", "log"),
        ("optim.lr: {low: 0.0001, high: .inf}", "high"),
        ("optim.lr: {low: .nan, high: 0.1}", "low"),
        ("optim.lr: {low: true, high: 2}", "low"),
        ("optim.lr: {low: 0.001}", "high"),
        ("optim.lr: {low: 0.001, hihg: 0.1}", "did you mean 'high'"),
        ("optim.lr: {low: 0.001, high: 0.1, step: 0}", "step"),
        ("optim.lr: {low: 0.001, high: 0.1, step: 0.001, log: true}", "step"),
        ("train.batch_size: {low: 16, high: 64.5}", "whole numbers"),
        ("train.batch_size: {low: 16, high: 64, step: 0.5}", "whole numbers"),
        ("augment.scale: {low: 0.5, high: 1}", "list choices"),
        ("augment.views: {low: 1, high: 4}", "list choices"),
        ("augment.scale: [[0.5, 1.0], [0.9, 2.0]]", "augment.scale"),
        ("model.pool: [[1], [a, b]]", "a list of such numbers"),
        ("optim.groups.features: [0.1, 0.2]", "optim.groups"),
        ("train.batch_size: [64]", "two values"),
        ("train.batch_size: {choices: 64}", "two values"),
        ("train.batch_size: {choices: [32, 64], low: 1}", "low"),
        ("train.batch_size: [64, 32, 64.0]", "twice"),
        (LR + LR, "twice"),
    ],
)
def test_a_mistake_is_refused_in_one_sentence(text: str, hint: str, refusal: Callable[[str], str]) -> None:
    assert hint in refusal(text)


def test_architectures_cannot_be_searched_with_the_weights_of_one(
    tmp_path: Path, baseline: Experiment
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("model.arch: [vgg16, resnet18]\n")
    assert read_space(path, override(baseline, {"model.weights": None}))
    with pytest.raises(
        UserError, match=r"model\.weights is a file \(vgg\.pth\), which is for one architecture"
    ):
        read_space(path, override(baseline, {"model.weights": "vgg.pth"}))


def test_settings_that_a_study_must_not_vary_are_refused_with_the_reason(
    refusal: Callable[[str], str],
) -> None:
    fixed = {name: setting.not_searchable for name, setting in table().items() if setting.not_searchable}
    assert set(fixed) >= {
        "name",
        "data.root",
        "split.by",
        "seed.train",
        "cache",
        "features.store",
        "train.best",
    }
    for name, reason in fixed.items():
        assert f"{name} cannot be searched: {reason}" in refusal(f"{name}: [1, 2]")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (MOMENTUM.replace("optim.name", "optim.nmae"), "did you mean 'optim.name'"),
        (OPTIMIZER + MOMENTUM.replace("sgd", "rmsprop"), "never 'rmsprop'"),
        (LR + MOMENTUM.replace("optim.name: sgd", "optim.lr: 5"), "never 5"),
        (MOMENTUM.replace("{optim.name: sgd}", "sgd"), "when"),
        (MOMENTUM.replace("sgd", "[]"), "no value of optim.name"),
        (MOMENTUM.replace("sgd", "{a: b}"), "when"),
        (
            "optim.lr: {low: 1.0e-4, high: 0.1, when: {model.dropout: 0.1}}\n"
            "model.dropout: {low: 0.0, high: 0.5, when: {optim.lr: 0.01}}\n",
            "circle",
        ),
        ("optim.lr: {low: 1.0e-4, high: 0.1, when: {optim.lr: 0.01}}\n", "circle"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(text: str, hint: str, refusal: Callable[[str], str]) -> None:
    assert hint in refusal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.lr: {low: 0.01, high: 0.1}", "optim.lr is 0.003"),
        ("train.batch_size: [16, 32]", "train.batch_size is 64"),
        ("optim.name: [adamw, sgd]", "optim.name is 'adam'"),
        ("model.dropout: {low: 0.0, high: 0.4, step: 0.2}", "model.dropout is 0.1"),
    ],
)
def test_the_space_must_contain_the_baseline(text: str, value: str, refusal: Callable[[str], str]) -> None:
    assert value in refusal(text)
