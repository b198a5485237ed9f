"""`runner export-run` and `runner import-run`: a run goes to another store with all that belongs to it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from odd_runs import SECRET, add_run, everything, stored
from stores import (
    Store,
    end,
    journal_of_dead_process,
    metric,
    open_store,
    status,
)

from runner.cli import main
from runner.tracking.run_lookup import ORIGINAL_TAG, PARENT_TAG, find_run

pytestmark = pytest.mark.usefixtures("plain_environment")
Command = Callable[..., str]


def children(client: MlflowClient, run_id: str) -> list[str]:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{run_id}'")
    return [run.info.run_id for run in sorted(found, key=lambda run: run.info.run_name)]


def test_a_run_with_its_parts_arrives_to_the_last_bit(
    mlflow_store: Store, other: Path, tmp_path: Path, command: Command
) -> None:
    client = mlflow_store[1]
    parent = add_run(mlflow_store, tmp_path, "parent")
    parts = [
        add_run(mlflow_store, tmp_path, f"part {i}", parent, ("FINISHED", "KILLED")[i]) for i in range(2)
    ]
    grandchild = add_run(mlflow_store, tmp_path, "part of part", parts[0])
    file = tmp_path / "files" / "run.zip"
    said = command(mlflow_store[0].root, "export-run", parent[:8], file)
    assert f"run {parent[:8]} (parent) and 3 runs that are part of it" in said
    assert [path.name for path in file.parent.iterdir()] == ["run.zip"]
    with zipfile.ZipFile(file) as archive:
        assert SECRET.encode() not in b"".join(archive.read(name) for name in archive.namelist())
        assert sum(name.endswith("weights.safetensors") for name in archive.namelist()) == 1

    assert "with 3 runs that are part of it" in command(other, "import-run", file)
    imported = open_store(other)[1]
    found = find_run(imported, parent[:8])  # by its original id
    assert imported.get_run(found.run_id).data.tags[ORIGINAL_TAG] == parent
    new = [found.run_id, *children(imported, found.run_id)]
    new.append(*children(imported, new[1]))
    for original, run_id in zip([parent, *parts, grandchild], new, strict=True):
        assert everything(imported, run_id, tmp_path / "new") == everything(
            client, original, tmp_path / "old"
        )
    assert status(imported, new[2]) == "KILLED"
    assert sorted(path.name for path in other.iterdir() if "import." in path.name) == [".import.lock"]


def test_a_run_that_is_there_is_not_imported_again(
    mlflow_store: Store, other: Path, tmp_path: Path, command: Command
) -> None:
    root, file = mlflow_store[0].root, tmp_path / "run.zip"
    run_id = add_run(mlflow_store, tmp_path, "once", ended="KILLED")
    command(root, "export-run", run_id, file)
    assert f"is here already, as {run_id[:8]}: nothing was imported" in command(root, "import-run", file)
    command(other, "import-run", file)
    new = find_run(open_store(other)[1], run_id).run_id
    files = stored(other)
    assert f"is here already, as {new[:8]}: nothing" in command(other, "import-run", file)
    assert stored(other) == files
    mlflow_store[1].set_terminated(run_id, "FINISHED")  # it was resumed
    file.unlink()
    command(root, "export-run", run_id, file)
    said = command(other, "import-run", file)
    assert f"as {new[:8]}, and KILLED here, but FINISHED in the file: nothing was imported" in said
    command(other, "runs", "delete", new)
    assert "is imported as" in command(other, "import-run", file)


def test_a_run_keeps_its_first_id_from_store_to_store(
    mlflow_store: Store, other: Path, tmp_path: Path, command: Command
) -> None:
    run_id = add_run(mlflow_store, tmp_path, "traveler")
    command(mlflow_store[0].root, "export-run", run_id, tmp_path / "run.zip")
    command(other, "import-run", tmp_path / "run.zip")
    command(other, "export-run", run_id, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "run.zip").read_bytes()
    said = command(mlflow_store[0].root, "import-run", tmp_path / "again.zip")
    assert f"is here already, as {run_id[:8]}" in said


def test_a_part_that_came_alone_joins_its_whole(
    mlflow_store: Store, other: Path, tmp_path: Path, command: Command
) -> None:
    root = mlflow_store[0].root
    parent = add_run(mlflow_store, tmp_path, "parent")
    part = add_run(mlflow_store, tmp_path, "part", parent)
    for run_id in (part, parent):
        command(root, "export-run", run_id, tmp_path / f"{run_id}.zip")
    command(other, "import-run", tmp_path / f"{part}.zip")
    client = open_store(other)[1]
    alone = find_run(client, part).run_id
    assert PARENT_TAG not in client.get_run(alone).data.tags
    command(other, "import-run", tmp_path / f"{parent}.zip")
    assert children(client, find_run(client, parent).run_id) == [alone]


def test_runs_that_have_not_ended_are_refused(
    mlflow_store: Store, tmp_path: Path, refused: Callable[..., str]
) -> None:
    root, file = str(mlflow_store[0].root), tmp_path / "run.zip"
    parent = add_run(mlflow_store, tmp_path, "parent")
    part = add_run(mlflow_store, tmp_path, "part", parent, "RUNNING")
    sentence = refused(["export-run", parent, str(file), "--tracking.root", root])
    assert f"Run {part[:8]} (part) is RUNNING" in sentence
    mlflow_store[1].set_terminated(part)
    journal = journal_of_dead_process(mlflow_store, part)
    journal.append(metric("late", 1.0))
    journal.append(end())
    sentence = refused(["export-run", parent, str(file), "--tracking.root", root])
    assert f"Records of run {part[:8]} (part) wait for delivery; ./launch.sh sync" in sentence
    assert not file.exists()


def test_an_interrupted_run_is_exported_with_a_word(
    mlflow_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = add_run(mlflow_store, tmp_path, "stopped", ended="KILLED")
    words = ["export-run", run_id, str(tmp_path / "run.zip"), "--tracking.root", str(mlflow_store[0].root)]
    assert main.main(words) == 0
    assert "is KILLED: it is exported with what it logged" in capfd.readouterr().out


def test_an_existing_file_is_not_overwritten(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "run.zip"
    file.write_text("precious")
    words = ["export-run", "latest", str(file), "--tracking.root", str(tmp_path / "none")]
    sentence = refused(words)  # before the run records, which are not there, are read
    assert f"{file} exists already; name another file or remove it." in sentence
    assert file.read_text() == "precious"
    assert "FILE" in refused(["export-run", "latest"])


def test_odd_words_are_refused(mlflow_store: Store, tmp_path: Path, refused: Callable[..., str]) -> None:
    root = ["--tracking.root", str(mlflow_store[0].root)]
    run_id = add_run(mlflow_store, tmp_path, "some")
    assert "is a folder" in refused(["export-run", run_id, str(tmp_path), *root])
    assert "There is no run 'none'" in refused(["export-run", "none", str(tmp_path / "run.zip"), *root])
    assert "There is no" in refused(["import-run", str(tmp_path / "none.zip"), *root])
    assert "no records" in refused(["export-run", run_id, "a.zip", "--tracking.root", str(tmp_path / "none")])


def test_a_file_that_cannot_be_read_leaves_no_archive(
    mlflow_store: Store, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(mlflow_store, tmp_path, "some")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "weights.safetensors")

    monkeypatch.setattr("runner.tracking.run_archive.hashlib.file_digest", fail)
    words = ["export-run", run_id, str(tmp_path / "run.zip"), "--tracking.root", str(mlflow_store[0].root)]
    assert "No permission for weights.safetensors" in refused(words)
    assert not list(tmp_path.glob("*run.zip*"))


@pytest.fixture
def file(mlflow_store: Store, tmp_path: Path, command: Command) -> Path:
    """A file of a run with a part."""
    parent = add_run(mlflow_store, tmp_path, "parent")
    add_run(mlflow_store, tmp_path, "part", parent)
    command(mlflow_store[0].root, "export-run", parent, tmp_path / "run.zip")
    return tmp_path / "run.zip"
