"""An experiment is read from a file and flags, or refused with one sentence that names the setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.augment_schema import AugmentConfig
from runner.config.data_schema import DataConfig
from runner.config.metadata import table
from runner.config.parser import EXPERIMENTS, QUICKSTART, SHORT, Options, find_experiment, parse, read
from runner.config.schema import Experiment, Normalization
from runner.config.train_schema import TrainConfig
from runner.config.tree import as_tree, as_yaml, flatten, setting_in
from runner.utils.safe_yaml import parse_yaml

Write = Callable[[str], str]
SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
DIGITS = DataConfig(kind="digits")
NUMBERS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def flatten_settings(experiment: Experiment) -> dict[str, Any]:
    """The values of an experiment by setting."""
    return {name: setting_in(as_tree(experiment), name, None) for name in table()}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command line prints before it exits with status 0."""
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert not ended.value.code
    return capsys.readouterr().out


# Files and flags


def test_the_quickstart_is_the_default() -> None:
    assert parse([]) == (read(QUICKSTART), Options(repeat=1, dry_run=False, resume=None, branch=False))
    assert parse([])[0].data.kind == "digits"


@pytest.mark.parametrize("words", [("--data.kind", "folder", "--data.root", "x"), ("--data.root=x",)])
def test_a_folder_of_images_is_trained_with_the_recipe_for_folders(words: tuple[str, ...]) -> None:
    experiment = parse(words)[0]
    assert experiment == parse(["--config", "folder", *words])[0]
    assert experiment.model.weights == "VGG16_Weights.IMAGENET1K_V1"
    assert (experiment.augment.crop, experiment.data.kind) == (224, "folder")


def test_random_weights_for_a_folder_must_be_asked_for() -> None:
    folder = ("--data.kind", "folder", "--data.root", "x")
    assert parse(["--config", "quickstart", *folder])[0].model.weights is None
    weights = ("--model.weights", "null", "--model.normalize", "statistics")
    assert parse([*folder, *weights])[0].model.weights is None
    assert parse(["--data.kind", "digits"])[0] == read(QUICKSTART)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_parses(path: Path) -> None:
    root = ["--data.root", "x"] if path.stem == "folder" else []
    experiment = parse(["--config", str(path), *root])[0]
    assert experiment.name == ("x" if path.stem == "folder" else path.stem)
    assert experiment.data.kind in ("digits", "caltech101", "folder")


def test_experiments_are_shipped() -> None:
    assert {"quickstart", "folder", "caltech101", "caltech101-pooled"} <= {path.stem for path in SHIPPED}


def test_a_file_changes_what_it_names_and_nothing_else(write: Write) -> None:
    path = write("data: {kind: digits}\ntrain:\n  epochs: 7\naugment: {scale: [0.5, 0.75]}\n")
    expected = Experiment(data=DIGITS, train=TrainConfig(epochs=7), augment=AugmentConfig(scale=(0.5, 0.75)))
    assert read(Path(path)) == expected


def test_flags_override_the_file_wherever_they_stand(write: Write) -> None:
    path = write("data: {kind: digits}\ntrain: {epochs: 7, batch_size: 5}\n")
    expected = Experiment(data=DIGITS, train=TrainConfig(epochs=9, batch_size=5))
    assert parse(["--config", path, "--train.epochs", "9"])[0] == expected
    assert parse(["--train.epochs", "9", f"--config={path}"])[0] == expected


def test_the_last_flag_counts() -> None:
    assert parse(["--train.epochs", "2", "--epochs", "4"])[0].train.epochs == 4
    assert parse(["--epochs", "4", "--train.epochs=2"])[0].train.epochs == 2


@pytest.mark.parametrize(("flag", "name"), [*SHORT.items(), ("name", "name")])
def test_short_flags(flag: str, name: str) -> None:
    assert flatten(as_tree(parse([f"--{flag}", "7"])[0]))[name] == ("7" if name == "name" else 7)


@pytest.mark.parametrize(
    "words",
    [("--train.batch-size", "5"), ("--train.batch_size=5",), ("--batch-size=5",), ("--batch_size", "5")],
)
def test_flags_take_dashes_and_underscores(words: tuple[str, ...]) -> None:
    assert parse(words)[0].train.batch_size == 5


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("augment.views", "none", "none"),
        ("augment.views", "4", 4),
        ("augment.scale", "[0.5, 0.75]", [0.5, 0.75]),
        ("augment.scale", "[0.5, 1]", [0.5, 1.0]),
        ("cache", "null", "null"),
        ("data.workers", "0", 0),
        ("data.workers", "auto", "auto"),
        ("data.follow_links", "true", True),
        ("features.batch_size", "3", 3),
        ("features.compile", "false", False),
        ("model.normalize", "{mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}", NUMBERS),
        ("model.normalize", json.dumps(NUMBERS), NUMBERS),
        ("model.weights", "1e3", "1e3"),
        ("model.weights", "null", None),
        ("name", "007", "007"),
        ("name", "true", "true"),
        ("optim.groups", "{features.24: 1e-5}", {"features.24": 1e-5}),
        ("optim.lr", "1", 1.0),
        ("optim.lr", "1e-3", 0.001),
        ("seed.train", "-1", -1),
        ("seed.train", str(10**30), 10**30),
        ("train.precision", "no", "no"),
    ],
)
def test_a_flag_has_the_type_of_its_setting(name: str, word: str, value: object) -> None:
    for words in ([f"--{name}", word], [f"--{name}={word}"]):
        found = as_tree(parse(words)[0])
        for part in name.split("."):
            found = found[part]
        assert found == value
        assert type(found) is type(value)


