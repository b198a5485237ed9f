"""An experiment is read from a file and overrides, or refused with one sentence that helps."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import runner.config.schema
from runner.config.parser import DEFAULTS, Options, find_experiment, parse, read
from runner.config.schema import (
    AugmentConfig,
    DataConfig,
    Experiment,
    FeaturesConfig,
    ModelConfig,
    Normalization,
    OptimConfig,
    ScheduleConfig,
    SeedConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
)
from runner.config.tree import as_tree, as_yaml, flatten
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.text import did_you_mean

SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
DIGITS = DataConfig(kind="digits")


def write(folder: Path, text: str) -> str:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*words: str) -> str:
    """The sentence that a command line is refused with."""
    with pytest.raises(UserError) as refused:
        parse(words)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def helps() -> dict[str, str]:
    """Dotted name of every setting and the docstring under it, read from the source."""

    def of(kind: type) -> dict[str, str]:
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        after = {a.target.id: b for a, b in pairwise(body) if isinstance(a, ast.AnnAssign)}
        found: dict[str, str] = {}
        for each in dataclasses.fields(kind):
            group = getattr(runner.config.schema, str(each.type), None)
            if dataclasses.is_dataclass(group):
                found |= {f"{each.name}.{name}": text for name, text in of(group).items()}
            else:
                found[each.name] = after[each.name].value.value
        return found

    return of(Experiment) | of(Options)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert not ended.value.code
    return capsys.readouterr().out


# The defaults


def test_the_defaults_are_the_published_report() -> None:
    report = Experiment(data=DataConfig(root="anywhere"))
    assert report.data.kind == "caltech101"
    assert not report.data.background
    assert report.split == SplitConfig(by="fraction", train=0.5, val=0.25, test=0.25)
    assert report.augment == AugmentConfig(
        train="fresh",
        resize=256,
        crop=224,
        scale=(0.8, 1.0),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        rotation=15.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        interpolation="bilinear",
        rotation_interpolation="nearest",
    )
    assert report.network == ModelConfig(
        arch="vgg16",
        weights="VGG16_Weights.IMAGENET1K_V1",
        head="report",
        width=256,
        dropout=0.4,
        normalise="statistics",
        trainable="head",
    )
    assert report.optim == OptimConfig(name="adam", lr=0.01, weight_decay=0.0, groups={})
    assert report.schedule == ScheduleConfig(kind="report", factor=5.0, reductions=3)
    assert report.fit == TrainConfig(
        epochs=30,
        batch_size=64,
        accumulate=1,
        clip=0.0,
        label_smoothing=0.0,
        class_weights=False,
        sampling="shuffled",
        best="top1",
    )


def test_an_experiment_cannot_be_changed() -> None:
    experiment = Experiment(data=DIGITS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.train.epochs = 3  # type: ignore[misc]


def test_without_a_file_the_quickstart_is_meant() -> None:
    assert parse([])[0] == read(EXPERIMENTS / "quickstart.yaml")
    assert parse([])[0].data.kind == "digits"
    assert parse([])[1] == Options(repeat=1, dry_run=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_parses(path: Path) -> None:
    experiment = read(path)
    assert experiment.name == path.stem
    assert experiment.data.kind in ("digits", "caltech101")


def test_experiments_are_shipped() -> None:
    assert {"quickstart", "caltech101-pooled"} <= {path.stem for path in SHIPPED}


# Files and overrides


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {kind: digits}\nfit:\n  epochs: 7\nviews: {scale: [0.5, 0.75]}\n")
    assert read(Path(path)) == Experiment(data=DIGITS, fit=TrainConfig(epochs=7), views=AugmentConfig(scale=(0.5, 0.75)))


def test_overrides_win_over_the_file_wherever_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {kind: digits}\nfit: {epochs: 7, batch_size: 5}\n")
    expected = Experiment(data=DIGITS, fit=TrainConfig(epochs=9, batch_size=5))
    assert parse(["--config", path, "--train.epochs", "9"])[0] == expected
    assert parse([f"--config={path}", "--train.epochs=9"])[0] == expected


def test_a_later_override_wins() -> None:
    assert parse(["--train.epochs", "2", "--train.epochs", "4"])[0].train.epochs == 4


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("augment.views", "clean", "clean"),
        ("augment.views", "4", 4),
        ("augment.scale", "[0.5, 0.75]", (0.5, 0.75)),
        ("data.workers", "0", 0),
        ("data.workers", "auto", "auto"),
        ("model.weights", "null", None),
        ("optim.lr", "1e-3", 0.001),
        ("optim.groups", "{features.24: 1.0e-5}", {"features.24": 1e-5}),
        ("data.follow_links", "true", True),
        ("seed.train", "-1", -1),
        ("features.batch_size", "3", 3),
    ],
)
def test_an_override_has_the_type_of_its_setting(name: str, word: str, value: object) -> None:
    group, setting = name.split(".")
    found = getattr(getattr(parse([f"--{name}", word])[0], group), setting)
    assert found == value
    assert isinstance(found, type(value))


def test_numbers_to_normalise_with_can_be_given(tmp_path: Path) -> None:
    numbers = "{mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}"
    expected = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = write(tmp_path, f"data: {{kind: digits}}\nnetwork: {{normalise: {numbers}}}\n")
    assert read(Path(path)).model.normalize == expected
    assert parse(["--model.normalize", numbers])[0].model.normalize == expected


def test_options_are_no_part_of_the_experiment() -> None:
    experiment, options = parse(["--repeat", "3", "--dry-run"])
    assert options == Options(repeat=3, dry_run=True)
    assert experiment == parse([])[0]
    assert parse(["--dry_run"])[1].dry_run


def test_an_experiment_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    own = Path(write(tmp_path, "data: {kind: digits}\n"))
    assert find_experiment(str(own)) == own
    assert find_experiment("quickstart") == EXPERIMENTS / "quickstart.yaml"
    assert find_experiment("quickstart.yaml") == EXPERIMENTS / "quickstart.yaml"


# Written and read back

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
    views=st.builds(
        AugmentConfig,
        train=st.sampled_from(["clean", "fresh"]) | whole,
        crop=st.integers(32, 256),
        scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
        flip=share,
        rotation=st.floats(0, 180),
        hue=st.floats(0, 0.5),
    ),
    network=st.builds(
        ModelConfig,
        weights=st.none() | st.just("weights/own.safetensors"),
        normalise=st.just("statistics")
        | st.builds(Normalization, st.tuples(share, share, share), st.tuples(positive, positive, positive)),
        dropout=st.floats(0, 0.99),
    ),
    features=st.builds(FeaturesConfig, store=st.booleans(), chunk=st.just("auto") | whole),
    optim=st.builds(
        OptimConfig, lr=positive, groups=st.dictionaries(st.sampled_from(["features", "features.24"]), positive)
    ),
    seed=st.builds(SeedConfig, st.integers(-9, 10**9), st.integers(), st.integers()),
)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])  # parsing is slow
@example(Experiment(name="1e3", data=DIGITS, tracking=TrackingConfig(root="1e3")))
@example(Experiment(name="yes", data=DIGITS, cache="007", tracking=TrackingConfig(root="1.5")))
@example(Experiment(name="null", data=DIGITS))
@example(Experiment(data=DataConfig(kind="folder", root="/bücher/a: b"), optim=OptimConfig(lr=1e-5)))
@given(experiments)
def test_an_experiment_written_and_read_back_is_equal(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment
) -> None:
    path = tmp_path_factory.mktemp("written") / "experiment.yaml"
    path.write_text(as_yaml(experiment), encoding="utf-8")
    again = read(path)
    assert again == experiment


def test_what_is_parsed_can_be_written_as_plain_yaml() -> None:
    experiment = parse(["--optim.groups", "{features: 0.5}", "--augment.views", "3"])[0]
    assert yaml.safe_load(as_yaml(experiment)) == as_tree(experiment)
    assert {type(value) for value in flatten(as_tree(experiment)).values()} <= {
        *(str, int, float, bool, list, dict, type(None))
    }


# Mistakes


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--fit.epoch", "train.epochs"),
        ("--fitt.epochs", "train.epochs"),
        ("--epochs", "train.epochs"),
        ("--lr", "optim.lr"),
        ("--views.rotate", "augment.rotation"),
        ("--network.archh", "model.arch"),
        ("--repeats", "repeat"),
    ],
)
def test_an_unknown_setting_names_the_nearest(word: str, near: str) -> None:
    sentence = refusal(word, "3")
    assert repr(word[2:]) in sentence
    assert f"did you mean {near!r}?" in sentence


def test_an_unknown_setting_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    sentence = refusal("--config", write(tmp_path, "data: {kind: digits}\nfit:\n  epoch: 3\n"))
    assert "'fit.epoch'" in sentence
    assert "did you mean 'train.epochs'?" in sentence


def test_an_unknown_group_in_a_file_is_refused(tmp_path: Path) -> None:
    assert "'fitting" in refusal("--config", write(tmp_path, "data: {kind: digits}\nfitting: {epochs: 3}\n"))


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("xyzzy", ["train.epochs", "optim.lr"]) == ""
    assert "did you mean" not in refusal("--xyzzyxyzzy", "3")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", "many"),
        ("train.epochs", "0"),
        ("train.epochs", "2.5"),
        ("train.precision", "fp8"),
        ("train.class_weights", "maybe"),
        ("data.kind", "foldr"),
        ("data.unreadable", "ignore"),
        ("data.workers", "-1"),
        ("augment.views", "0"),
        ("augment.views", "dirty"),
        ("augment.flip", "1.1"),
        ("augment.scale", "0.8"),
        ("augment.scale", "[0.8]"),
        ("augment.brightness", "-0.1"),
        ("model.arch", "vgg99"),
        ("optim.lr", "0"),
        ("optim.lr", "nan"),
        ("optim.momentum", "2"),
        ("optim.groups", "{features: 0}"),
        ("schedule.reductions", "0"),
        ("seed.split", "1.5"),
        ("split.train", "0"),
        ("repeat", "0"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(name: str, value: str) -> None:
    sentence = refusal(f"--{name}", value)
    assert sentence.startswith(f"The setting {name} cannot have that value")


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
    ],
)
def test_the_ranges_of_our_own_number_types_hold(name: str, inside: str, outside: str) -> None:
    group, setting = name.split(".")
    assert getattr(getattr(parse([f"--{name}", inside])[0], group), setting) == float(inside)
    assert name in refusal(f"--{name}", outside)


def test_a_wrong_value_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    assert "train.epochs" in refusal(
        "--config", write(tmp_path, "data: {kind: digits}\nfit: {epochs: many}\n")
    )
    assert "model.normalize" in refusal(
        "--config",
        write(tmp_path, "data: {kind: digits}\nnetwork: {normalise: {mean: [0, 0, 0], std: [0, 1, 1]}}\n"),
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--split.train", "0.6"), ("split.train", "1.1")),
        (("--split.by", "count"), ("split.by=count", "whole")),
        (("--augment.crop", "80"), ("augment.crop", "augment.resize")),
        (("--augment.crop", "31"), ("augment.crop", "32")),
        (("--augment.scale", "[0.9, 0.8]"), ("augment.scale",)),
        (("--augment.scale", "[0.9, 1.1]"), ("augment.scale",)),
        (("--augment.ratio", "[2, 1]"), ("augment.ratio",)),
        (("--model.normalize", "weights"), ("model.normalize", "model.weights")),
        (("--train.accumulate", "65"), ("train.accumulate", "train.batch_size")),
        (("--data.kind", "folder"), ("data.root",)),
        (("--data.kind", "caltech101"), ("data.root",)),
        (("--name", "a/b"), ("name", "a/b")),
        (("--name", " "), ("name",)),
    ],
)
def test_an_impossible_combination_is_refused_with_its_settings(
    words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    sentence = refusal(*words)
    assert all(each in sentence for each in named), sentence


def test_fractions_may_be_any_that_add_up_to_one() -> None:
    words = ("--split.train", "0.7", "--split.val", "0.2", "--split.test", "0.1")
    assert parse(words)[0].split == SplitConfig(train=0.7, val=0.2, test=0.1)


def test_a_missing_experiment_file_names_what_there_is() -> None:
    sentence = refusal("--config", "quikstart")
    assert "'quikstart'" in sentence
    assert "did you mean 'quickstart'?" in sentence
    assert all(path.stem in sentence for path in SHIPPED)


def test_a_folder_is_no_experiment_file(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("--config", str(tmp_path))


@pytest.mark.parametrize("content", [b"a: [\n", b"\x00\x01", b"\xff\xd8\xff\xe0 a picture", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(content)
    assert f"{path} is not a YAML file" in refusal("--config", str(path))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just a sentence\n", "fit: 3\n", "data: null\n"])
def test_a_yaml_file_without_groups_of_settings_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert path in refusal("--config", path)


@pytest.mark.parametrize("words", [("--config",), ("--config=",), ("--train.epochs",), ("stray",)])
def test_a_word_that_lacks_its_other_half_is_refused(words: tuple[str, ...]) -> None:
    assert words[0].rstrip("=") in refusal(*words)


def test_a_value_too_many_is_refused() -> None:
    assert "'4'" in refusal("--train.epochs", "3", "4")


# Help


def test_help_tells_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--help")
    squeezed = "".join(text.split())
    assert helps().keys() == {*flatten(DEFAULTS), "repeat", "dry_run", "resume", "branch"}
    for name, told in helps().items():
        assert f"--{name}" in text
        assert "".join(told.split()) in squeezed, name


def test_print_config_tells_of_every_setting_and_reads_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "--train.epochs", "7", "--print_config")
    squeezed = "".join(text.replace("#", "").split())
    for name, told in helps().items():
        assert "".join(told.replace("#", "").split()) in squeezed, name
    assert flatten(yaml.safe_load(text)).keys() == helps().keys()
    assert read(Path(write(tmp_path, text))) == parse(["--train.epochs", "7"])[0]


@pytest.mark.parametrize(
    ("words", "resume", "branch"),
    [
        (["--resume"], "auto", False),
        (["--resume="], "auto", False),
        (["--resume", "--train.epochs", "3"], "auto", False),
        (["--train.epochs", "3", "--resume"], "auto", False),
        (["--resume", "abcd", "--train.epochs", "3"], "abcd", False),
        (["--resume", "abcd", "--branch"], "abcd", True),
        (["--branch", "true", "--resume", "abcd"], "abcd", True),
        (["--branch", "false", "--resume", "abcd"], "abcd", False),
    ],
)
def test_what_is_gone_on_with(words: list[str], resume: str, branch: bool) -> None:
    experiment, options = parse(words)
    assert (options.resume, options.branch) == (resume, branch)
    assert experiment.train.epochs == (3 if "3" in words else 30)
