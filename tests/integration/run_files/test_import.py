"""Files of runs that cannot be imported, and those that bring models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from consistency import inconsistencies
from faulty_proxy import MlflowServer
from odd_runs import add_run, everything, stored
from stores import (
    FailingClient,
    Store,
    artifacts,
    open_store,
)
from trained import TrainedRun

from runner.tracking import run_import
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.run_import import import_run
from runner.tracking.run_lookup import IMPORTING_TAG, find_run
from runner.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("plain_environment")


Command = Callable[..., str]


@pytest.fixture
def file(mlflow_store: Store, tmp_path: Path, command: Command) -> Path:
    """A file of a run with a part."""
    parent = add_run(mlflow_store, tmp_path, "parent")
    add_run(mlflow_store, tmp_path, "part", parent)
    command(mlflow_store[0].root, "export-run", parent, tmp_path / "run.zip")
    return tmp_path / "run.zip"


@pytest.mark.parametrize("call", ["log_batch", "log_inputs", "set_terminated", "delete_tag"])
def test_an_import_that_fails_leaves_nothing(file: Path, other: Path, call: str) -> None:
    server, client = open_store(other)
    failing: Any = FailingClient(client, 1000, (call,))
    with pytest.raises(
        UserError, match=r"does not take the run \(the server is away\); nothing was imported"
    ):
        import_run(server, failing, file)
    everywhere = [each.experiment_id for each in client.search_experiments()]
    assert list(client.search_runs(everywhere)) == []
    assert [path for path in stored(other) if path.is_file()] == []
    assert import_run(server, client, file).known == ""


def test_an_import_that_was_killed_is_begun_again(
    file: Path, other: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = open_store(other)
    with monkeypatch.context() as patch:
        patch.setattr(run_import, "_discard", lambda *_: None)
        failing: Any = FailingClient(client, 1000, ("set_terminated",))
        with pytest.raises(UserError):
            import_run(server, failing, file)
    (other / ".import.abc.partial").mkdir()
    everywhere = [each.experiment_id for each in client.search_experiments()]
    left = client.search_runs(everywhere, f"tags.`{IMPORTING_TAG}` != ''")
    assert len(left) == 2
    command(other, "import-run", file)
    assert {run.info.status for run in client.search_runs(everywhere)} == {"FINISHED"}
    assert len(client.search_runs(everywhere)) == 2


def test_a_run_that_does_not_fit_is_refused(
    file: Path, other: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr("runner.tracking.run_import.shutil.disk_usage", lambda _: usage)
    sentence = refused(["import-run", str(file), "--tracking.root", str(other)])
    assert "where 100 B are free; free some space" in sentence
    assert stored(other) == []


def test_a_damaged_file_imports_nothing(file: Path, other: Path, refused: Callable[..., str]) -> None:
    raw = file.read_bytes()
    place = raw.index(b"the same" * 9) + 100  # in a file that is not compressed
    file.write_bytes(raw[:place] + b"!" + raw[place + 1 :])
    sentence = refused(["import-run", str(file), "--tracking.root", str(other)])
    assert "is damaged, not complete" in sentence
    assert stored(other) == []
    assert not list(other.glob(".import.*.partial"))


@pytest.mark.slow
def test_a_model_arrives_registered(
    trained_run: TrainedRun, other: Path, tmp_path: Path, command: Command
) -> None:
    file, image = tmp_path / "run.zip", trained_run.pictures / "red" / "00.png"
    root = Path(trained_run.tracking)
    command(root, "export-run", trained_run.run_id, file)
    assert "model 'small' version 1 is the champion" in command(other, "import-run", file)
    original = command(root, "predict", image, "--model", trained_run.run_id).partition("classes")[2]
    for reference in (trained_run.run_id[:8], "small@champion"):
        assert command(other, "predict", image, "--model", reference).partition("classes")[2] == original
    client, old = open_store(other)[1], trained_run.client
    run_id = find_run(client, trained_run.run_id).run_id
    assert everything(client, run_id, tmp_path / "new") == everything(
        old, trained_run.run_id, tmp_path / "old"
    )
    version, before = client.get_model_version("small", "1"), old.get_model_version("small", "1")
    assert (version.tags, version.run_id) == (before.tags, run_id)
    assert inconsistencies(other) == []
    frozen = list(other.rglob("frozen.safetensors"))
    assert [path.stat().st_nlink for path in frozen] == [2, 2]
    assert artifacts(client, run_id, "checkpoints") == artifacts(old, trained_run.run_id, "checkpoints")


def test_a_model_may_stay_unregistered(
    trained_run: TrainedRun, other: Path, tmp_path: Path, command: Command
) -> None:
    command(Path(trained_run.tracking), "export-run", trained_run.run_id, tmp_path / "run.zip")
    said = command(other, "import-run", tmp_path / "run.zip", "--no-register")
    assert "is logged with its run" in said
    assert open_store(other)[1].search_registered_models() == []
    image = trained_run.pictures / "red" / "00.png"
    assert "%" in command(other, "predict", image, "--model", trained_run.run_id)


@pytest.mark.slow
def test_a_run_goes_to_a_server_and_back(
    mlflow_server: MlflowServer,
    trained_run: TrainedRun,
    mlflow_store: Store,
    other: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = add_run(mlflow_store, tmp_path, "odd")
    command(mlflow_store[0].root, "export-run", odd, tmp_path / "odd.zip")
    command(Path(trained_run.tracking), "export-run", trained_run.run_id, tmp_path / "model.zip")
    originals = {odd: mlflow_store[1], trained_run.run_id: trained_run.client}
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mlflow_server.port}")
        here = tmp_path / "here"
        for name, run_id in zip(("odd", "model"), originals, strict=True):
            assert "is imported as" in command(here, "import-run", tmp_path / f"{name}.zip")
            assert "is here already" in command(here, "import-run", tmp_path / f"{name}.zip")
            command(here, "export-run", run_id, tmp_path / f"{name} again.zip")
        server: TrackingServer = tracking_server(str(here))
        remote = server.connect()
        for run_id, client in originals.items():
            there = find_run(remote, run_id).run_id
            assert everything(remote, there, tmp_path / "new") == everything(client, run_id, tmp_path / "old")
        image = trained_run.pictures / "red" / "00.png"
        assert "%" in command(here, "predict", image, "--model", "small@champion")
    for name in ("odd", "model"):
        command(other, "import-run", tmp_path / f"{name} again.zip")
    client = open_store(other)[1]
    for index, (run_id, before) in enumerate(originals.items()):
        back = find_run(client, run_id).run_id
        folder = tmp_path / str(index)
        assert everything(client, back, folder / "new") == everything(before, run_id, folder / "old")
    assert json.loads(command(other, "runs", "--json"))[0]["status"] == "FINISHED"
