"""Hostile input and secrets: no file is run as code, nothing reads or writes elsewhere, no password is told."""

from __future__ import annotations

import ast
import http.client
import io
import itertools
import json
import os
import pickle
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torchvision
from conftest import draw
from helpers import NUMBERS, Make, listening, small_network
from hypothesis import given
from hypothesis import strategies as st
from test_postgres import address as database  # noqa: F401 (a fixture)

from runner import train
from runner.cli import main
from runner.config.parser import parse
from runner.data.manifest import build_manifest
from runner.models.pretrained import read_weights
from runner.portable.classifier import BATCH_SIZE
from runner.serving import packaging
from runner.serving.load import _downloaded, load_model
from runner.study.mlflow_run import _check_same_records
from runner.study.space import read as read_space
from runner.tracking.journal import Journal, current_owner
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.tracker import tracked
from runner.training import environment as provenance
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main
from runner.utils.image_paths import find_images
from runner.utils.launch_environment import COMMAND
from runner.utils.redaction import redact, without_credentials

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
SECRET = "s3cret-token"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, and no store but the one that a test names."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def environment(**more: str) -> dict[str, str]:
    """This process's, without what MLflow or a test left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PYTEST"))}
    return {**kept, "ACCELERATE_USE_CPU": "true", **more}


class Payload:
    """Pickled: makes a file where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch '{self.trace}'",)


# Nothing is loaded that can run code

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CODE = {"eval", "exec", "compile", "__import__"}


def dangers(source: str) -> list[str]:
    """What in a source could run code that lies in a file: one word each."""
    return [said for node in ast.walk(ast.parse(source)) for said in _dangers(node)]


