"""No source loads files that can run code: no pickles, no eval, no unsafe YAML."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCES = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

CODE = {"eval", "exec", "compile", "__import__"}


TABLES_OF_MODULES = {
    "runner/cli/bench.py": ["import_module"],
    "runner/cli/main.py": ["import_module"],
    "runner/explain/methods.py": ["import_module"],
    "runner/portable/backbones/__init__.py": ["importlib.import_module"],
    "runner/portable/graph.py": ["exec"],  # what torch.fx writes for a network of torchvision or timm
}
"""They import modules of this repository or of a library, by names in the source or in its folder of benchmarks."""


def dangers(source: str) -> list[str]:
    """What in a source could run code from a file."""
    return [danger for node in ast.walk(ast.parse(source)) for danger in _dangers(node)]


def _dangers(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = {each.name.partition(".")[0] for each in node.names}
        yield from names & (PICKLES - {"pickle"})
        if any(each.name == "pickle" and each.asname for each in node.names):
            yield "pickle under another name"
    elif isinstance(node, ast.ImportFrom):
        module = (node.module or "").partition(".")[0]
        yield from (f"{module}.{each.name}" for each in node.names if module in PICKLES)
    elif isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "pickle" and not node.attr.endswith("Error"):
            yield f"pickle.{node.attr}"
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    keywords = {each.arg: each.value for each in node.keywords}
    plain = {name: getattr(value, "value", None) for name, value in keywords.items()}
    if called in CODE or called in ("os.system", "os.popen") or plain.get("shell"):
        yield called
    loads = called in ("torch.load", "load_state_dict_from_url") or called.endswith(".get_state_dict")
    if loads and plain.get("weights_only") is not True:
        yield f"{called} without weights_only=True"
    if called.startswith(("torch.jit.", "torch.hub.load", "torch.package")) or called.endswith(
        (".read_pickle", "pyfunc.load_model", "PackageImporter")
    ):
        yield called
    if "allow_pickle" in keywords and plain["allow_pickle"] is not False:
        yield "allow_pickle"
    if called.startswith("yaml.") and "load" in called and called != "yaml.safe_load":
        yield called
    if called == "YAML" and plain.get("typ") != "safe":
        yield "YAML that is not safe"
    if called.endswith("import_module") and not str(getattr(node.args[0], "value", "")).startswith("runner."):
        yield called


def test_no_source_loads_files_that_can_run_code() -> None:
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: words for path, words in found.items() if words} == TABLES_OF_MODULES


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(b'')",
        "pickle.load(file)",
        "from pickle import loads",
        "import pickle as p",
        "import cloudpickle",
        "import joblib, json",
        "from dill import load",
        "import shelve",
        "import marshal",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=only)",
        "enum.get_state_dict(progress=False)",
        "torch.hub.load('a/b', 'c')",
        "torch.jit.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=given)",
        "pandas.read_pickle(path)",
        "mlflow.pyfunc.load_model('models:/x@champion')",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "os.system('ls')",
        "subprocess.run(words, shell=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load_all(text)",
        "YAML()",
        "YAML(typ='unsafe')",
    ],
)
def test_dangerous_code_is_found(line: str) -> None:
    assert dangers(f"def work():\n    if True:\n        return [{line}]\n" if "import " not in line else line)


@pytest.mark.parametrize(
    "line",
    [
        "try:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "network.eval()",
        "re.compile('x')",
        "yaml.safe_load(text)",
        "YAML(typ='safe', pure=True)",
        "np.load(path, allow_pickle=False)",
        "importlib.import_module('runner.serving.predictor')",
    ],
)
def test_harmless_code_is_not_reported(line: str) -> None:
    assert dangers(line) == []
