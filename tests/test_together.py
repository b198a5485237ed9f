"""Several processes at once with one tracking root and one cache: all is recorded, once, and nothing is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import RUNNER, environment, one_sentence, started
from conftest import COLOURS, draw
from truth import lies

from runner.tracking.mlflow_server import server

PATIENCE = 280
EPOCHS = 150
"""Of runs that are killed in their course, and go on to the end."""
LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")
"""Settings of a run that has to be stopped."""
STAGES = 2
"""Of the frozen layers: rows are kept behind each."""
Place = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`place(folder)`: the words of a small experiment, with an empty store in `folder`/mlruns."""
    shared = tmp_path_factory.mktemp("together")
    for label in COLOURS:
        (shared / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(shared / "pictures" / label / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server(str(shared / "template")).connect()

    def build(folder: Path) -> list[str]:
        (folder / "mlruns").mkdir(parents=True)
        with (
            closing(sqlite3.connect(shared / "template" / "mlflow.db")) as source,
            closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as target,
        ):
            source.backup(target)
        return [
            *("--name", "small", "--data.kind", "folder", "--data.root", str(shared / "pictures")),
            *("--cache", str(folder / "cache"), "--tracking.root", str(folder / "mlruns")),
            *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
            *(
                "--model.width",
                "16",
                "--augment.resize",
                "36",
                "--augment.crop",
                "32",
                "--augment.views",
                "2",
            ),
            *(
                "--train.epochs",
                "3",
                "--train.batch_size",
                "8",
                "--train.precision",
                "no",
                "--features.batch_size",
                "8",
            ),
            *("--features.compile", "false", "--tracking.gallery", "0", "--tracking.model", "false"),
        ]

    return build


def training(words: list[str]) -> list[str]:
    return [sys.executable, str(RUNNER / "train.py"), *words]


def at_once(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Run commands side by side: status, output and errors of each."""
    processes = [
        subprocess.Popen(
            words,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for words in commands
    ]
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(process.returncode, out, errors) for process, (out, errors) in zip(processes, said, strict=True)]


def rows(root: Path, question: str) -> list[Any]:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return connection.execute(question).fetchall()


def statuses(root: Path) -> list[str]:
    return sorted(status for (status,) in rows(root, "SELECT status FROM runs"))


def curves(root: Path) -> dict[str, list[tuple[str, int, float]]]:
    """What each FINISHED run recorded, but for times."""
    found: dict[str, list[tuple[str, int, float]]] = {}
    for run, *point in rows(
        root,
        "SELECT r.run_uuid, m.key, m.step, m.value FROM metrics m JOIN runs r ON m.run_uuid = r.run_uuid"
        " WHERE r.status = 'FINISHED' AND (m.key LIKE 'train/%' OR m.key LIKE 'val/%' OR m.key LIKE 'test/%'"
        " OR m.key = 'lr') ORDER BY 1, 2, 3",
    ):
        found.setdefault(run, []).append(tuple(point))
    return found


def kept_rows(cache: Path) -> list[str]:
    """The keys of all rows in a cache's stores, by store; one that was computed twice is there twice."""
    from safetensors import safe_open

    found = []
    for path in (cache / "features").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += [f"{path.parent.name} {key}" for key in json.loads(file.metadata()["keys"])]
    return found


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_identical_runs_at_once(place: Place, tmp_path: Path, count: int) -> None:
    words = place(tmp_path / "shared")
    for status, _, errors in at_once(*[training([*words, "--tracking.model", "true"])] * count):
        assert status == 0, errors
        assert "Traceback" not in errors
    root, cache = tmp_path / "shared" / "mlruns", tmp_path / "shared" / "cache"
    assert statuses(root) == ["FINISHED"] * count
    first, *others = curves(root).values()
    assert len({step for name, step, _ in first if name == "val/loss"}) == 3
    assert others == [first] * (count - 1)
    kept = kept_rows(cache)
    assert len(kept) == len(set(kept)) == STAGES * (2 * 18 + 9 + 9), "every row is computed once"
    versions = rows(root, "SELECT version FROM model_versions ORDER BY 1")
    assert versions == [(number,) for number in range(1, count + 1)]
    assert len(rows(root, "SELECT * FROM registered_model_aliases")) == 1
    assert lies(root, cache) == []
    assert list((root / "journals").glob("*/")) == []


@pytest.mark.slow
def test_a_run_and_a_study_at_once(place: Place, tmp_path: Path) -> None:
    words = place(tmp_path / "shared")
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {low: 1e-4, high: 0.1, log: true}\n")
    study = [
        *(sys.executable, "-m", "runner.cli.main", "search", "--study", "some", "--space", str(space)),
        *("--trials", "3", "--pruner", "none", "--confirm", "0", *words),
    ]
    for status, _, errors in at_once(training(words), study):
        assert status == 0, errors
        assert "Traceback" not in errors
    root = tmp_path / "shared" / "mlruns"
    assert set(statuses(root)) == {"FINISHED"}
    assert len(statuses(root)) == 1 + 1 + 3, "the run, the study, its trials"
    assert lies(root, tmp_path / "shared" / "cache") == []
    kept = kept_rows(tmp_path / "shared" / "cache")
    assert len(kept) == len(set(kept))


MAKE = """
import sys
from runner.server import server
place = server(sys.argv[1])
client = place.connect()
run = client.create_run(place.experiment_id(client, "small"))
client.set_terminated(run.info.run_id)
"""


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.long)])
def test_processes_that_make_a_store_at_once(tmp_path: Path, count: int) -> None:
    root = tmp_path / "deep" / "mlruns"
    for status, _, errors in at_once(*[[sys.executable, "-c", MAKE, str(root)]] * count):
        assert status == 0, errors
    assert statuses(root) == ["FINISHED"] * count
    assert len(rows(root, "SELECT * FROM experiments WHERE name = 'small'")) == 1
    assert lies(root) == []
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith((".", "mlflow.db"))) == []


