"""Deliveries of models to the registry: repeated, broken off, and refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Make, Recorder
from stores import (
    EXPERIMENT,
    FailingClient,
    RecordingTerminal,
    Store,
    end,
    journal_of_dead_process,
    metric,
    new_run,
    status,
)

from runner.tracking.journal import Journal, Owner
from runner.tracking.model_registry import MODEL_TAG, ModelInfo, register_model
from runner.tracking.recovery import recover_runs
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.tracking.uploader import deliver
from runner.training import run
from runner.utils.console import Terminal

REQUESTS = (
    *("get_run", "search_logged_models", "create_logged_model", "log_model_artifacts"),
    *("finalize_logged_model", "log_outputs", "log_batch", "set_tag", "create_registered_model"),
    *("search_model_versions", "create_model_version", "get_registered_model"),
    *("set_registered_model_alias", "set_model_version_tag"),
)
"""What registering the first model of an experiment asks of MLflow."""


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


def model_info(top1: float, manifest: str = "m", name: str = "crown") -> ModelInfo:
    metrics = {"val/top1": top1, "val/balanced_accuracy": 1 - top1}
    return ModelInfo(name, metrics, "val/top1", manifest, step=3, time=1_700_000_000_000)


def champion(client: Any, name: str = "crown") -> int:
    return int(client.get_model_version_by_alias(name, "champion").version)


def check_registered_once(client: Any, run_id: str, name: str = "crown") -> None:
    """A run has one complete model with one version, which is the champion; its files and metrics are there."""
    found = client.get_run(run_id)
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.status == "READY"
    assert model.source_run_id == run_id
    assert found.data.tags[MODEL_TAG] == model.model_id
    assert [output.model_id for output in found.outputs.model_outputs] == [model.model_id]
    assert sorted(point.key for point in model.metrics) == ["val/balanced_accuracy", "val/top1"]
    assert (Path(model.artifact_location.removeprefix("file://")) / "MLmodel").exists()
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.run_id == run_id
    assert champion(client, name) == int(version.version) == 1


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_repeated_delivery_registers_once(store: Store, tiny: Path, request_name: str, after: bool) -> None:
    client, run_id = store[1], new_run(store)
    failing: Any = FailingClient(client, 2, (request_name,), after)
    failures = 0
    for _ in range(3):
        try:
            register_model(failing, run_id, tiny, model_info(0.5))
        except ConnectionError:
            failures += 1
    assert failures in (1, 2), "a request that was carried out is not sent again"
    message = register_model(client, run_id, tiny, model_info(0.5))
    assert "version 1 is the champion" in message
    check_registered_once(client, run_id)


def append_model(journal: Journal, model: Path, info: ModelInfo) -> None:
    """Put a model into a journal, as a run does."""
    shutil.copytree(model, journal.folder / "model")
    journal.append({"kind": "model", "folder": "model", "info": info.to_dict()})


def journal_of(store: Store) -> Journal:
    """The journal of a new run of this process."""
    server, _ = store
    return Journal.create(server.journals, Owner.this_process(server.uri, new_run(store)))


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("request_name", ["log_model_artifacts", "create_model_version", "set_tag"])
def test_a_journal_delivers_its_model_after_an_outage(
    store: Store, tiny: Path, request_name: str, after: bool
) -> None:
    client, journal = store[1], journal_of(store)
    append_model(journal, tiny, model_info(0.5))
    journal.append(end())
    failing: Any = FailingClient(client, 1, (request_name,), after)
    with pytest.raises(ConnectionError):
        deliver(journal, failing)
    assert (journal.folder / "model").exists()
    assert deliver(journal, client) is True
    check_registered_once(client, journal.owner.run_id)
    assert not (journal.folder / "model").exists()
    assert status(client, journal.owner.run_id) == "FINISHED"
    assert client.get_run(journal.owner.run_id).data.tags["runner.champion"] == journal.messages[-1]


def test_an_upload_that_is_repeated_changes_no_other_name_of_a_file(
    store: Store, tiny: Path, tmp_path: Path
) -> None:
    """The first attempt linked the weights; the second has copies, as on another disk."""
    client, journal = store[1], journal_of(store)
    weights, shared = tiny / "frozen.safetensors", tmp_path / "shared"
    shared.write_text("shared")
    weights.hardlink_to(shared)
    failing: Any = FailingClient(client, 1, ("finalize_logged_model",))
    arguments = (journal.owner.run_id, tiny, model_info(0.5))
    with pytest.raises(ConnectionError):
        register_model(failing, *arguments)
    assert shared.stat().st_nlink == 3
    weights.unlink()
    weights.write_text("another content")
    register_model(client, *arguments)
    assert shared.read_text() == "shared"
    version = client.get_model_version("crown", "1")
    assert Path(version.source.removeprefix("file://"), weights.name).read_text() == "another content"


def test_a_model_that_an_earlier_version_logged_is_delivered(store: Store, tiny: Path) -> None:
    """Journals may wait on disk while the program is updated."""
    client, journal = store[1], journal_of(store)
    shutil.copytree(tiny, journal.folder / "model")
    content = {
        "name": "crown",
        "metrics": {"val/top1": 0.5, "val/balanced_accuracy": 0.5},
        "score": "val/top1",
        "value": 0.5,
        "manifest": "m",
        "step": 3,
        "time": 1_700_000_000_000,
    }
    journal.append({"kind": "model", "folder": "model", "told": content})
    deliver(journal, client)
    check_registered_once(client, journal.owner.run_id)


def test_the_model_of_a_killed_process_is_delivered(store: Store, tiny: Path) -> None:
    server, client = store
    journal = journal_of_dead_process(store, new_run(store))
    append_model(journal, tiny, model_info(0.5))
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    failing: Any = FailingClient(client, 1, ("create_model_version",))
    recover_runs(server, failing, terminal := RecordingTerminal())
    assert any("could not be delivered yet" in warning for warning in terminal.warnings)
    for _ in range(2):
        recover_runs(server, client, terminal)
        check_registered_once(client, journal.owner.run_id)
        assert status(client, journal.owner.run_id) == "KILLED"
        assert not journal.folder.exists()


def test_an_incomplete_model_is_not_registered(store: Store, tiny: Path, silent: Terminal) -> None:
    """Its process died while writing it: there is no event of it."""
    server, client = store
    journal = journal_of_dead_process(store, new_run(store))
    tiny.rename(journal.folder / "model")
    recover_runs(server, client, silent)
    assert client.search_registered_models() == []
    assert status(client, journal.owner.run_id) == "KILLED"
    assert not journal.folder.exists()


def test_a_refused_model_does_not_stop_the_other_records(store: Store, tiny: Path) -> None:
    client, journal = store[1], journal_of(store)
    append_model(journal, tiny, model_info(0.5, name="a:b"))
    journal.append(metric("loss", 1.0, 1))
    journal.append(end())
    assert deliver(journal, client) is True
    found = client.get_run(journal.owner.run_id)
    assert found.data.metrics["loss"] == 1
    assert "name" in found.data.tags["runner.refused"]


def test_a_refused_model_is_named_to_the_user(
    store: Store, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run has finished and has no version: nothing else would say so."""
    server, client = store
    with track_run(server, client, RunRequest(EXPERIMENT, "refused"), Terminal()) as tracker:
        shutil.copytree(tiny, tracker.local_folder("model"))
        tracker.log_model(tracker.local_folder("model"), model_info(0.5, name="a:b"))
    assert "runner.refused" in client.get_run(tracker.run_id).data.tags
    assert "a:b" in capfd.readouterr().out


Train = Callable[..., tuple[run.RunResult, Recorder]]


def test_a_run_that_fails_at_its_end_registers_no_model(
    make: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[ModelInfo] = []

    def full(_self: Recorder, values: dict[str, float], _step: int = 0) -> None:
        if any(name.startswith("test/") for name in values):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "log_metrics", full)
    monkeypatch.setattr(Recorder, "log_model", lambda _self, _folder, info: models.append(info))
    with pytest.raises(OSError, match="No space"):
        train(make("--train.epochs", "1", "--augment.views", "none", "--tracking.model", "true"))
    assert models == []


def test_a_finished_run_logs_one_model(make: Make, train: Train) -> None:
    options = ("--train.epochs", "1", "--augment.views", "none", "--tracking.gallery", "0")
    selection = ("--train.best", "balanced_accuracy", "--name", "a:b", "--tracking.model", "true")
    result, tracker = train(make(*options, *selection))
    (info,) = tracker.models
    assert info.name == "a-b"
    assert info.score == "val/balanced_accuracy"
    assert info.value == result.best_epoch.val["balanced_accuracy"]
    assert info.step == result.best_epoch.number
    assert train(make(*options, "--tracking.model", "false"))[1].models == []
