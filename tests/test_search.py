"""`runner search` as a user calls it: whole studies, how they end and go on, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, client_of, command, environment, one_sentence, runs_of
from conftest import COLOURS, draw
from helpers import QUIET
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from runner.cli import main
from runner.config import parser
from runner.config.schema import as_tree, flatten
from runner.features.cache import Features
from runner.study import options, storage
from runner.study.mlflow_run import close_parent, open_parent
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import Study
from runner.tracking.mlflow_server import server
from runner.tracking.sessions import Records
from runner.training.setup import Prepared

SPACE = "optim.lr: {low: 1e-4, high: 0.1, log: true}\nnetwork.dropout: {low: 0.0, high: 0.8}\n"
NAMES = ("optim.lr", "model.dropout")
LONG = ("--train.epochs", "100", "--pruner", "none", "--confirm", "0")
"""Of studies that are disturbed: a trial takes a second or two, and nothing is left out."""
PATIENCE = 200
"""Seconds that a command may take on a busy machine."""

Place = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`place(folder)`: the words of a small study, with an empty store in `folder`/mlruns."""
    shared = tmp_path_factory.mktemp("search")
    for label in COLOURS:
        (shared / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(shared / "pictures" / label / f"{number:02}.png")
    (shared / "space.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server(str(shared / "template")).connect()

    def build(folder: Path) -> list[str]:
        (folder / "mlruns").mkdir(parents=True)
        with (
            sqlite3.connect(shared / "template" / "mlflow.db") as source,
            sqlite3.connect(folder / "mlruns" / "mlflow.db") as target,
        ):
            source.backup(target)
        return [
            *("--study", "some", "--space", str(shared / "space.yaml")),
            *("--name", "small", "--data.kind", "folder", "--data.root", str(shared / "pictures")),
            *("--cache", str(shared / "cache"), "--tracking.root", str(folder / "mlruns")),
            *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
            *(
                "--model.width",
                "16",
                "--augment.resize",
                "32",
                "--augment.crop",
                "32",
                "--augment.views",
                "clean",
            ),
            *(
                "--train.epochs",
                "2",
                "--train.batch_size",
                "8",
                "--train.precision",
                "no",
                "--features.batch_size",
                "8",
            ),
            *("--features.compile", "false", "--optim.lr", "0.0001"),  # a baseline that can be beaten
            *("--tracking.model", "false", "--tracking.gallery", "0"),
        ]

    return build


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, and no store but the one that a test names."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def searching(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "runner.cli.main", "search", *words]


def begun(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A search that goes on beside the test; it says what it says in `folder`."""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            searching(words), cwd=ROOT, env=environment(), stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )


def trials_of(folder: Path) -> list[FrozenTrial]:
    """The study's trials, as they are now. Read without a lock, which a stopped process may hold."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / "mlruns" / storage.JOURNAL
    if not path.exists() or b'"op_code":4' not in path.read_bytes():  # no trial yet
        return []
    kept = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name="some", storage=kept).trials


def in_a_trial(process: subprocess.Popen[bytes], folder: Path, behind: int = -1) -> FrozenTrial:
    """Wait for a trial, of a number above `behind`, that is in the middle of its epochs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for trial in trials_of(folder):
            if trial.state == TrialState.RUNNING and trial.number > behind and trial.intermediate_values:
                return trial
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    return pytest.fail(f"no trial runs: {(folder / 'said.txt').read_text()}")


def states(folder: Path) -> list[str]:
    return ["LOST" if "lost" in each.user_attrs else each.state.name for each in trials_of(folder)]


def family(folder: Path) -> tuple[Any, list[Any]]:
    """The study's run, which there must be one of, and its trials' runs."""
    runs = runs_of(client_of(folder))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, [run.info.run_name for run in parents]
    (parent,) = parents
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, children


def artifacts(folder: Path, run: Any) -> set[str]:
    client = client_of(folder)

    def below(path: str | None) -> Iterator[str]:
        for each in client.list_artifacts(run.info.run_id, path):
            if each.is_dir:
                yield from below(each.path)
            else:
                yield each.path

    return set(below(None))


def sides(folder: Path) -> list[str]:
    """What is trained again to compare: one experiment where the baseline is the best."""
    best = max(trials_of(folder), key=lambda each: (each.value or 0, -each.number))
    return ["baseline"] if "baseline" in best.user_attrs else ["baseline", "best"]


# A whole study


@pytest.fixture(scope="module")
def finished(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], subprocess.CompletedProcess[str]]:
    """Folder, words and outcome of a study of four trials on two workers."""
    folder = tmp_path_factory.mktemp("finished")
    words = [*place(folder), "--trials", "4", "--workers", "2", "--confirm", "2"]
    outcome = command(searching(words))
    assert outcome.returncode == 0, outcome.stderr + outcome.stdout
    return folder, words, outcome


Finished = tuple[Path, list[str], subprocess.CompletedProcess[str]]


def test_a_study_says_what_came_of_it(finished: Finished) -> None:
    _, _, outcome = finished
    said = outcome.stdout
    assert "Traceback" not in outcome.stderr + said
    for number in range(4):
        assert any(line.startswith(f"trial {number:3}") for line in said.splitlines()), said
    for wanted in ("Study some: 4 complete", "best:", "best.yaml", "2 new fit seeds"):
        assert wanted in said


def test_a_study_is_one_run_with_its_trials_beneath(finished: Finished) -> None:
    folder, _, _ = finished
    parent, children = family(folder)
    assert (parent.info.run_name, parent.info.status) == ("study some", "FINISHED")
    trials = [run for run in children if "runner.trial" in run.data.tags]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sorted(int(run.data.tags["runner.trial"]) for run in trials) == [0, 1, 2, 3]
    confirming = sorted(run.info.run_name for run in children if run not in trials)
    assert confirming == [f"confirm {side}, seed {seed}" for side in sides(folder) for seed in (1, 2)]
    assert {run.data.tags["runner.study"] for run in (parent, *children)} == {"some"}


def test_a_trials_run_holds_what_the_study_does(finished: Finished) -> None:
    folder, words, _ = finished
    client = client_of(folder)
    asked, rest = options.parse(words)
    baseline = flatten(as_tree(parser.parse(rest)[0]))
    trials = trials_of(folder)
    _, children = family(folder)
    runs = {int(run.data.tags["runner.trial"]): run for run in children if "runner.trial" in run.data.tags}
    assert {tuple(sorted(run.data.metrics)) for run in runs.values()} == {tuple(sorted(runs[0].data.metrics))}
    assert runs[0].info.run_name == "trial 0: baseline"
    for trial in trials:
        run = runs[trial.number]
        assert trial.user_attrs["run"] == run.info.run_id
        assert run.data.params == {
            name: str(value) for name, value in {**baseline, **trial.params}.items()
        }, "every setting, searched or not, to the last digit"
        history = client.get_metric_history(run.info.run_id, "val/top1")
        assert [point.step for point in history] == [1, 2]
        assert {point.step: point.value for point in history} == trial.intermediate_values
        assert trial.value == run.data.metrics["objective"] == run.data.metrics["val/best/top1"]
        assert trial.value == max(point.value for point in history)
        assert not [name for name in run.data.metrics if name.startswith("test/")]
        if trial.number:
            assert f"lr={trial.params['optim.lr']:.3g}" in run.info.run_name
            assert f"dropout={trial.params['model.dropout']:.3g}" in run.info.run_name
    assert asked.trials == len(trials) == 4


def test_only_the_best_so_far_keep_checkpoints(finished: Finished) -> None:
    folder, _, _ = finished
    _, children = family(folder)
    trials = [run for run in children if "runner.trial" in run.data.tags]
    held = {int(run.data.tags["runner.trial"]): artifacts(folder, run) for run in trials}
    kept = {number for number, files in held.items() if any("checkpoints/" in each for each in files)}
    marked = {int(run.data.tags["runner.trial"]) for run in trials if "runner.best_when_run" in run.data.tags}
    assert kept == marked
    best = max(trials_of(folder), key=lambda each: (each.value, -each.number))
    tied = {each.number for each in trials_of(folder) if each.value == best.value}
    assert kept & tied, "the best was the best so far when it ended"
    for number in kept:
        assert held[number] >= {
            *("checkpoints/best.safetensors", "checkpoints/frozen.safetensors", "experiment.yaml"),
            *("figures/loss.png", "figures/accuracy.png"),
        }


def test_a_studys_run_holds_its_report(finished: Finished, tmp_path: Path) -> None:
    folder, words, _ = finished
    parent, _ = family(folder)
    files = artifacts(folder, parent)
    assert files >= {"baseline.yaml", "best.yaml", "trials.csv", "confirm.json", "figures/history.png"}
    client = client_of(folder)

    def fetched(name: str) -> Path:
        return Path(client.download_artifacts(parent.info.run_id, name, str(tmp_path)))

    for name in (each for each in files if each.endswith(".png")):
        with Image.open(fetched(name)) as image:
            assert image.width > 300
    trials = trials_of(folder)
    rows = list(csv.DictReader(fetched("trials.csv").read_text().splitlines()))
    assert [float(row["value"]) for row in rows] == [each.value for each in trials]
    told = json.loads(fetched("confirm.json").read_text())
    assert [len(told[side]) for side in ("best", "baseline")] == [2, 2]
    assert parent.data.tags["runner.verdict"] == told["verdict"]
    metrics = parent.data.metrics
    for side in ("best", "baseline"):
        mean = sum(each["test/top1"] for each in told[side]) / 2
        assert metrics[f"confirm/test/top1/{side}"] == pytest.approx(mean)
    assert metrics["confirm/test/top1/difference"] == pytest.approx(
        metrics["confirm/test/top1/best"] - metrics["confirm/test/top1/baseline"]
    )
    baseline = parser.parse(options.parse(words)[1])[0]
    assert parser.read(fetched("baseline.yaml")) == baseline


def test_the_best_experiment_can_be_trained(finished: Finished) -> None:
    folder, words, _ = finished
    best = max(trials_of(folder), key=lambda each: (each.value, -each.number))
    found = flatten(as_tree(parser.read(folder / "mlruns" / "studies" / "some" / "best.yaml")))
    wanted = flatten(as_tree(parser.parse(options.parse(words)[1])[0]))
    assert found == {**wanted, **best.params}


@pytest.mark.slow
def test_a_study_that_is_done_does_nothing_more(finished: Finished) -> None:
    folder, words, _ = finished
    before = {run.info.run_id: run.info.end_time for run in family(folder)[1]}
    outcome = command(searching([*words, "--workers", "1"]))
    assert outcome.returncode == 0, outcome.stderr
    parent, children = family(folder)
    assert {run.info.run_id: run.info.end_time for run in children} == before
    assert parent.info.status == "FINISHED"
    assert "runner.refused" not in parent.data.tags


# A worker from within


@pytest.fixture(scope="module")
def watched(
    place: Place, tmp_path_factory: pytest.TempPathFactory, accelerator: Any
) -> tuple[Path, list[str], list[Prepared]]:
    """Folder of a study whose third trial is pruned; the splits that were read, and what was prepared."""
    from runner.study import worker

    folder = tmp_path_factory.mktemp("watched")
    experiment = parser.parse(options.parse(place(folder))[1])[0]
    space = Space((Dimension("optim.lr", 1e-4, 0.1, log=True),))
    plan = Plan("some", experiment, space, storage.default(folder / "mlruns"), trials=4, sampler="random")
    splits: list[str] = []
    prepared: list[Prepared] = []
    rows, report, prepare = Features.rows, Study.report, worker.prepare

    def watch(self: Features, split: str, view: int) -> Any:
        splits.append(split)
        return rows(self, split, view)

    def judge(self: Study, step: int, value: float) -> bool:
        report(self, step, value)
        return self._trial is not None and self._trial.number == 2

    def remember(*given: Any) -> Prepared:
        prepared.append(prepare(*given))
        return prepared[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(Features, "rows", watch)
        patch.setattr(Study, "report", judge)
        patch.setattr(worker, "prepare", remember)
        records = Records(experiment, accelerator, QUIET)
        study = Study(plan, folder / "mlruns")
        parent = open_parent(study, records)
        done = worker.Worker(plan, study, accelerator, records, parent, QUIET, lambda: False).work()
        close_parent(study, records, parent, "FINISHED")
    assert done == 4
    return folder, splits, prepared


Watched = tuple[Path, list[str], list[Prepared]]


def test_no_trial_sees_the_test_split(watched: Watched) -> None:
    _, splits, prepared = watched
    assert set(splits) == {"train", "val"}
    assert len(prepared) == 4
    for ready in prepared:
        assert not ready.manifest.select("test")
        assert not ready.features.manifest.select("test")
        assert {entry.split for entry in ready.manifest.entries} == {"train", "val"}
        assert {entry.split for entry in ready.manifest.without("test").entries} == {"train", "val"}
        assert len(ready.manifest.select("val")) == 9


def test_a_pruned_trial_says_so(watched: Watched) -> None:
    folder, _, _ = watched
    assert states(folder) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    parent, children = family(folder)
    assert parent.info.status == "FINISHED"
    by_number = {run.data.tags["runner.trial"]: run for run in children}
    pruned = by_number.pop("2")
    assert pruned.info.status == "KILLED"
    trial = trials_of(folder)[2]
    assert pruned.data.tags["runner.reason"] == trial.user_attrs["reason"]
    assert trial.user_attrs["reason"].startswith("pruned at epoch 1, at 0.")
    assert not any("checkpoints" in each for each in artifacts(folder, pruned))
    assert {run.info.status for run in by_number.values()} == {"FINISHED"}


def test_a_report_can_be_written_anew(place: Place, tmp_path: Path, accelerator: Any) -> None:
    """A study that was given more trials has another best one."""
    import dataclasses

    from runner.study.report import finish

    experiment = parser.parse(options.parse(place(tmp_path))[1])[0]
    space = Space((Dimension("optim.lr", 1e-4, 0.1, log=True),))
    one = Plan("some", experiment, space, storage.default(tmp_path / "mlruns"), trials=1, sampler="random")
    records = Records(experiment, accelerator, QUIET)
    for number, plan in enumerate((one, dataclasses.replace(one, trials=2))):
        study = Study(plan, tmp_path / "mlruns")
        parent = open_parent(study, records)
        assert study.ask() is not None
        study.tell("complete", 0.5 + number / 10)
        finish(plan, study, 0, accelerator, records, parent, QUIET)
        close_parent(study, records, parent, "FINISHED")
        run, _ = family(tmp_path)
        assert run.data.metrics["objective"] == 0.5 + number / 10
        assert "runner.refused" not in run.data.tags
        told = {**run.data.params, **run.data.tags}
        assert {told[name] for name in told if "best_trial" in name} == {str(number)}


# Studies that are disturbed


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_one_trial(place: Place, tmp_path: Path) -> None:
    process = begun([*place(tmp_path), *LONG, "--trials", "4", "--workers", "2"], tmp_path)
    while True:  # hold it in mid-trial, and only then kill it
        victim = in_a_trial(process, tmp_path)
        pid = victim.user_attrs["owner"][1]
        assert pid != process.pid
        os.kill(pid, signal.SIGSTOP)
        if trials_of(tmp_path)[victim.number].state == TrialState.RUNNING:
            break
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    status = process.wait(PATIENCE)
    said = (tmp_path / "said.txt").read_text()
    assert status == 0, said
    assert "was killed by SIGKILL" in said
    assert f"trial {victim.number} is lost and tried again once" in said
    assert sorted(states(tmp_path)) == [*["COMPLETE"] * 4, "LOST"]
    trials = trials_of(tmp_path)
    lost = trials[victim.number]
    assert lost.state == TrialState.FAIL
    assert lost.user_attrs["lost"] == "its worker died"
    (again,) = (each for each in trials if each.user_attrs.get("retry") == victim.number)
    assert again.params == lost.params
    parent, children = family(tmp_path)
    assert parent.info.status == "FINISHED"
    by_trial = {int(run.data.tags["runner.trial"]): run.info.status for run in children}
    assert by_trial.pop(victim.number) == "KILLED"
    assert set(by_trial.values()) == {"FINISHED"}
    assert list((tmp_path / "mlruns" / "journals").iterdir()) == []


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on(place: Place, tmp_path: Path) -> None:
    """One Ctrl-C, then SIGTERM, then nothing."""
    words = [*place(tmp_path), *LONG, "--trials", "6", "--workers", "2"]
    process = begun(words, tmp_path)
    running = in_a_trial(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130, (tmp_path / "said.txt").read_text()
    said = (tmp_path / "said.txt").read_text()
    assert "the same command goes on with it" in said
    assert "Traceback" not in said
    after = states(tmp_path)
    assert set(after) <= {"COMPLETE", "WAITING"}, "running trials came to their ends"
    assert after[running.number] == "COMPLETE"
    assert after.count("COMPLETE") < 6
    parent, children = family(tmp_path)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children} == {"FINISHED"}

    process = begun(words, tmp_path)
    running = in_a_trial(process, tmp_path, behind=running.number)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM, (tmp_path / "said.txt").read_text()
    assert "RUNNING" not in states(tmp_path)
    lost = trials_of(tmp_path)[running.number]
    assert "SIGTERM" in lost.user_attrs.get("lost", ""), "it did not wait for the trial"
    parent, children = family(tmp_path)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children} == {"FINISHED", "KILLED"}
    done = states(tmp_path).count("COMPLETE")

    outcome = command(searching(words))
    assert outcome.returncode == 0, outcome.stderr
    assert f"{done} complete" in outcome.stdout
    assert states(tmp_path).count("COMPLETE") == 6
    assert set(states(tmp_path)) == {"COMPLETE", "LOST"}
    complete = [each for each in trials_of(tmp_path) if each.state == TrialState.COMPLETE]
    assert lost.params in [each.params for each in complete]
    parent, children = family(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in {run.info.status for run in children}
    assert list((tmp_path / "mlruns" / "journals").iterdir()) == []


@pytest.mark.slow
def test_two_commands_share_a_study(place: Place, tmp_path: Path) -> None:
    words = [*place(tmp_path), "--trials", "6", "--confirm", "1"]
    both = [begun(words, tmp_path) for _ in range(2)]
    statuses = [process.wait(PATIENCE) for process in both]
    said = (tmp_path / "said.txt").read_text()
    assert statuses == [0, 0], said
    assert states(tmp_path) == ["COMPLETE"] * 6
    trials = trials_of(tmp_path)
    assert [each.number for each in trials if "baseline" in each.user_attrs] == [0]
    parent, children = family(tmp_path)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children} == {"FINISHED"}
    numbers = [run.data.tags["runner.trial"] for run in children if "runner.trial" in run.data.tags]
    assert sorted(numbers) == [str(number) for number in range(6)]
    assert len(children) == 6 + len(sides(tmp_path)), "the report was written once"
    assert "best.yaml" in artifacts(tmp_path, parent)


# What is refused


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refused(words)`: the sentence with which `runner search` refuses them; no worker may be started."""

    def spawn(*_: object, **__: object) -> None:
        pytest.fail("a worker was started")

    monkeypatch.setattr("runner.study.coordinator.Crew._spawn", spawn)

    def run(words: list[str]) -> str:
        capfd.readouterr()
        status = main.main(["search", *words])
        captured = capfd.readouterr()
        assert status == 2, captured.err
        sentence = one_sentence(captured.err)
        assert captured.err == f"runner: {sentence}\n"
        return sentence

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--study", ""], "--study takes a name"),
        (["--study", "a/b"], "without a slash"),
        (["--space", "around-basline"], "did you mean 'around-baseline'"),
        (["--space", "/no/such.yaml"], "/no/such.yaml"),
        (["--trials", "0"], "--trials"),
        (["--trials", "many"], "'many'"),
        (["--trials", "1.5"], "'1.5'"),
        (["--workers", "0"], "--workers"),
        (["--workers", "-1"], "--workers"),
        (["--fits", "0"], "--fits"),
        (["--confirm", "-1"], "--confirm"),
        (["--objective", "accuracy"], "accuracy"),
        (["--sampler", "nsga"], "nsga"),
        (["--pruner", "some"], "some"),
        (["--optim.lrr", "1"], "did you mean 'optim.lr'"),
        (["--optim.lr", "5"], "the baseline's optim.lr is 5"),
        (["--train.epochs", "none"], "train.epochs"),
        (["--repeat", "2"], "--repeat"),
        (["--dry-run"], "--dry-run"),
        (["--data.root", "/no/such/place"], "/no/such/place"),
        (["--storage", "nosuch://host/db"], "nosuch"),
        (["--sampler-seed", "x"], "'x'"),
        (["--trails", "3"], "trails"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_bad_words_are_refused(
    refused: Callable[..., str], place: Place, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in refused([*place(tmp_path), *words])


def test_a_study_needs_a_name(refused: Callable[..., str]) -> None:
    assert "--study" in refused([])


def test_more_workers_than_gpus_are_refused_before_anything_is_made(
    refused: Callable[..., str], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.study.coordinator.gpu_count", lambda: 1)
    assert "there are 1 GPU" in refused([*place(tmp_path), "--workers", "2"]).replace("is 1", "are 1")
    assert not (tmp_path / "mlruns" / storage.JOURNAL).exists()


def test_workers_are_not_for_a_launch(place: Place, tmp_path: Path) -> None:
    words = [*place(tmp_path), "--workers", "2"]
    outcome = command([sys.executable, str(ROOT / "runner" / "search.py"), *words])
    assert outcome.returncode == 2
    assert "--workers is for ./launch.sh search" in one_sentence(outcome.stderr)
    assert list((tmp_path / "mlruns").iterdir()) == [tmp_path / "mlruns" / "mlflow.db"]


@pytest.mark.slow
def test_one_process_without_workers_does_a_study(place: Place, tmp_path: Path) -> None:
    words = [*place(tmp_path), "--trials", "2", "--confirm", "0"]
    outcome = command([sys.executable, str(ROOT / "runner" / "search.py"), *words])
    assert outcome.returncode == 0, outcome.stderr
    assert states(tmp_path) == ["COMPLETE"] * 2
    parent, children = family(tmp_path)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert {"best.yaml", "trials.csv"} <= artifacts(tmp_path, parent)
    assert "confirm.json" not in artifacts(tmp_path, parent)