MAKE_ELSEWHERE = """
import os, sys, time
os.environ["MLFLOW_TRACKING_URI"] = sys.argv[4]
from runner.server import server
place = server(sys.argv[1])
time.sleep(float(sys.argv[2]))
client = place.connect()
client.create_run(place.experiment_id(client, sys.argv[3]))
"""


@pytest.mark.slow
def test_one_database_is_made_once_whatever_the_roots(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}"
    names = ["one", "two", "three", "two"]
    commands = [
        [sys.executable, "-c", MAKE_ELSEWHERE, str(tmp_path / f"root {number}"), str(number * 0.7), name, uri]
        for number, name in enumerate(names)
    ]
    for status, _, errors in at_once(*commands):
        assert status == 0, errors
    found = rows(tmp_path / "shared", "SELECT name FROM experiments ORDER BY 1")
    assert [name for (name,) in found if name != "Default"] == sorted(set(names))
    assert len(statuses(tmp_path / "shared")) == len(names)


def interrupted(words: list[str], folder: Path) -> None:
    """A run that is killed in its course, with a snapshot or two."""
    process = started(training([*words, "--checkpoints.epochs", "1"]), "epoch   3", folder)
    process.kill()
    process.wait(10)


@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)]
)
def test_two_that_go_on_with_one_run(place: Place, tmp_path: Path, count: int) -> None:
    """One has it; another begins anew, or is told so."""
    words = [*place(tmp_path / "shared"), "--train.epochs", str(EPOCHS), "--schedule.kind", "constant"]
    interrupted(words, tmp_path)
    root = tmp_path / "shared" / "mlruns"
    outcomes = at_once(*[training([*words, "--resume", "auto"])] * count)
    going = [out for status, out, _ in outcomes if status == 0 and "going on with run" in out]
    assert len(going) == 1, outcomes
    for status, _, errors in outcomes:
        assert status in (0, 2), errors
        if status:
            assert "goes on in another process" in one_sentence(errors)
    good = sum(status == 0 for status, _, _ in outcomes)
    assert statuses(root) == ["FINISHED"] * good
    found = list(curves(root).values())
    assert len([step for name, step, _ in found[0] if name == "val/loss"]) == EPOCHS
    assert all(each == found[0] for each in found), "to go on is to have been undisturbed"
    assert lies(root, tmp_path / "shared" / "cache") == []


@pytest.mark.slow
def test_a_run_that_goes_on_while_it_still_runs(place: Place, tmp_path: Path) -> None:
    words = [*place(tmp_path / "shared"), *LONG, "--checkpoints.epochs", "1"]
    root = tmp_path / "shared" / "mlruns"
    process = started(training(words), "epoch   3", tmp_path)
    try:
        (run,) = [path.name for path in (root / "journals").iterdir() if path.is_dir()]
        ((status, _, errors),) = at_once(training([*words, "--resume", run[:8]]))
        assert status == 2
        assert "still runs" in one_sentence(errors)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(60)
    assert statuses(root) == ["KILLED"]
    assert lies(root, tmp_path / "shared" / "cache") == []
