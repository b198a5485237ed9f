"""`runner reproduce`: train a run again from what it logged, and say whether the figures are the same.

./launch.sh reproduce RUN [--json] [--data.root PATH] [--model.weights FILE] [--cache FOLDER] [-n PROCESSES]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli.launcher import launch, take_processes
from runner.config.parser import parse as parse_settings
from runner.config.schema import Experiment
from runner.config.validation import check_weights
from runner.data.manifest import Manifest, build, read_csv
from runner.evaluation.reproduction import (
    Change,
    Verdict,
    changes,
    compare,
    figures,
    is_environment,
    processes_of,
)
from runner.tracking import run_lookup
from runner.tracking.mlflow_server import server
from runner.tracking.run_lookup import Found
from runner.tracking.sessions import REPRODUCES
from runner.utils.console import Terminal
from runner.utils.errors import Parser, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN = 20
"""Rows of the table of differences; JSON holds them all."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = Parser(
        prog="runner reproduce",
        description="Train a finished run again from its logged experiment, on the same images, as a new run, and"
        " compare every figure. Exit status 0: the same; 1: they differ; 2: it cannot be reproduced.",
    )
    parser.add_argument("run", metavar="RUN", help="id, beginning of an id, name, or latest")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, and nothing else"
    )
    parser.add_argument("--data.root", metavar="PATH", help="where the images are now, if they have moved")
    parser.add_argument("--model.weights", metavar="FILE", help="the same of the weights")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="another cache: an empty one computes all features again"
    )
    parser.add_argument(
        "-n", "--processes", metavar="PROCESSES", help="default: as many as the run was trained on"
    )
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    processes, rest = take_processes(argv)
    asked = parser.parse_args(rest)
    asked.processes = processes
    return asked


def main(argv: Sequence[str]) -> int:
    """Reproduce as the command line says: 0 if the figures are the same, 1 if not, else the training's status.

    Raises `UserError` for what its user can mend.
    """
    asked = parse(argv)
    store = server(asked.tracking)
    store.check_exists()
    client = store.connect()
    terminal = Terminal(errors=asked.json)
    run = run_lookup.find(client, asked.run)
    check_run(client, run)
    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        folder = Path(name)
        then = _environment(client, run, folder)
        words = _words(client, run, asked, folder)
        experiment, _ = parse_settings(words)
        check_weights(experiment.model)
        check_images(client, run, experiment, folder, terminal)
        terminal.line(f"Reproducing run {_called(run)} of {experiment.name}", style="bold")
        said = changes(then, _present(then))
        _say_changes(said, terminal)
        before = set(_reproductions(client, run))
        with _reproducing(run), _output_on_errors() if asked.json else nullcontext():
            status = launch("train.py", words, asked.processes or processes_of(then))
        if status:
            return status
        new = _trained(client, run, before)
        _check_same_images(client, run, new)
        found = compare(figures(client, run.run_id), figures(client, new.run_id))
        changed = changes(then, _environment(client, new, folder / "new"))
        _say_changes([each for each in changed if each not in said], terminal)
        if not found.identical and experiment.model.weights is not None:
            _say_weights(client, run, new, folder, terminal)
    if asked.json:
        print(json.dumps(_report(run, new, found, changed)))
    else:
        _say(client, run, new, found, terminal)
    return 0 if found.same else 1


