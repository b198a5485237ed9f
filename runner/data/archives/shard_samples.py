"""The samples of a WebDataset shard: members whose names are the same up to the first dot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from runner.data.archives.members import MemberList, quoted
from runner.utils.errors import UserError
from runner.utils.image_paths import SUFFIXES
from runner.utils.text import valid_unicode

FIELDS = ("cls", "label", "class")
"""Of a .json member: the first of these that it has is the class."""
MAX_CLASS, MAX_JSON = 255, 1 << 24
"""Bytes of a class name, and of a .json member."""


class Sample(NamedTuple):
    """The rows of an image and of the member that holds its class."""

    image: int
    label: int


def find_samples(shard: Path, paths: Sequence[str]) -> list[Sample]:
    """The samples among a shard's members. Members of other kinds are passed over.

    Raises `UserError` for a sample without image, with several, or without a class.
    """
    rows: dict[str, dict[str, int]] = {"image": {}, "cls": {}, "json": {}}
    for row, path in enumerate(paths):
        folder, slash, name = path.rpartition("/")
        key, _, extension = name.partition(".")
        kind = extension.rpartition(".")[2].lower()
        kind = "image" if f".{kind}" in SUFFIXES else kind
        if kind in rows and rows[kind].setdefault(f"{folder}{slash}{key}", row) != row:
            first = paths[rows[kind][f"{folder}{slash}{key}"]]
            _refuse(
                shard,
                folder + slash + key,
                f"has two members of the same kind ({quoted(first)}, {quoted(path)})",
                "a sample is what has the same name up to the first dot, so give each one a name of its own",
            )
    if rows["image"] and not rows["cls"] and not rows["json"]:
        raise UserError(
            f"The tar file {shard} holds images without classes: a WebDataset shard has name.cls or name.json beside"
            " name.jpg. Unpack it if it is something else; docs/data.md shows what is accepted."
        )
    for key in rows["image"]:
        if key not in rows["cls"] and key not in rows["json"]:
            _refuse(shard, key, "has an image but no class", "add a member .cls or .json to it, or remove it")
    for key in rows["cls"]:
        if key not in rows["image"]:
            _refuse(
                shard, key, "has a class but no image", "add a .jpg, .png or .webp member to it, or remove it"
            )
    return [
        Sample(row, rows["cls"].get(key, rows["json"].get(key, -1))) for key, row in rows["image"].items()
    ]


def read_label(file: IO[bytes], shard: Path, members: MemberList, sample: Sample) -> str:
    """The class of a sample. Raises `UserError` unless it is a text in one line or a whole number."""
    path = members.paths[sample.label]
    key, is_json = path.rpartition(".")[0], path.lower().endswith(".json")
    offset, size = members.place(sample.label)
    if size > (MAX_JSON if is_json else MAX_CLASS):
        _refuse(shard, key, f"has a class of {size:,} bytes in {quoted(path)}", "write the name of its class")
    file.seek(offset)
    try:
        text = file.read(size).decode("utf-8-sig")
        value = _field(json.loads(text)) if is_json else _parsed(text.strip())
    except (ValueError, RecursionError):
        _refuse(shard, key, f"has a class that cannot be read in {quoted(path)}", "write it as UTF-8 text")
    if isinstance(value, list):
        _refuse(
            shard,
            key,
            f"has several labels in {quoted(path)} (multi-label classification is not supported)",
            "give each image one",
        )
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        fields = "a field cls, label or class with" if is_json else ""
        _refuse(
            shard,
            key,
            f"has no class in {quoted(path)}",
            f"it must hold {fields} a text or a whole number",
        )
    name = valid_unicode(str(value).strip())
    if not name or len(name.splitlines()) > 1 or "\0" in name or len(name) > MAX_CLASS:
        _refuse(shard, key, f"has no class name in {quoted(path)}", "write one name in one line")
    return name


def _field(content: Any) -> Any:
    """The class in the content of a .json member; None if it has none."""
    if not isinstance(content, dict):
        return content if isinstance(content, list) else None
    return next((content[name] for name in FIELDS if name in content), None)


def _parsed(text: str) -> Any:
    """The content of a .cls member: a list if it is written as one, else a text."""
    with suppress(ValueError, RecursionError):
        if text.startswith("["):
            return json.loads(text)
    return text


def _refuse(shard: Path, key: str, problem: str, remedy: str) -> NoReturn:
    raise UserError(f"The sample {quoted(key)} in {shard} {problem}; {remedy}.")
