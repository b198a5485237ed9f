"""Mistakes in the command line and in experiment files: one sentence that names the setting."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from runner.config.data_schema import SplitConfig
from runner.config.parser import EXPERIMENTS, parse
from runner.config.tree import as_tree, flatten
from runner.utils.errors import UserError

Write = Callable[[str], str]


Refusal = Callable[..., str]


SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--train.epoch", "train.epochs"),
        ("--fitt.epochs", "train.epochs"),
        ("--lrr", "optim.lr"),
        ("--augment.rotate", "augment.rotation"),
        ("--model.archh", "model.arch"),
        ("--repeats", "repeat"),
        ("--train.batch-sizes", "train.batch_size"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(word: str, near: str, refusal: Refusal) -> None:
    for words in ((word, "3"), (f"{word}=3",)):
        sentence = refusal(*words)
        assert repr(word[2:].replace("-", "_")) in sentence
        assert f"did you mean {near!r}?" in sentence


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train:\n  epoch: 3\n", "'train.epoch' (did you mean 'train.epochs'?)"),
        ("trian: {epochs: 3}\n", "'trian'"),
        ("optim.lr: 3\n", "optim: {lr: …}"),
        ("model: {normalize: {mean: [0, 0, 0], sd: [1, 1, 1]}}\n", "model.normalize"),
        ("train: {epochs: many}\n", "train.epochs"),
        ("train: {epochs: '3'}\n", "train.epochs"),
        ("train: {epochs: true}\n", "train.epochs"),
        ("data: {download: yes}\n", "data.download must be true or false"),
        ("model: {normalize: {mean: [0, 0, 0], std: [0, 1, 1]}}\n", "model.normalize"),
        ("optim: {groups: {features: 0}}\n", "optim.groups"),
        ("optim: {groups: null}\n", "optim.groups"),
        ("1: 2\n", "'1'"),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, named: str, write: Write, refusal: Refusal) -> None:
    sentence = refusal("--config", write(text), "--data.kind", "digits")
    assert named in sentence


def test_nothing_is_suggested_where_nothing_is_near(refusal: Refusal) -> None:
    assert "did you mean" not in refusal("--xyzzyxyzzy", "3")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", "many"),
        ("train.epochs", "0"),
        ("train.epochs", "2.5"),
        ("train.epochs", "3.0"),
        ("train.epochs", ""),
        ("train.precision", "fp8"),
        ("train.class_weights", "maybe"),
        ("train.class_weights", "1"),
        ("data.kind", "foldr"),
        ("data.unreadable", "ignore"),
        ("data.workers", "-1"),
        ("augment.views", "0"),
        ("augment.views", "dirty"),
        ("augment.flip", "1.1"),
        ("augment.scale", "0.8"),
        ("augment.scale", "[0.8]"),
        ("augment.scale", "[0.8, 0.9, 1]"),
        ("augment.brightness", "-0.1"),
        ("model.arch", "vgg99"),
        ("model.arch", "[vgg16]"),
        ("model.normalize", "{}"),
        ("optim.name", "sdg"),
        ("optim.lr", "0"),
        ("optim.lr", "nan"),
        ("optim.lr", ".nan"),
        ("optim.lr", ".inf"),
        ("optim.lr", "9" * 400),
        ("optim.lr", "true"),
        ("optim.weight_decay", ".inf"),
        ("optim.momentum", "2"),
        ("optim.groups", "{features: 0}"),
        ("optim.groups", "{features: .inf}"),
        ("optim.groups", "[1"),
        ("schedule.kind", "none"),
        ("schedule.reductions", "0"),
        ("seed.split", "1.5"),
        ("split.train", "0"),
        ("repeat", "0"),
        ("repeat", ""),
        ("dry_run", "perhaps"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(
    name: str, value: str, refusal: Refusal
) -> None:
    assert name in refusal(f"--{name}", value)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("model.dropout", "0.99", "1"),
        ("model.dropout", "0", "-0.1"),
        ("train.label_smoothing", "0.1", "1"),
        ("schedule.factor", "1.01", "1"),
        ("augment.rotation", "180", "181"),
        ("augment.rotation", "0", "-1"),
        ("augment.hue", "0.5", "0.6"),
        ("optim.momentum", "1", "1.01"),
    ],
)
def test_the_bounds_of_ranges(name: str, inside: str, outside: str, refusal: Refusal) -> None:
    assert flatten(as_tree(parse([f"--{name}", inside])[0]))[name] == float(inside)
    assert name in refusal(f"--{name}={outside}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--split.train", "0.6"), ("split.train", "1.1")),
        (("--split.by", "count"), ("split.by=count", "whole")),
        (("--augment.crop", "80"), ("augment.crop", "augment.resize")),
        (("--augment.crop", "31"), ("augment.crop", "32")),
        (
            ("--augment.scales", "[48, 96]"),
            ("smaller than augment.crop (64)", "[48, 96]", "--augment.crop 48"),
        ),
        (("--augment.scales", "[224, 224]"), ("augment.scales", "different")),
        (("--augment.scales", "[64, 20000]"), ("augment.scales", "too large")),
        (("--model.pooled_layers", "[features.9, features.9]"), ("model.pooled_layers", "twice")),
        (("--augment.tta", "scales"), ("augment.tta=scales", "augment.scales")),
        (
            ("--augment.scales", "[64, 96]", "--model.head", "classifier"),
            ("augment.scales", "model.head=pooled or linear"),
        ),
        (
            ("--model.pooled_layers", "[features.9]", "--model.head", "classifier"),
            ("model.pooled_layers", "model.head=pooled or linear"),
        ),
        (("--augment.scale", "[0.9, 0.8]"), ("augment.scale",)),
        (("--augment.scale", "[0.9, 1.1]"), ("augment.scale",)),
        (("--augment.scale", "[224, 320]"), ("sizes in pixels are augment.scales",)),
        (("--augment.ratio", "[2, 1]"), ("augment.ratio",)),
        (("--model.normalize", "weights"), ("model.normalize", "model.weights")),
        (("--train.accumulate", "65"), ("train.accumulate", "train.batch_size")),
        (("--data.kind", "folder"), ("data.root",)),
        (("--data.kind", "caltech101"), ("data.root",)),
        (("--data.kind", "digits", "--data.root", "x"), ("data.root", "data.kind=digits", "folder")),
        (("--data.download", "true"), ("data.download", "caltech101")),
        (("--name", "a/b"), ("name", "a/b")),
        (("--name", " "), ("name",)),
        (("--branch",), ("--branch", "--resume RUN")),
    ],
)
def test_an_impossible_combination_is_refused_with_its_settings(
    words: tuple[str, ...], named: tuple[str, ...], refusal: Refusal
) -> None:
    sentence = refusal(*words)
    assert all(each in sentence for each in named), sentence


def test_fractions_may_be_any_that_add_up_to_one() -> None:
    words = ("--split.train", "0.7", "--split.val", "0.2", "--split.test", "0.1")
    assert parse(words)[0].split == SplitConfig(train=0.7, val=0.2, test=0.1)


def test_a_missing_experiment_file_names_the_known_ones(refusal: Refusal) -> None:
    sentence = refusal("--config", "quikstart")
    assert "'quikstart' (did you mean 'quickstart'?)" in sentence
    assert all(path.stem in sentence for path in SHIPPED)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just a sentence\n", "train: 3\n", "data: null\n"])
def test_a_file_without_groups_of_settings_is_named(text: str, write: Write, refusal: Refusal) -> None:
    path = write(text)
    assert path in refusal("--config", path, "--train.epochs", "3")


def test_a_folder_is_not_an_experiment_file(tmp_path: Path, refusal: Refusal) -> None:
    assert str(tmp_path) in refusal("--config", str(tmp_path))


@pytest.mark.parametrize(
    "words", [("--config",), ("--config=",), ("--train.epochs",), ("stray",), ("--epochs", "3", "4"), ("-x",)]
)
def test_a_word_that_is_missing_or_left_over_is_refused(words: tuple[str, ...], refusal: Refusal) -> None:
    assert refusal(*words)


@pytest.mark.parametrize("word", ["data", "optim", "seed_train", "train.epochs.x", "no_such", "print_confi"])
def test_only_settings_and_options_are_flags(word: str, refusal: Refusal) -> None:
    assert repr(word) in refusal(f"--{word}", "{}")


def test_text_that_is_not_unicode_is_refused(refusal: Refusal) -> None:
    assert "UTF-8" in refusal("--name", "\udcff")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['{run}']",
        "!!python/object/new:os.system ['{run}']",
        "!!python/object/apply:subprocess.check_output [['touch', '{trace}']]",
        "!!python/name:os.system",
        "!!python/module:evil_module",
    ],
)
def test_a_file_creates_no_objects(value: str, tmp_path: Path, write: Write, refusal: Refusal) -> None:
    trace = tmp_path / "it ran"
    value = value.format(run=f"touch {trace}", trace=trace)
    assert "is not valid YAML" in refusal("--config", write(f"name: {value}\n"))
    assert "optim.groups" in refusal("--optim.groups", value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "tree",
    [
        "optim: {class_path: evil_module.Evil}",
        "class_path: evil_module.Evil",
        "model: {normalize: {class_path: evil_module.Evil}}",
        "model: {normalize: evil_module.Evil}",
        "data: {class_path: evil_module.Evil, init_args: {a: 1}}",
        "augment: evil_module.Evil",
        "optim.name: {class_path: evil_module.Evil}",
    ],
)
def test_a_file_imports_nothing(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, refusal: Refusal
) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / "evil_module.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Evil: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    refusal("--config", write(f"{tree}\n"))
    name, _, value = tree.partition(": ")
    for word in (f"--{name}={value}", f"--{name}=evil_module.Evil", f"--model.normalize={value}"):
        with suppress(UserError):
            parse([word])
    assert not trace.exists()
    assert "evil_module" not in sys.modules


def test_a_path_that_is_not_utf8_is_named(refusal: Refusal) -> None:
    sentence = refusal("--data.root", "caf\udce9")
    assert "data.root is caf\\xe9, which is not valid UTF-8" in sentence
