"""An experiment as plain dictionaries and YAML, and back: all settings are validated here."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from runner.config.architecture import for_network, with_usual_values
from runner.config.metadata import Setting, describe, groups, table
from runner.config.protocols import with_protocol
from runner.config.schema import Experiment
from runner.config.stages import follow_stages
from runner.utils.errors import UserError
from runner.utils.safe_yaml import dump_yaml
from runner.utils.text import did_you_mean, one_line, valid_unicode

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def as_tree(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(experiment))


def as_yaml(experiment: Experiment) -> str:
    """The experiment as a YAML file that `--config` reads back equal."""
    return dump_yaml(as_tree(experiment))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"epochs": 3}}` → `{"train.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def from_tree(tree: Mapping[str, Any]) -> Experiment:
    """The experiment of a tree; what it lacks is as its `split.protocol`, `model.arch` and `train.stages` say, or the
    default.

    Raises `UserError` for an unknown setting, a value of the wrong type or out of range, or a combination of
    settings that cannot work.
    """
    return validated(Experiment, follow_stages(with_usual_values(with_protocol(tree))))


def override(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with other values of some settings, given by dotted name. Raises `UserError` as `from_tree`."""
    tree = as_tree(experiment)
    tree = for_network(tree, values)
    for name, value in values.items():
        if name not in table():
            raise UserError(f"{unknown(name, [*table()])}.")
        put(tree, name, value)
    return from_tree(follow_stages(tree, values) if "train.stages" in values else tree)


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set the value of a setting, given by dotted name, in a tree."""
    *path, last = name.split(".")
    for group in path:
        tree = tree.setdefault(group, {})
    tree[last] = value


def setting_in(tree: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a setting, given by dotted name, in a tree; `default` if the tree lacks it."""
    value: Any = tree
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def check_setting(where: str, experiment: Experiment, name: str, value: object) -> None:
    """Check that an experiment takes a value of a setting, without converting it.

    Raises `UserError`, beginning with `where`, if it does not.
    """
    try:
        taken = flatten(as_tree(override(experiment, {name: value})))[name]
    except UserError as error:
        raise UserError(f"{where} cannot be {value!r}: {error}") from None
    if taken != value:
        raise UserError(f"{where} cannot be {value!r}: the setting would read it as {taken!r}.")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # takes a tenth of a second, and is needed only where settings are read

    return TypeAdapter(kind)


def validated(kind: type[T], tree: Mapping[str, Any]) -> T:
    """An instance of a class of settings. Raises `UserError` as `from_tree`."""
    from pydantic import ValidationError

    try:
        # JSON, since its strict mode means what a file means: lists for tuples, but no "3" for 3.
        return _adapter(kind).validate_json(json.dumps(tree))  # type: ignore[arg-type] # classes are hashable
    except ValidationError as error:
        mistakes = error.errors()
        unknown_names = (each for each in mistakes if each["type"] == "unexpected_keyword_argument")
        first = next(unknown_names, mistakes[0])
        raise UserError(f"{one_line(_sentence(kind, tree, first))}.") from None
    except ValueError as error:
        raise UserError(f"{one_line(str(error))}.") from None


def _sentence(kind: type, tree: Any, error: Any) -> str:
    """One validation error in a sentence without its period."""
    if error["type"] == "value_error":  # of a rule between settings
        return str(error["ctx"]["error"])
    if error["type"] == "json_invalid":  # lone surrogates, as of a file name
        texts = {
            name: str(value)
            for name, value in flatten(tree).items()
            if str(value) != valid_unicode(str(value))
        }
        name = next((name for name in texts if name != "name"), "name")  # that follows the folder
        return f"{name} is {valid_unicode(texts.get(name, ''))}, which is not valid UTF-8; rename the file or folder"
    known = table(kind)
    path: list[str] = []
    for part in map(str, error["loc"]):
        path.append(part)
        tree = tree.get(part) if isinstance(tree, Mapping) else None
        setting = known.get(".".join(path))
        if setting is not None and "." not in part:  # a file has groups, not dotted names
            if entry := _wrong_entry(setting, tree, error["loc"][len(path) :]):
                return entry
            return f"{setting.name} must be {setting.takes}; it is {_shown(tree)}"
    name = ".".join(path)
    if name in groups():
        return f"{name} must be a group of settings, as {name}: {{…}}; it is {_shown(tree)}"
    return unknown(name, [*known])


def _wrong_entry(setting: Setting, value: Any, place: Sequence[int | str]) -> str:
    """What is wrong in an entry of a list of settings, as train.stages; empty if that is not known.

    Args:
        setting: The list.
        value: As it was given.
        place: Index of the entry, and the name in it.
    """
    if not isinstance(value, list) or len(place) < 2 or not isinstance(entry := value[int(place[0])], dict):
        return ""
    number, name = int(place[0]) + 1, str(place[1])
    kinds = typing.get_type_hints(typing.get_args(setting.type)[0], include_extras=True)
    if name not in kinds:
        return f"{setting.name}: entry {number} has no setting {one_line(name, 50)!r}{did_you_mean(name, [*kinds])}"
    if name not in entry:
        return f"{setting.name}: entry {number} lacks {name}"
    return f"{setting.name}: {name} of entry {number} must be {describe(kinds[name])}; it is {_shown(entry[name])}"


def unknown(name: str, known: list[str]) -> str:
    """The sentence, without its period, for a name that is no setting."""
    if name in known:  # a dotted name
        group, _, last = name.rpartition(".")
        return f"{name!r} must be written as a group in a file: {group}: {{{last}: …}}"
    return f"There is no setting {name!r}{did_you_mean(name, known)}; --help lists all settings"


def _shown(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 200)
