"""The registry: whose model is the champion, deliveries that broke off, and several processes at once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Make, Recorder
from test_models import new_run, told
from test_tracking import Heard, Stop, dead, journal_of_dead

from runner.tracking import model_registry
from runner.tracking.journal import Journal, Owner, me, now_ms, this_host
from runner.tracking.mlflow_server import Server, server
from runner.tracking.model_registry import MODEL_TAG
from runner.tracking.tracker import tracked
from runner.tracking.uploader import deliver as deliver_journal
from runner.tracking.uploader import recover
from runner.training import run
from runner.utils.console import Terminal

STEPS = (
    *("get_run", "search_logged_models", "create_logged_model", "log_model_artifacts"),
    *("finalize_logged_model", "log_outputs", "log_batch", "set_tag", "create_registered_model"),
    *("search_model_versions", "create_model_version", "get_model_version_by_alias"),
    *("set_registered_model_alias",),
)


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself sets the variable when it is told its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store without runs. Creating one takes seconds; each test gets a copy."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server(str(root)).connect()
    return root / "mlflow.db"


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> tuple[Server, Any]:
    """An empty store and its client."""
    place = server(str(tmp_path / "mlruns"))
    place.root.mkdir()
    with sqlite3.connect(empty) as source, sqlite3.connect(place.root / "mlflow.db") as target:
        source.backup(target)
    return place, place.connect()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that stands for a packed model."""
    folder = tmp_path / "tiny"
    (folder / "artifacts" / "classifier").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    return folder


@pytest.fixture
def deliver(store: tuple[Server, Any], tiny: Path, tmp_path: Path) -> Callable[..., str]:
    """`deliver(told)`: a new run's model, delivered: what is said."""
    place, client = store

    def call(about: dict[str, Any]) -> str:
        return model_registry.deliver(client, new_run(client, place), tiny, about, tmp_path / "lock")

    return call


def champion(client: Any, name: str = "crown") -> int:
    return int(client.get_model_version_by_alias(name, "champion").version)


def once(client: Any, run_id: str, name: str = "crown") -> None:
    """A run has one model, whole, with one version, which is the champion; its files and scores are there."""
    info = client.get_run(run_id)
    (model,) = client.search_logged_models([info.info.experiment_id])
    assert model.status == "READY"
    assert model.source_run_id == run_id
    assert info.data.tags[MODEL_TAG] == model.model_id
    assert [each.model_id for each in info.outputs.model_outputs] == [model.model_id]
    assert sorted(metric.key for metric in model.metrics) == ["val/balanced_accuracy", "val/top1"]
    assert (Path(model.artifact_location.removeprefix("file://")) / "MLmodel").exists()
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.run_id == run_id
    assert champion(client, name) == int(version.version) == 1


# Who is champion


def test_the_score_of_the_run_decides(store: tuple[Server, Any], deliver: Callable[..., str]) -> None:
    """The one with more recall takes the crown from one of more top-1, where recall is what a run is after."""

    def scored(top1: float, recall: float, score: str) -> dict[str, Any]:
        metrics = {"val/top1": top1, "val/balanced_accuracy": recall}
        return {**told(0), "metrics": metrics, "score": score, "value": metrics[score]}

    deliver(scored(0.9, 0.3, "val/top1"))
    said = deliver(scored(0.5, 0.4, "val/balanced_accuracy"))
    assert "version 2 is the new champion (val/balanced_accuracy 0.4000 against 0.3000 of version 1)" in said
    said = deliver(scored(0.6, 0.9, "val/balanced_accuracy"))
    assert "version 3 is the new champion (val/balanced_accuracy 0.9000 against 0.4000 of version 2)" in said
    said = deliver(scored(0.6, 1.0, "val/top1"))
    assert "the champion stays (val/top1 0.6000 against 0.6000 of version 3)" in said
    assert champion(store[1]) == 3


def test_scores_are_compared_in_full(store: tuple[Server, Any], deliver: Callable[..., str]) -> None:
    deliver(told(0.1 + 0.2))
    assert "the champion stays" in deliver(told(0.3))
    assert "is the new champion" in deliver(told(0.30000000000000010))
    assert champion(store[1]) == 3


def test_other_images_are_noted_only_where_they_are_other(deliver: Callable[..., str]) -> None:
    deliver(told(0.5, "a"))
    assert "judged on other images" in deliver(told(0.4, "b"))
    assert "judged on other images" not in deliver(told(0.6, "a"))


