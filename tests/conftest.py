"""What the tests share: small pictures in class folders, experiments that run on them in seconds, and an MLflow store.

Creating an MLflow database takes seconds. `mlflow_template` is one without runs, created once in a session, whatever
the number of its processes; `mlflow_store` is a copy of it for a test, with a client, and
`stores.copy_store(mlflow_template, root)` makes more copies.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# A server would start eight processes for jobs after its first answer; they keep two cores busy for many seconds.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # small tensors: threads that wait for each other cost more than they save
)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import killed_runs
from accelerate import Accelerator
from commands import one_sentence
from faulty_proxy import MlflowServer
from filelock import FileLock
from helpers import QUIET, Place, Recorder
from hypothesis import settings
from killed_runs import Kill, WholeRun, Workspace
from pictures import COLORS as COLORS
from pictures import draw as draw
from pictures import small_experiment, write_pictures
from stores import Store, copy_store, create_store, open_store
from torch import Tensor
from trained import TrainedRun, read_run, train_run

from runner.cli import main
from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.features.extractor import FeatureExtractor
from runner.training import run
from runner.utils.console import Terminal
from runner.utils.processes import cpu_count

# `--hypothesis-profile full` or HYPOTHESIS_PROFILE=full tries more. A deadline would fail at random on a busy machine.
settings.register_profile("fast", max_examples=25, deadline=None)
settings.register_profile("full", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_xdist_auto_num_workers() -> int | None:
    """One test process more than cores: tests also wait, for processes, disks and time limits."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else cpu_count() + 1


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three classes of twelve PNG pictures each."""
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def words(pictures: Path, tmp_path: Path) -> list[str]:
    """Command-line words of a small experiment on `pictures`: vgg11 at random weights on 32 px, three epochs."""
    return small_experiment(pictures, tmp_path / "cache", tmp_path / "mlruns")


@pytest.fixture
def make(words: list[str]) -> Callable[..., Experiment]:
    """`make("--train.epochs", "1")`: the small experiment with some settings overridden."""
    return lambda *overrides: parse([*words, *overrides])[0]


@pytest.fixture
def silent() -> Terminal:
    """A terminal that says nothing."""
    return Terminal(enabled=False)


@pytest.fixture(scope="session")
def accelerator():  # type: ignore[no-untyped-def]
    """One process on the CPU, in float32."""
    from accelerate import Accelerator

    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def train(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[run.RunResult, Recorder]]:
    """Run an experiment whole but for its drawings, its records in a folder of their own."""
    numbers = iter(range(100))
    monkeypatch.setattr("runner.training.curves.draw_curves", lambda *_: None)

    def start(experiment: Experiment) -> tuple[run.RunResult, Recorder]:
        tracker = Recorder(tmp_path / f"records {next(numbers)}")
        return run.train(experiment, accelerator, tracker, QUIET), tracker

    return start


@pytest.fixture
def computed_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the first stage of the prefix, call by call."""
    counts: list[int] = []
    through = FeatureExtractor.run_stage

    def counting(self: FeatureExtractor, values: Tensor, stage: int) -> Tensor:
        if stage == 0:
            counts.append(int(values.flatten(1).any(1).sum()))
        return through(self, values, stage)

    monkeypatch.setattr(FeatureExtractor, "run_stage", counting)
    return counts


# Commands


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve pictures, for all tests here."""
    return write_pictures(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def mlflow_template(shared_folder: Path) -> Path:
    """The database of an MLflow store without runs; created once, also where several processes share the session."""
    root = shared_folder / "mlflow_template"
    with FileLock(f"{root}.lock"):
        if not (root / "mlflow.db").exists():
            create_store(root)
    return root / "mlflow.db"


@pytest.fixture
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store but the one that a test names: MLflow itself sets the variable once it has a store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def mlflow_store(mlflow_template: Path, tmp_path: Path, no_tracking_uri: None) -> Store:
    """A store without runs in `tmp_path`/mlruns, and its client."""
    return open_store(copy_store(mlflow_template, tmp_path / "mlruns"))


@pytest.fixture(scope="module")
def mlflow_server(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server of a store without runs."""
    server = MlflowServer(tmp_path_factory.mktemp("server"), mlflow_template)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path) -> Place:
    """`place(folder)`: the words of the small experiment, with an empty store in `folder`/mlruns."""
    cache = tmp_path_factory.mktemp("cache")

    def build(folder: Path) -> list[str]:
        root = copy_store(mlflow_template, folder / "mlruns")
        return [*small_experiment(images, cache, root), "--features.compile", "false"]

    return build


@pytest.fixture
def small(place: Place, tmp_path: Path) -> list[str]:
    """The words of the small experiment, with an empty store in `tmp_path`/mlruns."""
    return place(tmp_path)


@pytest.fixture(scope="session")
def trained_run(shared_folder: Path, mlflow_template: Path, accelerator: Accelerator) -> TrainedRun:
    """A finished run of the small experiment, with its model registered as `small`. No test may change it.

    It is trained once, also where several processes share the session.
    """
    folder = shared_folder / "trained"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        if (run := read_run(folder)) is None:
            patch.setattr(
                "runner.training.curves.draw_curves", lambda *args: [file.touch() for file in args[2:]]
            )
            copy_store(mlflow_template, folder / "mlruns")
            run = train_run(folder, accelerator)
    return run


@pytest.fixture
def new_workspace(images: Path, mlflow_template: Path) -> Callable[[Path], Workspace]:
    """`new_workspace(folder)`: a workspace for runs that are killed, with an empty store and an empty cache."""
    return lambda folder: killed_runs.new_workspace(folder, images, mlflow_template)


@pytest.fixture
def workspace(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Workspace:
    """A workspace with an empty store and an empty cache."""
    return new_workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path) -> WholeRun:
    """An uninterrupted run, with which resumed ones are compared."""
    folder = tmp_path_factory.mktemp("whole") / "workspace"
    return killed_runs.train_whole(killed_runs.new_workspace(folder, images, mlflow_template))


@pytest.fixture(scope="session")
def interrupted_run(
    tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path
) -> Workspace:
    """A workspace with a run that was killed in its second epoch. No test may change it."""
    folder = tmp_path_factory.mktemp("interrupted") / "workspace"
    workspace = killed_runs.new_workspace(folder, images, mlflow_template)
    kill = Kill(r"replace .*/state/000001", 2, after=True)
    assert workspace.train(*killed_runs.EVERY_STEP, kill=kill) == -signal.SIGKILL, workspace.output
    assert workspace.interrupted
    return workspace


@pytest.fixture
def interrupted_copy(interrupted_run: Workspace, tmp_path: Path) -> Workspace:
    """A copy of that workspace, which a test may change."""
    return interrupted_run.copy(tmp_path / "workspace")


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch, no_tracking_uri: None) -> None:
    """The processor, and no store but the one that a test names."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refused(words)`: the sentence with which `runner` refuses them; nothing may be launched."""

    def launch(*_: object) -> int:
        pytest.fail("it was launched")

    monkeypatch.setattr("runner.cli.launcher.launch", launch)
    monkeypatch.setattr("runner.cli.train.launch", launch)

    def run(words: list[str]) -> str:
        capfd.readouterr()
        status = main.main(words)
        captured = capfd.readouterr()
        assert status == 2
        text, _, drawing = captured.err.partition("\n\n")  # a layout that is not accepted is drawn below
        sentence = one_sentence(text)
        assert text.rstrip("\n") == f"runner: {sentence}"
        assert not drawing or drawing.startswith("Found:\n")
        return sentence

    return run