def check_run(client: MlflowClient, run: Found) -> None:
    """See that a run was trained to its end, and by itself. Raises `UserError`."""
    data = client.get_run(run.run_id).data
    children = client.search_runs(
        _experiments(client), f"tags.`mlflow.parentRunId` = '{run.run_id}'", max_results=1000
    )
    if children or ("runner.study" in data.tags and "mlflow.parentRunId" not in data.tags):
        able = [each.info for each in children if "runner.trial" not in each.data.tags]
        named = ", ".join(f"{info.run_id[:8]} ({info.run_name})" for info in able[:5])
        more = f" or {len(able) - 5} more" if len(able) > 5 else ""
        advice = f"reproduce one of them: {named}{more}" if able else "its trials cannot be reproduced singly"
        raise UserError(
            f"Run {_called(run)} is the parent of {len(children)} run{'s' * (len(children) != 1)} and was not"
            f" trained itself; {advice}."
        )
    if "runner.trial" in data.tags:
        raise UserError(
            f"Run {_called(run)} is a trial of a study, which holds no test images and may have been given up early;"
            " train its settings with runner train instead."
        )
    if run.status != "FINISHED":
        what = "is still running" if run.status == "RUNNING" else f"did not finish (it is {run.status})"
        raise UserError(
            f"Run {_called(run)} {what}, so that it has no test scores to compare; choose a finished run."
        )
    if "test/best/loss" not in data.metrics:
        raise UserError(f"Run {_called(run)} has no test scores to compare; choose a run of runner train.")


def check_images(
    client: MlflowClient, run: Found, experiment: Experiment, folder: Path, terminal: Terminal
) -> None:
    """See that the experiment's images and split are those that the run was trained on.

    Raises `UserError` naming an image that is gone or has changed, or counting what is different.
    """
    from runner.cli.evaluate import restore_manifest

    path = run_lookup.artifact(client, run, "manifest.csv", folder)
    table = path.read_bytes().decode("utf-8", "surrogateescape")
    tag = client.get_run(run.run_id).data.tags.get("runner.manifest")
    if tag != read_csv(table, Path()).digest:
        raise UserError(f"The manifest.csv of run {_called(run)} is not the one that it was trained with.")
    kept = restore_manifest(experiment, table, terminal)
    present = build(experiment, terminal)
    if present.digest != kept.digest:
        raise UserError(
            f"The images in {present.root} are not those of run {_called(run)}: {difference(kept, present)};"
            " make the folder what it was, or say with --data.root where the images are."
        )


def difference(then: Manifest, now: Manifest) -> str:
    """How many images two manifests do not share, and how many of the shared are split otherwise."""
    old, new = ({each.path: each.split for each in manifest.entries} for manifest in (then, now))
    added, gone = len(new.keys() - old.keys()), len(old.keys() - new.keys())
    moved = sum(old[path] != new[path] for path in old.keys() & new.keys())
    return f"{added:,} added, {gone:,} left out, {moved:,} moved to another split"


def _words(client: MlflowClient, run: Found, asked: argparse.Namespace, folder: Path) -> list[str]:
    """The command line that trains the run's experiment again; its file stays in `folder`."""
    experiment = client.get_experiment(client.get_run(run.run_id).info.experiment_id).name
    moved = {
        name: value
        for name in ("data.root", "model.weights", "cache")
        if (value := getattr(asked, name)) is not None
    }
    told = {
        "config": run_lookup.artifact(client, run, "experiment.yaml", folder),
        "name": experiment,  # it may have another name by now
        "tracking.root": asked.tracking,
        "tracking.model": "false",  # the original's model is registered, and pictures alter no figure
        "tracking.gallery": "0",
    }
    return [f"--{name}={value}" for name, value in (told | moved).items()]


