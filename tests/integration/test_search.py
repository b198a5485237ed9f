"""`runner search`: a whole study and what it records, by one process and, as a user calls it, by two workers."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, client_of, command, one_sentence, runner
from helpers import Place
from PIL import Image
from searches import (
    artifacts_of,
    baseline_of,
    best_of,
    confirmed_sides,
    runs_of_study,
    states,
    study_words,
    trial_runs,
    trials_of,
)

from runner import search
from runner.config import parser
from runner.config.effective import decisive_settings
from runner.config.tree import as_tree, flatten, override
from runner.features.eviction import feature_root, list_stores
from runner.study import storage

pytestmark = pytest.mark.usefixtures("plain_environment")


# A whole study


@dataclasses.dataclass(frozen=True)
class Finished:
    """A study that has finished: its folder, the words of its command, and what that printed."""

    folder: Path
    words: list[str]
    output: str


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Four trials in this process, and two seeds to compare best and baseline."""
    folder = tmp_path_factory.mktemp("finished")
    words = [*study_words(place(folder), folder / "space.yaml"), "--trials", "4", "--confirm", "2"]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        assert search.main(words) == 0
    return Finished(folder, words, output.getvalue())


def test_a_study_prints_its_result(finished: Finished) -> None:
    for part in ("Study some: 4 complete", "best:"):
        assert part in finished.output
    is_better = bool(confirmed_sides(finished.folder))
    for part in ("best.yaml", "2 new training seeds", "CI"):
        assert (part in finished.output) == is_better


def test_a_study_is_a_parent_run_with_its_trials_as_children(finished: Finished) -> None:
    parent, children = runs_of_study(finished.folder)
    assert (parent.info.run_name, parent.info.status) == ("study some", "FINISHED")
    assert {run.info.status for run in children} == {"FINISHED"}
    trials = trial_runs(finished.folder)
    assert sorted(trials) == [0, 1, 2, 3]
    others = sorted(run.info.run_name for run in children if "runner.trial" not in run.data.tags)
    sides = confirmed_sides(finished.folder)
    assert others == [f"confirm {side}, seed {seed}" for side in sides for seed in (1, 2)]
    assert {run.data.tags["runner.study"] for run in (parent, *children)} == {"some"}
    assert len({run.data.tags["runner.manifest"] for run in (parent, *children)}) == 1


def test_a_trials_run_agrees_with_the_study(finished: Finished) -> None:
    client, baseline = client_of(finished.folder), baseline_of(finished.words)
    runs, trials = trial_runs(finished.folder), trials_of(finished.folder)
    assert len(trials) == 4
    assert {tuple(sorted(run.data.metrics)) for run in runs.values()} == {tuple(sorted(runs[0].data.metrics))}
    assert runs[0].info.run_name == "trial 0: baseline"
    for trial in trials:
        run = runs[trial.number]
        assert trial.user_attrs["run"] == run.info.run_id
        settings = decisive_settings(override(baseline, trial.params))
        assert run.data.params == {name: str(value) for name, value in settings.items()}, "to the last digit"
        history = client.get_metric_history(run.info.run_id, "val/top1")
        assert {point.step: point.value for point in history} == trial.intermediate_values
        assert [point.step for point in history] == [1, 2]
        assert trial.value == run.data.metrics["objective"] == run.data.metrics["val/best/top1"]
        assert trial.value == max(point.value for point in history)
        assert not [name for name in run.data.metrics if name.startswith("test/")]
        if trial.number:
            assert f"lr={trial.params['optim.lr']:.3g}" in run.info.run_name
            assert f"dropout={trial.params['model.dropout']:.3g}" in run.info.run_name


def test_only_trials_that_were_the_best_so_far_have_checkpoints(finished: Finished) -> None:
    files = {
        number: artifacts_of(finished.folder, run) for number, run in trial_runs(finished.folder).items()
    }
    with_checkpoint = {
        number for number, paths in files.items() if any("checkpoints/" in path for path in paths)
    }
    tagged = {
        number
        for number, run in trial_runs(finished.folder).items()
        if "runner.best_when_run" in run.data.tags
    }
    assert with_checkpoint == tagged
    value = best_of(finished.folder).value
    assert with_checkpoint & {trial.number for trial in trials_of(finished.folder) if trial.value == value}
    for number in with_checkpoint:
        assert files[number] >= {
            *("checkpoints/best.safetensors", "checkpoints/frozen.safetensors", "experiment.yaml"),
            *("figures/loss.png", "figures/accuracy.png"),
        }


