"""Each layout that docs/data.md draws is made and listed as the command below the drawing says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from drawn_trees import make_tree

from runner.config.parser import parse
from runner.data.layouts.trees import CLASS_FOLDERS, SPLIT_FOLDERS
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal
from runner.utils.paths import PACKAGE

PAGE = (PACKAGE.parent / "docs" / "data.md").read_text()
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
TRAIN = "./launch.sh train "


def examples() -> list[tuple[str, dict[str, str], str, str]]:
    """Drawing, contents of files, command and what it says, for each command below a drawing.

    Between drawing and commands there may be blocks with the name of a file behind the language: its content.
    """
    found: list[tuple[str, dict[str, str], str, str]] = []
    tree, contents = "", {}
    for language, name, text in BLOCK.findall(PAGE):
        if language == "tree":
            tree, contents = text, {}
        elif name:
            contents[name] = f"{text}\n"
        elif language == "bash" and tree:
            lines = [line.partition("#") for line in text.splitlines()]
            found += [(tree, contents, command.strip(), said.strip()) for command, _, said in lines]
            tree = ""
    return found


@pytest.mark.parametrize(("tree", "contents", "command", "said"), examples(), ids=[e[2] for e in examples()])
def test_a_drawn_layout_is_read(
    tree: str,
    contents: dict[str, str],
    command: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent: Terminal,
) -> None:
    make_tree(tmp_path, tree, contents)
    monkeypatch.chdir(tmp_path)
    words = [*shlex.split(command.removeprefix(TRAIN)), "--cache", "cache"]
    manifest = build_manifest(parse(words)[0], silent)
    layout, _, classes = said.partition("; classes ")
    assert (manifest.layout, ", ".join(manifest.classes)) == (layout, classes)
    assert all(manifest.counts().values())


def test_messages_draw_the_layouts_of_the_page() -> None:
    drawings = [text for language, _, text in BLOCK.findall(PAGE) if language == "tree"]
    assert CLASS_FOLDERS in drawings
    assert SPLIT_FOLDERS in drawings
    assert len(examples()) >= len(drawings)