def test_a_champion_without_a_score_stays(store: tuple[Server, Any], deliver: Callable[..., str]) -> None:
    deliver(told(0.5))
    store[1].delete_model_version_tag("crown", "1", "val/top1")
    assert "has no val/top1 to compare with" in deliver(told(0.9))
    assert champion(store[1]) == 1


def test_a_crown_that_was_taken_away_is_given_again(
    store: tuple[Server, Any], deliver: Callable[..., str]
) -> None:
    deliver(told(0.5))
    store[1].delete_registered_model_alias("crown", "champion")
    assert "version 2 is the champion, as the first" in deliver(told(0.1))


def test_other_aliases_are_left_alone(store: tuple[Server, Any], deliver: Callable[..., str]) -> None:
    _, client = store
    deliver(told(0.5))
    client.set_registered_model_alias("crown", "mine", "1")
    deliver(told(0.6))
    aliases = client.get_registered_model("crown").aliases
    assert {name: int(version) for name, version in aliases.items()} == {"champion": 2, "mine": 1}


def test_experiments_have_champions_of_their_own(
    store: tuple[Server, Any], deliver: Callable[..., str]
) -> None:
    deliver(told(0.5))
    assert "version 1 is the champion, as the first" in deliver(told(0.1, name="other"))
    assert (champion(store[1]), champion(store[1], "other")) == (1, 1)


@pytest.mark.parametrize(
    "name",
    [
        *("two words", "ünïcode 猫", "100 %", "a=b and c", "a@b", "a;b", 'say "it"', "x" * 200),
        "it's",
    ],
)
def test_an_experiment_may_be_called_anything(
    store: tuple[Server, Any], deliver: Callable[..., str], name: str
) -> None:
    assert "is the champion, as the first" in deliver(told(0.5, name=name))
    assert "version 2 is registered" in deliver(told(0.4, name=name))
    assert champion(store[1], name) == 1


def test_a_version_says_where_it_comes_from(store: tuple[Server, Any], deliver: Callable[..., str]) -> None:
    _, client = store
    deliver(told(0.5))
    (version,) = client.search_model_versions("name = 'crown'")
    assert version.tags == {"val/top1": "0.5", "val/balanced_accuracy": "0.5", "runner.manifest": "m"}
    assert f"Best checkpoint of run {version.run_id}" in version.description


# Deliveries that broke off


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("step", STEPS)
def test_a_broken_delivery_is_done_once(
    store: tuple[Server, Any],
    tiny: Path,
    tmp_path: Path,
    step: str,
    after: bool,
) -> None:
    place, client = store
    run_id = new_run(client, place)
    away = Stop(client, 2, (step,), after)
    refusals = 0
    for _ in range(3):
        try:
            model_registry.deliver(away, run_id, tiny, told(0.5), tmp_path / "lock")  # type: ignore[arg-type]
        except ConnectionError:
            refusals += 1
    assert refusals in (1, 2), "a step whose work was done is not asked for again"
    said = model_registry.deliver(client, run_id, tiny, told(0.5), tmp_path / "lock")
    assert "version 1 is the champion" in said
    once(client, run_id)


def model_event(journal: Journal, packed: Path) -> None:
    """A model in a journal, as a run writes it."""
    shutil.copytree(packed, journal.folder / "model")
    journal.append({"kind": "model", "folder": "model", "told": {**told(0.5), "time": now_ms()}})


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("step", ["log_model_artifacts", "create_model_version", "set_tag"])
def test_a_journal_brings_its_model_after_an_outage(
    store: tuple[Server, Any],
    tiny: Path,
    step: str,
    after: bool,
) -> None:
    place, client = store
    journal = Journal.create(place.root / "journals", me(place.uri, new_run(client, place)))
    model_event(journal, tiny)
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    with pytest.raises(ConnectionError):
        deliver_journal(journal, Stop(client, 1, (step,), after))  # type: ignore[arg-type]
    assert (journal.folder / "model").exists()
    assert deliver_journal(journal, client) is True
    once(client, journal.owner.run_id)
    assert not (journal.folder / "model").exists()
    assert client.get_run(journal.owner.run_id).info.status == "FINISHED"
    assert client.get_run(journal.owner.run_id).data.tags["runner.champion"] == journal.said[-1]


def test_a_model_whose_process_was_killed_is_delivered(
    store: tuple[Server, Any],
    tiny: Path,
) -> None:
    place, client = store
    journal = journal_of_dead(store, new_run(client, place))
    model_event(journal, tiny)
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    recover(place, Stop(client, 1, ("create_model_version",)), heard := Heard())  # type: ignore[arg-type]
    assert any("could not be delivered yet" in note for note in heard.notes)
    recover(place, client, Terminal(speaks=False))
    once(client, journal.owner.run_id)
    assert client.get_run(journal.owner.run_id).info.status == "KILLED"
    assert not journal.folder.exists()
    recover(place, client, Terminal(speaks=False))
    once(client, journal.owner.run_id)


