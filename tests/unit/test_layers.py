"""The architecture, as far as a program can check it: layers, and the size of files and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.utils.paths import PACKAGE

LAYERS = (
    ("portable", "utils"),
    ("config",),
    ("data", "tracking"),
    ("models", "explain"),
    ("features", "serving"),
    ("evaluation",),
    ("training",),
    ("study",),
    ("cli",),
)
"""Packages, the lowest first. Of two in one layer the first may not import the second."""
ORDER = {name: place for place, name in enumerate(name for layer in LAYERS for name in layer)}
ENTRY_POINTS = ("train", "search", "__init__")
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 350, 60, 6

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
TESTS = Path(__file__).parents[1]


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of `runner` that a module imports, at its top or in a function, by their dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("runner."))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "runner":
                yield from (f"runner.{alias.name}" for alias in node.names)
            elif node.module.startswith("runner."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(dotted: str) -> int | None:
    """The place of a module's package in the order; None for what lies in `runner` itself."""
    return ORDER.get(dotted.split(".")[1])


def backward_imports(path: Path, name: str) -> list[str]:
    own = layer_of("runner." + name.removesuffix(".py").replace("/", "."))
    if own is None:  # an entry point may import whatever it needs
        return []
    found = imported(ast.parse(path.read_text(encoding="utf-8")))
    # What lies in `runner` itself comes above all packages.
    return [each for each in found if (layer := layer_of(each)) is None or layer > own]


def test_every_package_has_a_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(ORDER)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ENTRY_POINTS)


@pytest.mark.parametrize(("path", "name"), list(zip(MODULES, NAMES, strict=True)), ids=NAMES)
def test_imports_go_down(path: Path, name: str) -> None:
    assert backward_imports(path, name) == []


def test_a_backward_import_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from runner.cli.main import main\n    from runner import train\n")
    assert backward_imports(module, "data/module.py") == ["runner.cli.main.main", "runner.train"]
    assert backward_imports(module, "cli/module.py") == ["runner.train"]


def test_no_circles_between_modules() -> None:
    known = {
        "runner." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in NAMES
    }
    arrows: dict[str, set[str]] = {}
    for path, name in zip(MODULES, NAMES, strict=True):
        own = "runner." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        targets = imported(ast.parse(path.read_text(encoding="utf-8")))
        modules = {each if each in known else each.rpartition(".")[0] for each in targets}
        arrows[own] = (modules & known) - {own}
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"these modules import each other in a circle: {sorted(arrows)}"


@pytest.mark.parametrize(("path", "name"), list(zip(MODULES, NAMES, strict=True)), ids=NAMES)
def test_files_and_functions_are_short(path: Path, name: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = sum(each.arg not in ("self", "cls") for each in named)
            assert count <= MOST_PARAMETERS, f"{node.name} has {count} parameters"


def test_files_of_tests_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}
