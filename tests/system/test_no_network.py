"""MLflow's telemetry and pickles are off, and training connects to no other host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, user_environment
from pictures import draw
from stores import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_environment")]

REPORT_ENVIRONMENT_AT_IMPORT = """
import importlib, importlib.abc, importlib.machinery, json, os, sys

class Imported(BaseException):
    pass

class ReportImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "mlflow" else None

    def exec_module(self, module):
        names = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
        os.write(1, ("imported " + json.dumps([os.environ.get(name) for name in names]) + chr(10)).encode())
        raise Imported

sys.meta_path.insert(0, ReportImport())
os.environ.update(MLFLOW_DISABLE_TELEMETRY="false", MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true")
module, *words = sys.argv[1:]
try:
    importlib.import_module(module).main(words)
except Imported:
    pass
"""


@pytest.mark.parametrize(
    "entry", ["predict", "compare", "export", "reproduce", "train", "evaluate", "search"]
)
def test_telemetry_and_pickles_are_off_before_any_entry_imports_mlflow(
    entry: str, words: list[str], mlflow_store: Store, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    draw("red", 0).save(picture)
    space = tmp_path / "space.yaml"
    space.write_text("train.batch_size: [8, 16]\n")
    root = ["--tracking.root", str(tmp_path / "mlruns")]
    arguments = {
        "predict": ["runner.cli.main", "predict", str(picture), *root],
        "compare": ["runner.cli.main", "compare", "latest", "latest", *root],
        "export": ["runner.cli.main", "export", "--onnx", str(tmp_path / "x.onnx"), *root],
        "reproduce": ["runner.cli.main", "reproduce", "latest", *root],
        "evaluate": ["runner.cli.evaluate", "latest", *root],
        "train": ["runner.train", *words],
        "search": ["runner.search", "--study", "s", "--space", str(space), *words],
    }[entry]
    process = subprocess.run(
        [sys.executable, "-c", REPORT_ENVIRONMENT_AT_IMPORT, *arguments],
        capture_output=True,
        text=True,
        env=user_environment(),
        cwd=ROOT,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("imported ")]
    assert lines, process.stderr
    assert {*lines} == {'imported ["true", "false"]'}


EXPORT = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
from runner.serving import onnx
import onnxruntime, numpy
from onnx import TensorProto, helper
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(session.run(None, {"x": numpy.ones(1, "float32")}))
"""


def test_export_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """onnxruntime would write a device's id and events to be sent."""
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", EXPORT], env=user_environment(**home), cwd=ROOT, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


REPORT_CONNECTIONS = """
import json, os, socket, sys

connections = []

def watch(name):
    original = getattr(socket.socket, name)

    def watched(self, address, *rest):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            connections.append([name, str(address)])
            raise OSError("there is no network")
        return original(self, address, *rest)

    setattr(socket.socket, name, watched)

for name in ("connect", "connect_ex"):
    watch(name)
look_up = socket.getaddrinfo

def watched_look_up(host, *rest, **more):
    if host not in (None, "localhost", "127.0.0.1", "::1", socket.gethostname()):
        connections.append(["getaddrinfo", str(host)])
        raise socket.gaierror(-2, "there is no network")
    return look_up(host, *rest, **more)

socket.getaddrinfo = watched_look_up
from accelerate import Accelerator
from runner.training.repeated import train
from runner.config.parser import parse
from runner.config.repeat import Repeat
from runner.utils.console import Terminal
import huggingface_hub, optuna, runner.study.report, runner.study.worker
*words, control = sys.argv[1:]
train(parse(words)[0], Repeat(), Accelerator(cpu=True), Terminal(enabled=False))
if control == "connecting":
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
time.sleep(2)  # telemetry would be sent from a thread
print("connections " + json.dumps(connections))
"""
PLANTED = {"quiet": [], "connecting": [["getaddrinfo", "telemetry.example"], ["getaddrinfo", "192.0.2.1"]]}


@pytest.mark.parametrize("control", PLANTED)
def test_training_connects_to_no_other_host(
    words: list[str], mlflow_store: Store, tmp_path: Path, control: str
) -> None:
    """With a model, a gallery and system metrics; no variable of the environment switches telemetry off."""
    settings = ["--tracking.model", "true", "--tracking.gallery", "2", "--tracking.system_metrics", "true"]
    process = subprocess.run(
        [sys.executable, "-c", REPORT_CONNECTIONS, *words, *settings, "--train.epochs", "1", control],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=user_environment(PYTHONPATH=str(ROOT), CI="", GITHUB_ACTIONS="", DO_NOT_TRACK=""),
    )
    prefix = "connections "
    (line,) = [line for line in process.stdout.splitlines() if line.startswith(prefix)] or [process.stderr]
    assert json.loads(line.removeprefix(prefix)) == PLANTED[control]