def test_a_model_that_was_not_whole_is_not_registered(
    store: tuple[Server, Any],
    tiny: Path,
) -> None:
    """Its process died while it was packed: no event speaks of it."""
    place, client = store
    pid, began = dead()
    owner = Owner(place.uri, new_run(client, place), this_host(), pid, began)
    journal = Journal.create(place.root / "journals", owner)
    tiny.rename(journal.folder / "model")
    recover(place, client, Terminal(speaks=False))
    assert client.search_registered_models() == []
    assert client.get_run(owner.run_id).info.status == "KILLED"
    assert not journal.folder.exists()


def test_what_the_registry_refuses_costs_no_record(
    store: tuple[Server, Any],
    tiny: Path,
) -> None:
    place, client = store
    journal = Journal.create(place.root / "journals", me(place.uri, new_run(client, place)))
    model_event(journal, tiny)
    text = (journal.folder / "events.jsonl").read_text()
    (journal.folder / "events.jsonl").write_text(text.replace('"crown"', '"a:b"'))
    journal.append({"kind": "metrics", "step": 1, "time": now_ms(), "values": {"loss": 1.0}})
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    assert deliver_journal(journal, client) is True
    info = client.get_run(journal.owner.run_id)
    assert info.data.metrics["loss"] == 1
    assert "name" in info.data.tags["runner.refused"]


BOTH = """
import json, os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from pathlib import Path
from runner.registry import deliver
from runner.server import server
root, folder, abouts = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
client = server(root).connect()
print("ready", flush=True)
input()
for run_id, about in abouts:
    print(deliver(client, run_id, folder, about, Path(root) / ".champion.lock"), flush=True)
"""


def test_two_processes_at_once(store: tuple[Server, Any], tiny: Path) -> None:
    place, client = store
    values = [[0.3, 0.7, 0.1, 0.9], [0.8, 0.2, 0.6, 0.4]]
    processes = []
    for row in values:
        abouts = json.dumps([[new_run(client, place), told(value)] for value in row])
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", BOTH, str(place.root), str(tiny), abouts],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n", each.communicate()[1]
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    said = []
    for each in processes:
        out, err = each.communicate(timeout=120)
        assert each.returncode == 0, err
        said += out.splitlines()
    versions = client.search_model_versions("name = 'crown'")
    assert sorted(int(each.version) for each in versions) == list(range(1, 9))
    best = client.get_model_version_by_alias("crown", "champion")
    assert best.tags["val/top1"] == "0.9"
    assert sum("as the first" in line for line in said) == 1
    assert len(client.search_logged_models([client.get_run(best.run_id).info.experiment_id])) == 8


# Runs that leave none


def test_a_run_that_fails_registers_none(
    make: Make, train: Callable[..., tuple[run.Result, Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers: list[Recorder] = []

    def full(_ready: Any, _result: Any, tracker: Recorder) -> None:
        trackers.append(tracker)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "_log_result", full)
    with pytest.raises(OSError, match="No space"):
        train(make("--train.epochs", "1", "--augment.views", "clean", "--tracking.model", "true"))
    assert trackers[0].models == []


def test_a_finished_run_hands_over_one_model(
    make: Make, train: Callable[..., tuple[run.Result, Recorder]]
) -> None:
    more = ("--train.epochs", "1", "--augment.views", "clean", "--tracking.gallery", "0")
    result, tracker = train(
        make(*more, "--train.best", "recall", "--name", "a:b", "--tracking.model", "true")
    )
    (about,) = tracker.models
    assert about["name"] == "a-b"
    assert (about["score"], about["value"]) == (
        "val/balanced_accuracy",
        result.best_epoch.val.balanced_accuracy,
    )
    assert about["step"] == result.best_epoch.number
    assert train(make(*more, "--tracking.model", "false"))[1].models == []


def test_a_refused_model_is_told_to_whom_it_concerns(
    store: tuple[Server, Any],
    tiny: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run is FINISHED and has no version: its user has to hear of it."""
    place, client = store
    with tracked(place, client, "crown", "refused", Terminal()) as tracker:
        shutil.copytree(tiny, tracker.room("model"))
        tracker.model(tracker.room("model"), told(0.5, name="a:b"))
    assert "runner.refused" in client.get_run(tracker.run_id).data.tags
    assert "a:b" in capfd.readouterr().out