def _dangers(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = {each.name.partition(".")[0] for each in node.names}
        yield from names & (PICKLES - {"pickle"})
        if any(each.name == "pickle" and each.asname for each in node.names):
            yield "pickle under another name"
    elif isinstance(node, ast.ImportFrom):
        whole = (node.module or "").partition(".")[0]
        yield from (f"{whole}.{each.name}" for each in node.names if whole in PICKLES)
    elif isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "pickle" and not node.attr.endswith("Error"):
            yield f"pickle.{node.attr}"
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    words = {each.arg: each.value for each in node.keywords}
    plain = {name: getattr(value, "value", None) for name, value in words.items()}
    if called in CODE or called in ("os.system", "os.popen") or plain.get("shell"):
        yield called
    loads = called in ("torch.load", "load_state_dict_from_url") or called.endswith(".get_state_dict")
    if loads and plain.get("weights_only") is not True:
        yield f"{called} without weights_only=True"
    if called.startswith(("torch.jit.", "torch.hub.load", "torch.package")) or called.endswith(
        (".read_pickle", "pyfunc.load_model", "PackageImporter")
    ):
        yield called
    if "allow_pickle" in words and plain["allow_pickle"] is not False:
        yield "allow_pickle"
    if called.startswith("yaml.") and "load" in called and called != "yaml.safe_load":
        yield called
    if called == "YAML" and plain.get("typ") != "safe":
        yield "YAML that is not safe"
    if called.endswith("import_module") and not str(getattr(node.args[0], "value", "")).startswith("runner."):
        yield called


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_what_can_run_code(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


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
def test_the_search_for_such_lines_finds_them(line: str) -> None:
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
def test_the_search_lets_harmless_lines_be(line: str) -> None:
    assert dangers(line) == []


def weights_file(folder: Path, kind: str, trace: Path) -> Path:
    """A file of weights that runs a command when it is unpickled."""
    path = folder / f"{kind}.pth"
    if kind == "bare":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        content = {"features.0.weight": torch.zeros(1), "more": Payload(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zipped")
    return path


@pytest.mark.parametrize("kind", ["zipped", "old", "bare"])
def test_code_in_weights_does_not_run(
    make: Make, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "it ran"
    path = weights_file(tmp_path, kind, trace)
    experiment = make("--model.weights", str(path), "--model.normalize", "weights")
    assert run_main(lambda: read_weights(experiment.model) and None) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"runner: {path} ")
    assert "was not loaded" in said
    assert said.count("\n") == 1
    assert main.main(["predict", str(path), "--model", str(path)]) == 2
    assert "pickled ones are not opened" in capfd.readouterr().err
    assert not trace.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.load(path, weights_only=False) if kind != "bare" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the payload is one"


# Models from MLflow


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store without runs. Creating one takes seconds; each test gets a copy."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        tracking_server(str(root)).connect()
    return root / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The folder of an empty store."""
    root = tmp_path / "mlruns"
    root.mkdir()
    with sqlite3.connect(empty_store) as source, sqlite3.connect(root / "mlflow.db") as target:
        source.backup(target)
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a run logs it, of a network that learned nothing."""
    network = small_network().eval()
    transform = {"resize": 36, "crop": 32, "interpolation": "bilinear"}
    use = {"name": "small", "transform": transform, "precision": "no"}
    told = packaging.describe(network, use, epoch=1, val={}, run="run", manifest="m")
    folder = tmp_path_factory.mktemp("packed") / "model"
    packaging.save_model(network, told, torch.zeros(3, 32, 32, dtype=torch.uint8), folder)
    return folder


def poison(folder: Path, trace: Path) -> None:
    """Put code that makes a file into every place that MLflow runs code from."""
    run = f"import os\nos.system({f'touch {str(trace)!r}'!r})\n"
    for place in ("code", "code/portable"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in ("__init__", "serve", "classifier", "network", "sitecustomize", "torch", "mlflow"):
            (folder / place / f"{name}.py").write_text(run)
    (folder / "serve.py").write_text(run)
    for name in ("python_model.pkl", "model.pkl", "data.pkl", "model.pth"):
        (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts" / "sitecustomize.py").write_text(run)


PICKLED = """\
flavors:
  python_function:
    cloudpickle_version: 3.1.2
    code: code
    env: {virtualenv: python_env.yaml}
    loader_module: mlflow.pyfunc.model
    python_model: python_model.pkl
    python_version: 3.11.0
"""


def register(root: Path, folder: Path, name: str) -> str:
    """Log and register a folder as a model in a store: the run's id."""
    place = tracking_server(str(root))
    client = place.connect()
    run_id = client.create_run(place.get_or_create_experiment(client, name)).info.run_id
    client.log_artifacts(run_id, str(folder), "model")
    client.create_registered_model(name)
    client.create_model_version(name, f"{client.get_run(run_id).info.artifact_uri}/model", run_id)
    return str(run_id)


def test_a_pickled_model_is_refused_and_does_not_run(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace, folder, picture = tmp_path / "it ran", tmp_path / "evil", tmp_path / "picture.png"
    folder.mkdir()
    poison(folder, trace)
    (folder / "MLmodel").write_text(PICKLED)
    draw("red", 0).save(picture)
    run_id = register(store, folder, "evil")
    for reference in ("evil@1", run_id, "models:/evil/1", str(folder), str(folder / "python_model.pkl")):
        words = ["predict", str(picture), "--model", reference, "--tracking.root", str(store)]
        assert main.main(words) == 2, reference
        said = capfd.readouterr().err
        assert said.startswith("runner: ")
        assert said.count("\n") == 1
    assert not trace.exists()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    pickle.loads((folder / "python_model.pkl").read_bytes())
    assert trace.exists(), "the payload is one"


def test_code_beside_a_model_does_not_run(
    store: Path, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Predicting reads numbers and settings of a model; what MLflow would run lies beside them, and stays there."""
    trace, folder, picture = tmp_path / "it ran", tmp_path / "model", tmp_path / "picture.png"
    shutil.copytree(packed, folder)
    poison(folder, trace)
    poison(folder / "artifacts" / "classifier", trace)
    draw("red", 0).save(picture)
    register(store, folder, "both")
    for reference in ("both@1", str(folder)):
        words = ["predict", str(picture), "--model", reference, "--tracking.root", str(store), "--json"]
        assert main.main(words) == 0, capfd.readouterr().err
        assert json.loads(capfd.readouterr().out)[0]["path"] == str(picture)
    assert len(load_model(folder).predict([picture] * (BATCH_SIZE + 1))) == BATCH_SIZE + 1
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../../evil", "/{place}/evil", "..%2F..%2Fevil", "a/../../../evil"])
def test_a_server_that_lists_files_elsewhere_writes_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    listed = {"files": [{"path": name.format(place=tmp_path), "is_dir": False, "file_size": 2}]}
    with (
        answering(200, json.dumps(listed).encode()) as uri,
        pytest.raises(UserError, match="cannot be fetched from") as stopped,
    ):
        _downloaded(f"{uri}/api/2.0/mlflow-artifacts/artifacts/1/models/m", "model")
    assert SECRET not in str(stopped.value)
    assert everything(tmp_path) == {"tmp"}


WATCH = """
import importlib.abc, importlib.machinery, json, os, sys

class Came(BaseException):
    pass

class Watch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "mlflow" else None

    def exec_module(self, module):
        names = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
        os.write(1, ("came " + json.dumps([os.environ.get(each) for each in names]) + chr(10)).encode())
        raise Came

sys.meta_path.insert(0, Watch())
os.environ.update(MLFLOW_DISABLE_TELEMETRY="false", MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true")
import runner.train, runner.cli.evaluate, runner.search, runner.cli.main
from runner.errors import interrupt_on_signals
entry, *words = sys.argv[1:]
main = runner.cli.main if entry == "cli" else getattr(runner, entry).main
try:
    main(words)
except Came:
    pass
"""


SPACE = "train.batch_size: [8, 16]\n"
"""A search space that is checked at once."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", ["predict", "compare", "export", "reproduce", "train", "evaluation", "search"]
)
def test_telemetry_and_pickles_are_off_before_any_entry_imports_mlflow(
    entry: str, words: list[str], store: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    draw("red", 0).save(picture)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    root = ["--tracking.root", str(store)]
    said = {
        "predict": ["cli", "predict", str(picture), *root],
        "compare": ["cli", "compare", "latest", "latest", *root],
        "export": ["cli", "export", "--onnx", str(tmp_path / "x.onnx"), *root],
        "reproduce": ["cli", "reproduce", "latest", *root],
        "evaluation": ["evaluation", "latest", *root],
        "train": ["train", *words],
        "search": ["search", "--study", "s", "--space", str(space), *words],
    }[entry]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *said], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("came ")]
    assert lines, done.stderr
    assert {*lines} == {'came ["true", "false"]'}


# Archives


def tar_of(*members: tuple[str, str, str]) -> bytes:
    """A tar.gz of members (kind, name, content or target)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for kind, name, content in members:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
                continue
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}[kind]
            info.linkname = content
            tar.addfile(info)
    return packed.getvalue()


def caltech(make: Make, root: Path) -> Any:
    return make("--data.kind", "caltech101", "--data.root", str(root), "--data.download", "true")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`archive(inner, more)`: what a download of Caltech-101 brings: a tar.gz, and other members of the zip."""

    def serve(inner: bytes, *more: tuple[str, str]) -> None:
        def download(_url: str, root: str, filename: str, md5: str) -> None:
            with zipfile.ZipFile(Path(root) / filename, "w") as whole:
                whole.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
                for name, content in more:
                    info = zipfile.ZipInfo(name)
                    if content.startswith("-> "):
                        info.external_attr = (stat.S_IFLNK | 0o777) << 16
                    whole.writestr(info, content.removeprefix("-> "))

        monkeypatch.setattr(torchvision.datasets.utils, "download_url", download)

    return serve


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "members",
    [
        [("file", "../../evil", "x")],
        [("file", "101_ObjectCategories/../../../evil", "x")],
        [("link", "101_ObjectCategories/out", "/etc")],
        [("link", "101_ObjectCategories/out", "../../../.."), ("file", "101_ObjectCategories/out/evil", "x")],
        [("link", "101_ObjectCategories", "../../evil-folder"), ("file", "101_ObjectCategories/evil", "x")],
        [("hard", "101_ObjectCategories/passwords", "../../../secret")],
        [("pipe", "101_ObjectCategories/red/pipe", "")],
    ],
    ids=["above", "above from within", "link", "through a link", "linked folder", "hard link", "pipe"],
)
def test_an_archive_does_not_write_outside(
    make: Make, tmp_path: Path, silent: Terminal, archive: Callable[..., None], members: list[Any]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "evil-folder").mkdir()
    before = everything(tmp_path)
    archive(tar_of(*members))
    with pytest.raises(
        UserError, match=r"damaged, or would write outside its folder .* and was not used"
    ) as stopped:
        build_manifest(caltech(make, tmp_path / "data"), silent)
    assert "\n" not in str(stopped.value)
    assert everything(tmp_path) - before <= {"data/.caltech101.lock"}


def test_absolute_names_and_those_of_a_zip_stay_inside(
    make: Make, tmp_path: Path, silent: Terminal, archive: Callable[..., None]
) -> None:
    labels = ("red", "blue", "BACKGROUND_Google")
    pictures = [("file", f"101_ObjectCategories/{label}/x", "x") for label in labels]
    archive(
        tar_of(("file", str(tmp_path / "absolute"), "x"), *pictures),
        ("../../../above", "x"),
        (str(tmp_path / "zipped"), "x"),
        ("caltech-101/link", "-> /etc"),
    )
    (tmp_path / "data").mkdir()
    before = everything(tmp_path)
    with pytest.raises(UserError):  # which are no images
        build_manifest(caltech(make, tmp_path / "data"), silent)
    new = {path for path in everything(tmp_path) - before if not path.startswith("cache")}
    place = "data/caltech101/101_ObjectCategories"
    inside = {place, *(f"{place}/{label}{end}" for label in labels for end in ("", "/x"))}
    assert new == {"data/.caltech101.lock", "data/caltech101"} | inside


@pytest.mark.parametrize("damage", ["cut", "no tar", "no zip"])
def test_a_damaged_archive_is_said_in_one_sentence(
    make: Make, tmp_path: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    def download(_url: str, root: str, filename: str, md5: str) -> None:
        if damage == "no zip":
            (Path(root) / filename).write_bytes(b"no archive")
            return
        inner = tar_of(("file", "101_ObjectCategories/red/x", "x" * 10_000))
        with zipfile.ZipFile(Path(root) / filename, "w") as whole:
            content = inner[: len(inner) // 2] if damage == "cut" else b"no archive"
            whole.writestr("caltech-101/101_ObjectCategories.tar.gz", content)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download)
    with pytest.raises(UserError, match="is damaged, or"):
        build_manifest(caltech(make, tmp_path / "data"), silent)
    assert everything(tmp_path / "data") <= {".caltech101.lock"}


def test_without_pythons_filter_nothing_is_unpacked(
    make: Make,
    tmp_path: Path,
    silent: Terminal,
    archive: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive(tar_of(("file", "../../evil", "x")))
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"use 3\.11\.4 or newer, or fetch"):
        build_manifest(caltech(make, tmp_path / "data"), silent)


# Links


def test_training_follows_no_links_unless_told(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    """Files, folders, folders within folders, and links to links: none leads out."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for number in range(12):
        draw("red", 80 + number).save(outside / "deep" / f"{number}.png")
    draw("red", 99).save(outside / "a.png")
    (pictures / "red" / "inner").mkdir()
    (pictures / "red" / "inner" / "file.png").symlink_to(outside / "a.png")
    (pictures / "red" / "inner" / "folder").symlink_to(outside)
    (pictures / "red" / "again.png").symlink_to(pictures / "red" / "inner" / "file.png")
    (pictures / "alien").symlink_to(outside)
    plain = {entry.path for entry in build_manifest(make(), silent).entries}
    assert len(plain) == 36
    assert not any((pictures / path).resolve().is_relative_to(outside) for path in plain)
    followed = {entry.path for entry in build_manifest(make("--data.follow_links", "true"), silent).entries}
    assert {path.partition("/")[0] for path in followed - plain} == {"red", "alien"}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a picture, a link to one outside, and linked folders that lead out and in circles."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "deep").mkdir(parents=True)
    (folder / "inner").mkdir(parents=True)
    for path in (outside / "private.png", outside / "deep" / "private.png", folder / "inner" / "own.png"):
        path.write_bytes(b"x")
    (folder / "chosen.png").symlink_to(outside / "private.png")
    (folder / "out").symlink_to(outside)
    (folder / "inner" / "top").symlink_to(folder)
    (folder / "inner" / "self").symlink_to(".")
    (folder / "broken.png").symlink_to(outside / "nothing.png")
    (folder / "round.png").symlink_to("round.png")
    return folder


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["", "/**/*.png", "/**", "/**/*", "/[ic]*"])
def test_a_folder_of_pictures_stands_for_no_linked_folders(linked: Path, pattern: str) -> None:
    """Circles would otherwise have no end: two links make 2^40 paths."""
    found = [path.relative_to(linked).as_posix() for path in find_images([f"{linked}{pattern}"])]
    assert sorted(set(found) - {"broken.png", "round.png"}) == ["chosen.png", "inner/own.png"]
    assert len(found) == len(set(found))


def test_a_link_that_is_named_is_followed(linked: Path) -> None:
    assert find_images([str(linked / "chosen.png")]) == [linked / "chosen.png"]
    assert find_images([str(linked / "out")]) == [linked / "out/deep/private.png", linked / "out/private.png"]
    assert find_images([str(linked / "o*" / "*.png")]) == [linked / "out/private.png"]


# YAML

OBJECTS = (
    "!!python/object/apply:os.system ['{run}']",
    "!!python/object/new:os.system ['{run}']",
    "!!python/object/apply:subprocess.check_output [['touch', '{trace}']]",
    "!!python/name:os.system",
    "!!python/module:evil_module",
)


@pytest.mark.parametrize("value", OBJECTS)
@pytest.mark.parametrize("kind", ["experiment", "space"])
def test_yaml_makes_no_objects(make: Make, tmp_path: Path, value: str, kind: str) -> None:
    trace, path = tmp_path / "it ran", tmp_path / "file.yaml"
    value = value.format(run=f"touch {trace}", trace=trace)
    if kind == "experiment":
        path.write_text(f"name: {value}\n")
        with pytest.raises(UserError, match="is not a YAML file"):
            parse(["--config", str(path)])
    else:
        path.write_text(f"train.batch_size: {value}\n")
        with pytest.raises(UserError):
            read_space(path, make())
    assert not trace.exists()


@pytest.mark.parametrize(
    "tree",
    [
        "optim: {class_path: evil_module.Evil}",
        "class_path: evil_module.Evil",
        "network: {normalise: {class_path: evil_module.Evil}}",
        "network: {normalise: evil_module.Evil}",
        "data: {class_path: evil_module.Evil, init_args: {a: 1}}",
        "views: evil_module.Evil",
        "optim.name: {class_path: evil_module.Evil}",
    ],
)
def test_an_experiment_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: str) -> None:
    """Files and words may name a class to the parser, which would import it."""
    trace = tmp_path / "it ran"
    (tmp_path / "evil_module.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Evil: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "file.yaml"
    path.write_text(f"{tree}\n")
    with pytest.raises(UserError) as stopped:
        parse(["--config", str(path)])
    assert "import_path" not in str(stopped.value)
    name, _, value = tree.partition(": ")
    for word in (f"--{name}={value}", f"--{name}=evil_module.Evil", f"--model.normalize={value}"):
        with suppress(UserError):
            parse([word])
    assert not trace.exists()
    assert "evil_module" not in sys.modules


def test_numbers_to_normalise_with_are_still_taken() -> None:
    numbers = json.dumps({"mean": NUMBERS.mean, "std": NUMBERS.std})
    assert parse([f"--model.normalize={numbers}"])[0].model.normalize == NUMBERS


# The network

QUIET_TRAINING = """
import json, os, socket, sys

called = []

def watch(name):
    real = getattr(socket.socket, name)

    def watched(self, address, *rest):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            called.append([name, str(address)])
            raise OSError("there is no network")
        return real(self, address, *rest)

    setattr(socket.socket, name, watched)

for each in ("connect", "connect_ex"):
    watch(each)
look_up = socket.getaddrinfo

def watched(host, *rest, **more):
    if host not in (None, "localhost", "127.0.0.1", "::1", socket.gethostname()):
        called.append(["getaddrinfo", str(host)])
        raise socket.gaierror(-2, "there is no network")
    return look_up(host, *rest, **more)

socket.getaddrinfo = watched
from accelerate import Accelerator
from runner.training.seeds import train
from runner.settings import parse
from runner.terminal import Terminal
import huggingface_hub, optuna, runner.report, runner.worker
*words, ending = sys.argv[1:]
train(parse(words)[0], 1, Accelerator(cpu=True), Terminal(enabled=False))
if ending == "call":
    import urllib.request
    try:
        urllib.request.urlopen("http://telemetry.example/", timeout=1)
    except OSError:
        pass
    try:
        socket.create_connection(("192.0.2.1", 80), 0.1)
    except OSError:
        pass
import time
time.sleep(2)  # whoever calls home does so from a thread
print("called " + json.dumps(called))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["quiet", "call"])
def test_training_calls_nobody(words: list[str], store: Path, ending: str) -> None:
    """With a model, a gallery and the system's use recorded; nothing in the environment says to be quiet."""
    whole = [
        *words,
        "--tracking.model",
        "true",
        "--tracking.gallery",
        "2",
        "--tracking.system_metrics",
        "true",
    ]
    done = subprocess.run(
        [sys.executable, "-c", QUIET_TRAINING, *whole, "--train.epochs", "1", ending],
        capture_output=True,
        text=True,
        cwd=store.parent,
        env={
            **environment(PYTHONPATH=str(ROOT)),
            **dict.fromkeys(("CI", "GITHUB_ACTIONS", "DO_NOT_TRACK"), ""),
        },
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("called ")] or [done.stderr]
    planted = [["getaddrinfo", "telemetry.example"], ["getaddrinfo", "192.0.2.1"]] if ending == "call" else []
    assert json.loads(line.removeprefix("called ")) == planted


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:s3cret-token@host:5000/x", "http://user:…@host:5000/x"),
        ("https://s3cret-token@host", "https://…@host"),
        ("see 'postgresql://me:s3cret-token@host/db'.", "see 'postgresql://me:…@host/db'."),
        ("postgresql+psycopg://me:s3cret-token@a/b@host/db", "postgresql+psycopg://me:…@host/db"),
        ("postgresql://:s3cret-token@host/db", "postgresql://:…@host/db"),
        (
            "postgresql://host/db?user=me&password=s3cret-token&x=1",
            "postgresql://host/db?user=me&password=…&x=1",
        ),
        ("GET /?access_token=s3cret-token HTTP/1.1", "GET /?access_token=… HTTP/1.1"),
        ("dsn host=h password='s3cret token' user=me", "dsn host=h password=… user=me"),
        ("header value: 'Bearer s3cret-token\\n'", "header value: 'Bearer …'"),
        ("{'Authorization': 'Basic czNjcmV0Og=='}", "{'Authorization': 'Basic …'}"),
        ("https://store/x?sv=2&sig=s3cret-token&se=1", "https://store/x?sv=2&sig=…&se=1"),
        ('{"token": "s3cret token", "a": 1}', '{"token": …, "a": 1}'),
        ("x-api-key: s3cret-token", "x-api-key: …"),
        ("api-key=s3cret-token", "api-key=…"),
        ("runner train --tracking-token s3cret-token --a b", "runner train --tracking-token … --a b"),
        ("There is no http:/user:s3cret-token@host; give one", "There is no http:/user:…@host; give one"),
        ("a http://u:s3cret-token@h b http://v:s3cret-token@i", "a http://u:…@h b http://v:…@i"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/small@champion",
        "postgresql://me@host:5432/db",
        "sqlite:////home/me/my runs/mlflow.db",
        "models:/small@champion, runs:/abc, file:///data/a@b.png",
        "there is no small@champion at http://host:5000; mail me@host",
        "/mnt/2026-01-01T10:30@camera/x.png",
        "the basic settings: optim.lr=0.1",
        "tokens: 3, key: value, a design=4, signal=2, its password: see the manual",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(
    scheme=st.sampled_from(["http", "https", "postgresql", "mysql+pymysql"]),
    user=st.text("abcXYZ019._-%", max_size=8),
    word=st.text(
        st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Z", "C"]), min_size=1
    ),
    around=st.sampled_from(["{}", "The server {} does not answer.", "'{}'", "({})", "x={}&y=1"]),
)
def test_no_password_of_an_address_is_shown(scheme: str, user: str, word: str, around: str) -> None:
    password = f"q7{word}7q"
    shown = redact(around.format(f"{scheme}://{user}:{password}@host/db"))
    assert password not in shown
    assert "q7" not in shown
    assert "host/db" in shown


def test_an_address_without_its_login() -> None:
    assert without_credentials("http://user:p@ss@[::1]:5000/x?y=1") == "http://[::1]:5000/x?y=1"
    assert without_credentials("https://host") == "https://host"


@contextmanager
def answering(status: int, body: bytes = b"{}") -> Iterator[str]:
    """A server that gives every request the same answer: its address, with a password in it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 (its names)

        def log_message(self, *_: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://user:{SECRET}@127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()


@contextmanager
def silent_port() -> Iterator[str]:
    """An address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://user:{SECRET}@127.0.0.1:{free.getsockname()[1]}"


SERVERS: dict[str, Callable[[], Any]] = {
    "nobody": silent_port,
    "hangs up": lambda: answering(0),
    "login": lambda: answering(401, b"Unauthorized: Basic realm"),
    "fault": lambda: answering(500, b'{"error_code": "INTERNAL_ERROR", "message": "it broke"}'),
    "no mlflow": lambda: answering(200, b"<html>hello</html>"),
    "not found": lambda: answering(404, b"nothing here"),
}


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`logged_in(uri)`: the environment names a server and secrets of all kinds."""

    def name(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}-header")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}-word")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    return name


@pytest.mark.parametrize("kind", SERVERS)
def test_no_verb_tells_a_password(
    kind: str,
    logged_in: Callable[[str], None],
    words: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    picture, space = tmp_path / "picture.png", tmp_path / "space.yaml"
    draw("red", 0).save(picture)
    space.write_text(SPACE)
    root = ("--tracking.root", str(tmp_path / "mlruns"))
    verbs: dict[str, Callable[[], int]] = {
        "train": lambda: run_main(lambda: train.main(words)),
        "predict": lambda: main.main(["predict", str(picture), *root]),
        "explain": lambda: main.main(["explain", str(picture), "--out", str(tmp_path / "out"), *root]),
        "compare": lambda: main.main(["compare", "aaaa", "bbbb", *root]),
        "export": lambda: main.main(["export", "--onnx", str(tmp_path / "x.onnx"), *root]),
        "reproduce": lambda: main.main(["reproduce", "latest", *root]),
        "search": lambda: main.main(["search", "--study", "s", "--space", str(space), *words]),
        "ui": lambda: main.main(["ui", *root]),
    }
    with SERVERS[kind]() as uri:
        logged_in(uri)
        for verb, call in verbs.items():
            status = call()
            out, err = capfd.readouterr()
            assert SECRET not in out + err, verb
            assert status == 2, (verb, err)
            assert err.count("runner: ") == 1, (verb, err)
            assert "Traceback" not in err, verb
            assert "127.0.0.1" in err, verb
    _hold_no_secret(tmp_path)


def _hold_no_secret(folder: Path, secret: str = SECRET) -> None:
    """No file under a folder holds a secret, but those that its user alone reads to deliver a journal."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "owner.json":
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "uri",
    [
        f"user:{SECRET}@host:5000",
        f"nosuch://user:{SECRET}@host/db",
        f"mysql+nodriver://user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}@127.0.0.1:1/db?connect_timeout=1",
        f"http://user:{SECRET}@127.0.0.1:nan",
        f"http://user:pass/{SECRET}@127.0.0.1:1",
        f"https://{SECRET}@127.0.0.1:1",
    ],
)
def test_addresses_that_cannot_be_used_are_said_without_their_password(
    uri: str, logged_in: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    logged_in(uri)
    with pytest.raises(UserError) as stopped:
        tracking_server(str(tmp_path)).connect()
    assert SECRET not in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_token_with_a_line_end_is_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `export MLFLOW_TRACKING_TOKEN="$(tail -2 file)"` leaves it: the request is refused with its header."""
    with answering(200) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}\nmore")
        assert main.main(["predict", str(ROOT / "docs" / "accuracy.png")]) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "verb",
    [
        ["search", "--study", "s", "--storage", f"nosuch://me:{SECRET}@host/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:1/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:port/db"],
        ["search", "--study", "s", "--storage", f"postgresql://me:a/{SECRET}@127.0.0.1:1/db"],
        ["search", "--study", f"postgresql://me:{SECRET}@host/db"],
        ["train", f"postgresql://me:{SECRET}@host/db"],
        ["train", f"--storage=postgresql://me:{SECRET}@host/db"],
        ["predict", f"http://user:{SECRET}@host/picture.png"],
        ["predict", "x", "--model", f"http://user:{SECRET}@host/model"],
        ["compare", f"http://user:{SECRET}@host/run"],
        ["evaluate", "latest", f"--storage=http://user:{SECRET}@host/run"],
        [f"http://user:{SECRET}@host"],
    ],
    ids=lambda words: " ".join(words[:3])[:24],
)
def test_no_sentence_repeats_a_password(
    verb: list[str], words: list[str], store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (store / "space.yaml").write_text(SPACE)
    space = ["--space", str(store / "space.yaml")] if verb[0] == "search" else []
    more = [*space, *words] if verb[0] in ("search", "train") else ["--tracking.root", str(store)]
    assert main.main([*verb, *more]) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.startswith("runner: ")
    _hold_no_secret(store)


def test_faults_of_ours_tell_no_password_either(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setenv("RUNNER_STATUS_FILE", str(status))

    def fail() -> None:
        raise RuntimeError(f"API request to http://user:{SECRET}@host/api failed")

    assert run_main(fail) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert SECRET not in err + status.read_text()


def test_the_recorded_command_has_no_password(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        COMMAND, f"runner search --study s --storage postgresql://me:{SECRET}@host/db --trials 3"
    )
    told = provenance.environment(accelerator)
    assert told["command"] == "runner search --study s --storage postgresql://me:…@host/db --trials 3"
    monkeypatch.delenv(COMMAND)
    monkeypatch.setattr(sys, "argv", ["/x/train.py", "--a", f"http://user:{SECRET}@host"])
    assert provenance.environment(accelerator)["command"] == "train.py --a http://user:…@host"


def test_a_run_records_no_password(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A failure, a note and a setting that hold one; an outage whose reason does."""
    place = tracking_server(str(store))
    client = place.connect()
    address = f"http://user:{SECRET}@host/api"
    begun: list[str] = []

    def fail() -> None:
        with tracked(place, client, "small", "run", Terminal()) as tracker:
            begun.append(tracker.run_id)
            tracker.log_params({"address": address})
            tracker.set_tags({"address": address})
            raise RuntimeError(f"API request to {address} failed")

    with pytest.raises(RuntimeError):
        fail()
    data = client.get_run(begun[0]).data
    assert data.params["address"] == data.tags["address"] == "http://user:…@host/api"
    assert data.tags["runner.reason"] == "RuntimeError: API request to http://user:…@host/api failed"
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    _hold_no_secret(store)


def test_an_outage_tells_no_password(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    place = tracking_server(str(store))
    client = place.connect()
    monkeypatch.setattr("runner.tracking.uploader.UPLOAD_TIMEOUT", 0.2)

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException(f"API request to http://user:{SECRET}@host/api failed with exception x")

    with tracked(place, client, "small", "run", Terminal()) as tracker:
        monkeypatch.setattr(client, "log_batch", refuse)
        tracker.log_metrics({"loss": 1.0})
    out, err = capfd.readouterr()
    assert "could not all be delivered" in out
    assert SECRET not in out + err


def test_only_its_user_reads_where_a_journal_goes(tmp_path: Path) -> None:
    """Its owner.json holds the whole address, to deliver to when the run is gone."""
    owner = current_owner(f"http://user:{SECRET}@host", "run")
    journal = Journal.create(tmp_path, owner)
    assert stat.S_IMODE((journal.folder / "owner.json").stat().st_mode) == 0o600
    journal.append({"kind": "tags", "values": {}})
    journal.mark_sent(1)
    (found,) = Journal.find(tmp_path)
    assert found.owner == owner
    _hold_no_secret(tmp_path)


def test_the_records_of_a_study_are_compared_without_passwords() -> None:
    from types import SimpleNamespace

    plan: Any = SimpleNamespace(name="s", storage="studies.journal")
    _check_same_records(plan, [f"http://user:{SECRET}@host", "here"], "http://user:other@host", False)
    with pytest.raises(UserError, match="are in http://user:…@host, not in http://user:…@other") as stopped:
        _check_same_records(
            plan, [f"http://user:{SECRET}@host", "here"], f"http://user:{SECRET}@other", False
        )
    assert SECRET not in str(stopped.value)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[str, Path]]:
    """An MLflow server: its address, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    command = [
        *(
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--workers",
            "1",
        ),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
    ]
    quiet = environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with listening(command, "/health", folder / "said.txt", quiet) as address:
        yield address, folder


def _stored(folder: Path) -> bytes:
    """All of a database, whatever its log still holds."""
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return "\n".join(connection.iterdump()).encode()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_and_a_study_on_a_server_leave_no_password(
    tracking: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    """What is printed, what MLflow holds, and every file that stays."""
    address, folder = tracking
    secrets = environment(
        MLFLOW_TRACKING_URI=address.replace("http://", f"http://user:{SECRET}@"),
    )
    words = [*words, "--train.epochs", "1", "--tracking.model", "true"]
    (tmp_path / "space.yaml").write_text(SPACE)
    space = ["--space", str(tmp_path / "space.yaml")]
    verbs = [
        ["train", *words],
        ["evaluate", "latest", "--json"],
        ["search", *words, "--study", "s", *space, "--trials", "2", "--confirm", "1"],
        ["search", *words, "--study", "s", *space, "--trials", "3", "--confirm", "1"],
        ["predict", str(next((tmp_path / "pictures").rglob("*.png"))), "--model", "small@champion", "--json"],
    ]
    for verb in verbs:
        done = subprocess.run(
            [sys.executable, "-m", "runner.cli.main", *verb],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=secrets,
        )
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr, verb
        if "--json" in verb:
            json.loads(done.stdout)
    _hold_no_secret(tmp_path)
    _hold_no_secret(folder)
    assert SECRET.encode() not in _stored(folder)
    assert b"runner search" in b"".join(path.read_bytes() for path in folder.rglob("environment.json"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_in_a_database_leaves_no_password(
    database: str,  # noqa: F811 (the fixture)
    words: list[str],
    tmp_path: Path,
) -> None:
    """Its password stands in the command, which runs record, and nowhere else."""
    import optuna

    (tmp_path / "space.yaml").write_text(SPACE)
    study = ["--study", "s", "--space", str(tmp_path / "space.yaml"), "--trials", "2", "--confirm", "1"]
    command = [sys.executable, "-m", "runner.cli.main", "search", *words, "--train.epochs", "1", *study]
    done = subprocess.run(
        [*command, "--storage", database], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "hush-hush" not in done.stdout + done.stderr
    _hold_no_secret(tmp_path, "hush-hush")
    assert b"hush-hush" not in _stored(tmp_path / "mlruns")
    told = [json.loads(path.read_text())["command"] for path in tmp_path.rglob("environment.json")]
    assert told
    assert all("--storage postgresql://me:…@127.0.0.1" in each for each in told)
    head, _, tail = database.partition("://")
    kept = optuna.load_study(study_name="s", storage=f"{head}+psycopg://{tail}")
    attributes = [kept.user_attrs, *(each.user_attrs for each in kept.trials)]
    assert "hush-hush" not in json.dumps(attributes)


# The pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[str, int]]:
    """`runner ui` on a free port: host and port."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_store, folder / "mlruns" / "mlflow.db")
    words = ["ui", "--tracking.root", str(folder / "mlruns"), "--port", "{port}"]
    hostile = environment(MLFLOW_HOST="0.0.0.0", MLFLOW_DISABLE_TELEMETRY="false")  # noqa: S104 (which must not count)
    command = [sys.executable, "-m", "runner.cli.main", *words]
    with listening(command, "/health", folder / "said.txt", hostile) as address:
        yield "127.0.0.1", int(address.rpartition(":")[2])


def _status(pages: tuple[str, int], method: str, path: str, body: str = "", **headers: str) -> int:
    connection = http.client.HTTPConnection(*pages, timeout=60)
    told = {"Content-Type": "application/json", **headers}
    connection.request(method, path, body or None, told)
    status = connection.getresponse().status
    connection.close()
    return status


CREATE = "/api/2.0/mlflow/experiments/create"
SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.slow
def test_the_pages_are_for_this_machine_alone(pages: tuple[str, int]) -> None:
    here = {
        each.laddr.ip
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == pages[1]
    }
    assert here == {"127.0.0.1"}
    known = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    for host in {each.address for each in known if each.family == socket.AF_INET}:
        if not host.startswith("127."):
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((host, pages[1])), host


@pytest.mark.slow
def test_the_pages_refuse_foreign_names_and_origins(pages: tuple[str, int]) -> None:
    """A page elsewhere must neither read the records (by a name of its own for this address) nor change them."""
    own = f"127.0.0.1:{pages[1]}"
    assert _status(pages, "POST", SEARCH, '{"max_results": 1}', Host=own) == 200
    assert _status(pages, "GET", "/", Host=own) == 200
    for host in ("evil.example", f"evil.example:{pages[1]}", "127.0.0.1.evil.example"):
        assert _status(pages, "POST", SEARCH, '{"max_results": 1}', Host=host) == 403
        assert _status(pages, "GET", "/", Host=host) == 403
        assert _status(pages, "GET", "/get-artifact?path=x&run_uuid=y", Host=host) == 403
    for origin in ("http://evil.example", "https://localhost.evil.example", "null"):
        name = json.dumps({"name": f"by {origin}"})
        assert _status(pages, "POST", CREATE, name, Host=own, Origin=origin) == 403
    assert _status(pages, "POST", CREATE, '{"name": "mine"}', Host=own, Origin=f"http://{own}") == 200