def test_numbers_of_the_normalization(write: Write) -> None:
    path = write(f"data: {{kind: digits}}\nmodel: {{normalize: {json.dumps(NUMBERS)}}}\n")
    assert read(Path(path)).model.normalize == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_file_is_yaml_1_2(write: Write) -> None:
    """YAML 1.1 reads `1e-4` as text, and `no` as false."""
    path = write("data: {kind: digits}\noptim: {lr: 1e-4}\ntrain: {precision: no}\nname: 2024-01-01\n")
    experiment = read(Path(path))
    assert (experiment.optim.lr, experiment.train.precision, experiment.name) == (1e-4, "no", "2024-01-01")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--repeat", "3", "--dry-run"], Options(repeat=3, dry_run=True)),
        (["--dry_run"], Options(dry_run=True)),
        (["--dry-run=false"], Options()),
        (["--resume"], Options(resume="auto")),
        (["--resume="], Options(resume="auto")),
        (["--resume", "--epochs", "3"], Options(resume="auto")),
        (["--epochs", "3", "--resume"], Options(resume="auto")),
        (["--resume", "abcd", "--epochs", "3"], Options(resume="abcd")),
        (["--resume", "1234"], Options(resume="1234")),
        (["--resume", "abcd", "--branch"], Options(resume="abcd", branch=True)),
        (["--branch", "true", "--resume", "abcd"], Options(resume="abcd", branch=True)),
        (["--branch", "false", "--resume", "abcd"], Options(resume="abcd")),
    ],
)
def test_options_are_not_part_of_the_experiment(words: list[str], expected: Options) -> None:
    experiment, options = parse(words)
    assert options == expected
    assert experiment == parse(["--epochs", "3"] if "3" in words and "--epochs" in words else [])[0]


def test_an_experiment_is_found_by_path_and_by_name(write: Write) -> None:
    own = Path(write("data: {kind: digits}\n"))
    assert find_experiment(str(own)) == own
    assert find_experiment("quickstart") == find_experiment("quickstart.yaml") == QUICKSTART


# Help


def test_help_lists_every_setting_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    squeezed = "".join(text.split())
    for name, setting in {**table(), **table(Options)}.items():
        assert f"--{name} " in text
        assert "".join(setting.help.split()) in squeezed, name
        assert setting.help.endswith(".")
    assert all(f"--{flag} " in text for flag in SHORT)
    assert "anumber>0,inGiB;default:4.0" in squeezed


@pytest.mark.parametrize(
    "words",
    [[], ["--data.root", "x"], ["--data.kind=caltech101", "--data.root=x"], ["--config", "caltech101"]],
)
def test_help_shows_the_values_that_a_command_uses(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no flag gives a setting: the flags of `words` do not change what the help calls a default."""
    used = flatten_settings(parse(words)[0])
    squeezed = "".join(printed(capsys, *words, "--help").split())
    for name in table().keys() - {"data.kind", "data.root"}:
        shown = squeezed.partition(f"--{name}VALUE")[2].partition("default:")[2].partition(")")[0]
        assert parse_yaml(shown) == used[name], name


@pytest.mark.parametrize("flag", ["--print_config", "--print-config"])
def test_print_config_explains_every_setting_and_reads_back(
    flag: str, capsys: pytest.CaptureFixture[str], write: Write
) -> None:
    words = ["--epochs", "7", "--lr", "1e-5", "--optim.groups", "{features: 1e-6}", "--model.normalize"]
    words.append(json.dumps(NUMBERS))
    text = printed(capsys, *words, flag)
    experiment = parse(words)[0]
    assert all(setting.help in text for setting in table().values())
    assert parse_yaml(text) == as_tree(experiment)
    assert read(Path(write(text))) == experiment


# Mistakes


# Security


def test_an_experiment_written_by_python_is_read_back(write: Write) -> None:
    experiment = parse(["--optim.groups", "{features: 0.5}", "--augment.views", "3"])[0]
    assert read(Path(write(as_yaml(experiment)))) == experiment


def test_an_experiment_on_a_folder_is_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ["--data.root", str(tmp_path / "my birds")]
    assert parse(folder)[0].name == "my birds"
    for file in ("quickstart", "caltech101-pooled"):
        assert parse(["--config", file, "--data.kind", "folder", *folder])[0].name == "my birds"
    assert parse(["--name", "mine", *folder])[0].name == "mine"
    monkeypatch.chdir(tmp_path)
    assert parse(["--data.root", "."])[0].name == tmp_path.name
    assert (
        parse(["--config", "caltech101-pooled", "--data.root", str(tmp_path)])[0].name == "caltech101-pooled"
    )


def test_an_experiment_file_of_ones_own_names_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: seeds\ndata: {kind: folder, root: images}\n")
    assert parse(["--config", str(file)])[0].name == "seeds"
    assert parse(["--config", str(file), "--data.root", "elsewhere"])[0].name == "seeds"
    file.write_text("data: {kind: folder, root: images}\n")
    assert parse(["--config", str(file)])[0].name == "images"


def test_a_smoke_run_registers_no_model() -> None:
    assert parse([])[0].tracking.register
    assert not parse(["--smoke"])[0].tracking.register