def _environment(client: MlflowClient, run: Found, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    try:
        told = json.loads(
            run_lookup.artifact(client, run, "environment.json", folder).read_text(encoding="utf-8")
        )
    except (ValueError, RecursionError):
        told = None
    if not is_environment(told):
        raise UserError(f"The environment.json of run {_called(run)} is not one that the runner wrote.")
    return told


def _present(then: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of this environment before anything is launched."""
    packages = {}
    for name in then.get("packages", {}):
        try:
            packages[name] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # no name that a package could have
            packages[name] = "not installed"
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}


@contextmanager
def _reproducing(run: Found) -> Iterator[None]:
    """Within the block the runs of a launch bear the name and the tag of a reproduction."""
    os.environ[REPRODUCES] = f"{run.run_id} {run.name or run.run_id[:8]}"
    try:
        yield
    finally:
        del os.environ[REPRODUCES]


@contextmanager
def _output_on_errors() -> Iterator[None]:
    """Within the block launched processes write to standard error what they would to standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _experiments(client: MlflowClient) -> list[str]:
    return [each.experiment_id for each in client.search_experiments()]


def _reproductions(client: MlflowClient, run: Found) -> dict[str, Found]:
    """The runs that reproduce a run, the newest first."""
    tagged = client.search_runs(
        _experiments(client),
        f"tags.`runner.reproduces` = '{run.run_id}'",
        order_by=["attributes.start_time DESC"],
    )
    return {
        each.info.run_id: Found(each.info.run_id, each.info.run_name or "", each.info.status)
        for each in tagged
    }


def _trained(client: MlflowClient, run: Found, before: set[str]) -> Found:
    """The run that was trained just now. Raises `UserError` where its records have not come yet."""
    for run_id, found in _reproductions(client, run).items():
        if run_id not in before and found.status == "FINISHED":
            return found
    raise UserError(
        f"Run {_called(run)} was trained again, but the records of that have not all reached MLflow; they do when the"
        " next run starts, and runner compare can compare them then."
    )


def _check_same_images(client: MlflowClient, run: Found, new: Found) -> None:
    tags = [client.get_run(each.run_id).data.tags.get("runner.manifest") for each in (run, new)]
    if tags[0] != tags[1]:
        raise UserError(
            f"The images have changed while {_called(new)} was trained, so that it does not reproduce"
            f" {_called(run)}; start again."
        )


def _say_weights(client: MlflowClient, run: Found, new: Found, folder: Path, terminal: Terminal) -> None:
    """Say so where the layers that do not train are not the original's: their file is another one."""
    from safetensors import safe_open

    digests = []
    for each in (run, new):
        place = folder / each.run_id
        place.mkdir()
        try:
            with safe_open(
                run_lookup.artifact(client, each, "checkpoints/best.safetensors", place), "pt"
            ) as file:
                digests.append(json.loads(file.metadata()["about"])["frozen"])
        except Exception:  # a checkpoint that was removed or damaged tells nothing
            return
    if digests[0] != digests[1]:
        terminal.warn("the frozen weights are not the run's: give its file with --model.weights")


def _called(run: Found) -> str:
    return f"{run.run_id[:8]} ({run.name})"


def _say_changes(changed: Sequence[Change], terminal: Terminal) -> None:
    for each in changed:
        terminal.warn(f"{each.what} was {each.then}, is {each.now}")


def _say(client: MlflowClient, run: Found, new: Found, found: Verdict, terminal: Terminal) -> None:
    metrics = client.get_run(new.run_id).data.metrics
    if metrics.get("features/hits") and not metrics.get("features/misses"):
        terminal.warn("all features came from the cache; --cache with an empty folder computes them again")
    if not found.same:
        shown = found.beyond[:SHOWN]
        rest = f", the first {SHOWN} of {len(found.beyond):,}" if len(found.beyond) > SHOWN else ""
        header = ("metric", "epoch", "original", "reproduced", "difference")
        rows = [
            (
                each.metric,
                str(each.step or "–"),
                _number(each.original),
                _number(each.reproduced),
                "–" if each.relative is None else f"{each.reproduced - each.original:+.2e}",  # type: ignore[operator]
            )
            for each in shown
        ]
        terminal.table(f"What differs{rest}", header, rows)
    terminal.line(f"Run {new.run_id} reproduces {_called(run)}:")
    terminal.line(found.sentence() + ".", style="bold")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.9g}"


def _report(run: Found, new: Found, found: Verdict, changed: Sequence[Change]) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "reproduction": new.run_id,
        "identical": found.identical,
        "same": found.same,
        "figures": found.figures,
        "largest_relative_difference": found.largest,
        "differences": [{**asdict(each), "relative": each.relative} for each in found.differences],
        "versions": [asdict(each) for each in changed],
    }
