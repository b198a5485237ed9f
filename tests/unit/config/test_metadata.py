"""What is known of each setting, and the reference that is generated from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt

from runner.config import reference
from runner.config.choices import DATASETS, OPTIMIZERS, SCHEDULES
from runner.config.data_schema import DataConfig
from runner.config.metadata import changes_results, describe, docstrings, groups, table
from runner.config.parser import Options, parse
from runner.config.schema import Experiment, Normalization
from runner.config.tree import as_tree, flatten
from runner.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[3]
HARMLESS = {
    *("data.root", "data.test", "data.table", "data.columns", "data.leaks", "data.download", "data.workers"),
    *("features.store", "features.memory", "features.cap", "features.shared"),
    *("checkpoints.minutes", "checkpoints.epochs", "checkpoints.keep"),
    *(
        "tracking.root",
        "tracking.system_metrics",
        "tracking.model",
        "tracking.register",
        "tracking.gallery",
        "tracking.gallery_every",
    ),
    "cache",
    "train.timeout",
    "train.recompute",
}
FIXED_GROUPS = ("data.", "split.", "seed.", "tracking.", "features.", "checkpoints.")
FIXED = {"name", "cache", "train.precision", "train.best", "train.timeout", "train.recompute"}


def test_the_table_holds_every_setting() -> None:
    experiment = Experiment(data=DataConfig(root="."))
    assert [*table()] == [*flatten(as_tree(experiment))]
    fields = {each.name for each in dataclasses.fields(Experiment)}
    assert {*groups()} == fields - {"name", "cache"}


def test_every_setting_is_explained() -> None:
    for setting in (*table().values(), *table(Options).values()):
        assert setting.help.endswith("."), setting.name
        assert setting.takes, setting.name
    assert {*docstrings(Normalization)} == {"mean", "std"}


def test_the_settings_that_change_no_result() -> None:
    assert {name for name in table() if not changes_results(name)} == HARMLESS


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("optim.groups.features.24", True),
        ("model.normalize.mean", True),
        ("data.root.x", False),
        ("of an earlier version", True),
        ("tracking", True),
        ("", True),
    ],
)
def test_names_that_are_no_setting(name: str, changes: bool) -> None:
    assert changes_results(name) is changes


def test_the_settings_that_a_study_may_vary() -> None:
    fixed = {name for name, setting in table().items() if not setting.searchable}
    assert fixed == {name for name in table() if name in FIXED or name.startswith(FIXED_GROUPS)}
    assert all(not changes_results(name) or table()[name].not_searchable for name in fixed)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("train.epochs", int),
        ("seed.train", int),
        ("optim.lr", float),
        ("model.dropout", float),
        ("train.class_weights", None),
        ("augment.views", None),
        ("augment.scale", None),
        ("optim.name", None),
        ("optim.groups", None),
    ],
)
def test_the_settings_that_are_numbers(name: str, number: type | None) -> None:
    assert table()[name].number is number


def test_every_type_is_described_with_its_range() -> None:
    for setting in table().values():
        assert "annotated_types" not in setting.takes
        assert "typing" not in setting.takes
    assert table()["optim.lr"].takes == "a number > 0"
    assert table()["model.dropout"].takes == "a number from 0 to below 1"
    assert table()["data.workers"].takes == "auto or a whole number ≥ 0"
    assert table()["schedule.kind"].takes == "reduce_on_drop, cosine, onecycle or constant"
    assert table()["augment.scale"].takes == "a list of 2 numbers > 0"
    assert table()["augment.scales"].takes == "a list of whole numbers > 0, in px"
    assert table()["model.pooled_layers"].takes == "a list of words"
    assert table()["optim.groups"].takes == "{name: a number > 0}"
    stage = "{epochs: a whole number > 0, trainable: text, lr: a number > 0 or null}"
    assert table()["train.stages"].takes == f"a list of {stage}"


def test_every_range_of_the_schema_has_words() -> None:
    """A bound that `describe` did not know would be left out of help and messages."""

    def bounds(kind: Any) -> int:
        own = sum(isinstance(each, (Ge, Gt, Le, Lt)) for each in getattr(kind, "__metadata__", ()))
        return own or sum(map(bounds, getattr(kind, "__args__", ())))

    for setting in table().values():
        if bounds(setting.type):
            assert any(sign in describe(setting.type) for sign in ("> ", "≥ ", " to ")), setting.name


# The reference


def test_the_settings_reference_is_up_to_date() -> None:
    path = ROOT / "docs" / "settings.md"
    assert path.read_text(encoding="utf-8") == reference.markdown(), "run python -m runner.config.reference"


def test_the_json_schema_describes_every_setting() -> None:
    schema = reference.json_schema()
    assert not schema["additionalProperties"]
    for name, setting in table().items():
        owner = schema if setting.owner is Experiment else schema["$defs"][setting.owner.__name__]
        assert owner["properties"][name.rpartition(".")[2]]["description"] == setting.help
    assert schema["$defs"]["ScheduleConfig"]["properties"]["kind"]["enum"] == [*SCHEDULES.choices]


# Choices


def test_the_choices_that_are_registered() -> None:
    assert [*DATASETS.choices] == ["folder", "caltech101", "digits"]
    assert [*OPTIMIZERS.choices] == ["adam", "adamw", "sgd"]
    assert [*SCHEDULES.choices] == ["reduce_on_drop", "cosine", "onecycle", "constant"]


NEW = """
from runner.config.choices import DATASETS, OPTIMIZERS, SCHEDULES

@DATASETS.register("csv", "images listed in a CSV file", uses=("root",))
def csv(data, cache, terminal):
    return data.root

@OPTIMIZERS.register("lion", "the optimizer Lion")
def lion(groups, optim):
    return optim.lr

@SCHEDULES.register("warmup", "linear warmup")
def warmup(schedule, optimizer, steps):
    return steps
"""


def test_a_module_adds_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file adds a dataset, an optimizer and a schedule: settings, messages and help know them."""
    (tmp_path / "new_choices.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    added: dict[str, Registry[Any]] = {"csv": DATASETS, "lion": OPTIMIZERS, "warmup": SCHEDULES}
    import new_choices  # type: ignore[import-not-found]

    try:
        words = [
            "--data.kind",
            "csv",
            "--data.root",
            "x",
            "--optim.name",
            "lion",
            "--schedule.kind",
            "warmup",
        ]
        experiment = parse(words)[0]
        assert experiment.data == DataConfig(kind="csv", root="x")
        assert SCHEDULES.find(experiment.schedule.kind).implementation is new_choices.warmup
        with pytest.raises(ValueError, match=r"data\.download is not used by data\.kind=csv"):
            DataConfig(kind="csv", root="x", download=True)
        with pytest.raises(SystemExit):
            parse(["--help"])
        squeezed = " ".join(capsys.readouterr().out.split())
        assert all(registry.choices[name].description in squeezed for name, registry in added.items())
    finally:
        for name, registry in added.items():
            registry.remove(name)
    with pytest.raises(ValueError, match=r"schedule\.kind must be one of"):
        SCHEDULES.find("warmup")