def test_a_studys_run_has_the_report(finished: Finished, tmp_path: Path) -> None:
    parent, _ = runs_of_study(finished.folder)
    files = artifacts_of(finished.folder, parent)
    assert files >= {"baseline.yaml", "best.yaml", "trials.csv", "figures/history.png"}
    client = client_of(finished.folder)

    def fetched(name: str) -> Path:
        return Path(client.download_artifacts(parent.info.run_id, name, str(tmp_path)))

    for name in (each for each in files if each.endswith(".png")):
        with Image.open(fetched(name)) as image:
            assert image.width > 300
    rows = list(csv.DictReader(fetched("trials.csv").read_text().splitlines()))
    assert [float(row["value"]) for row in rows] == [trial.value for trial in trials_of(finished.folder)]
    assert ("confirm.json" in files) == bool(confirmed_sides(finished.folder))
    if "confirm.json" not in files:
        return
    stored = json.loads(fetched("confirm.json").read_text())
    assert [len(stored[side]) for side in ("best", "baseline")] == [2, 2]
    assert parent.data.tags["runner.verdict"] == stored["verdict"]
    metrics = parent.data.metrics
    for side in ("best", "baseline"):
        mean = sum(results["test/top1"] for results in stored[side]) / 2
        assert metrics[f"confirm/test/top1/{side}"] == pytest.approx(mean)
    assert metrics["confirm/test/top1/difference"] == pytest.approx(
        metrics["confirm/test/top1/best"] - metrics["confirm/test/top1/baseline"]
    )
    assert parser.read(fetched("baseline.yaml")) == baseline_of(finished.words)


def test_the_best_experiment_can_be_trained(finished: Finished) -> None:
    best = parser.read(finished.folder / "mlruns" / "studies" / "some" / "best.yaml")
    baseline = flatten(as_tree(baseline_of(finished.words)))
    assert flatten(as_tree(best)) == {**baseline, **best_of(finished.folder).params}


def test_a_finished_study_does_nothing_more(finished: Finished) -> None:
    before = {run.info.run_id: run.info.end_time for run in runs_of_study(finished.folder)[1]}
    assert search.main(finished.words) == 0
    parent, children = runs_of_study(finished.folder)
    assert {run.info.run_id: run.info.end_time for run in children} == before
    assert parent.info.status == "FINISHED"
    assert "runner.refused" not in parent.data.tags


@pytest.mark.slow
def test_two_workers_finish_a_study(place: Place, tmp_path: Path) -> None:
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), "--trials", "4", "--confirm", "2"]
    done = command(runner("search", *words, "--workers", "2"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    for number in range(4):
        assert any(line.startswith(f"trial {number:3}") for line in done.stdout.splitlines())
    for part in ("Study some: 4 complete", "best:"):
        assert part in done.stdout
    for part in ("best.yaml", "2 new training seeds", "CI"):
        assert (part in done.stdout) == bool(confirmed_sides(tmp_path))
    assert states(tmp_path) == ["COMPLETE"] * 4
    parent, children = runs_of_study(tmp_path)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert sorted(trial_runs(tmp_path)) == [0, 1, 2, 3]
    assert len(children) == 4 + 2 * len(confirmed_sides(tmp_path))
    assert ("confirm.json" in artifacts_of(tmp_path, parent)) == bool(confirmed_sides(tmp_path))


# Without a coordinator, as under `accelerate launch`


def search_file(*words: str) -> subprocess.CompletedProcess[str]:
    return command([sys.executable, str(ROOT / "runner" / "search.py"), *words])


def test_workers_need_a_coordinator(place: Place, tmp_path: Path) -> None:
    done = search_file(*study_words(place(tmp_path), tmp_path / "space.yaml"), "--workers", "2")
    assert done.returncode == 2
    assert "--workers is for ./launch.sh search" in one_sentence(done.stderr)
    assert not (tmp_path / "mlruns" / storage.JOURNAL).exists()


@pytest.mark.slow
def test_a_study_of_architectures_has_one_store_of_each_stage_for_all_its_trials(
    place: Place, tmp_path: Path
) -> None:
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), "--trials", "4", "--confirm", "0"]
    (tmp_path / "space.yaml").write_text("model.arch: [vgg11, resnet18]\nmodel.dropout: [0.1, 0.2, 0.3]\n")
    words += ["--sampler", "grid", "--cache", str(tmp_path / "own")]
    subprocess.run(runner("search", *words), cwd=ROOT, check=True, timeout=300, capture_output=True)
    assert {run.data.params["model.arch"] for run in trial_runs(tmp_path).values()} == {"vgg11", "resnet18"}
    stores = list_stores(feature_root(tmp_path / "own"))
    layers = sorted(store.description["layer"] for store in stores)
    assert layers == ["resnet18 flatten", "resnet18 layer4.1", "vgg11 features.20", "vgg11 flatten"]
