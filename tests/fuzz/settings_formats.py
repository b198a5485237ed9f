"""Experiments, search spaces, journals of studies, and the environment of a run."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna
import yaml
from optuna.trial import TrialState

from fuzz import yamls
from fuzz.damage import damaged, mutated_json
from fuzz.target import Target, check
from runner.cli import reproduce
from runner.config import parser
from runner.config.tree import as_tree, as_yaml, flatten, override
from runner.evaluation.reproduction import environment_changes
from runner.study.plan import Plan
from runner.study.space import Dimension, Space, read_space
from runner.study.study import Study
from runner.tracking.run_lookup import RunInfo
from runner.training.original_run import OriginalRun

SHIPPED = (parser.QUICKSTART, parser.EXPERIMENTS / "caltech101-pooled.yaml")


class ExperimentFile(Target):
    """`--config FILE`: an experiment that is accepted can be written and read back equal."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.chdir(folder)  # code in a document would create its file here
        whole = parser.parse(["--config", "caltech101-pooled", "--data.root", "images"])[0]
        self.seeds = [SHIPPED[0].read_bytes(), as_yaml(whole).encode()]
        self.trees = [yaml.safe_load(seed) for seed in self.seeds]

    def make(self, random: Random) -> bytes:
        return yamls.hostile(random, self.seeds, self.trees)

    def read(self, content: bytes) -> None:
        path, again = self.folder / "experiment.yaml", self.folder / "again.yaml"
        path.write_bytes(content)
        try:
            experiment = parser.read(path)
        finally:
            check(not Path(yamls.MARK).exists(), "code in the file was run")
        again.write_text(as_yaml(experiment), encoding="utf-8")
        check(parser.read(again) == experiment, f"does not come back as it was: {as_yaml(experiment)[:600]}")
        numbers = [each for each in flatten(as_tree(experiment)).values() if isinstance(each, float)]
        check(not any(map(math.isnan, numbers)), "a setting is no number")


class SpaceFile(Target):
    """`--space FILE`: every value in the space makes a valid experiment, and the space can be read back equal."""

    SEEDS = (
        b"optim.lr: {low: 1.0e-4, high: 0.1, log: true}\ntrain.batch_size: [32, 64]\n",
        b"optim.name: [adam, sgd]\noptim.momentum: {low: 0.5, high: 0.99, when: {optim.name: sgd}}\n",
        b"# comment\nschedule.reductions: {low: 1, high: 5, step: 2, when: {schedule.kind: [reduce_on_drop]}}\n",
        b"train.label_smoothing: {low: 0.0, high: 0.2, step: 0.1}\naugment.views: {choices: [none, 2, fresh]}\n",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.chdir(folder)
        self.baseline = parser.parse(["--config", "quickstart"])[0]
        self.trees = [yaml.safe_load(seed) for seed in self.SEEDS]

    def make(self, random: Random) -> bytes:
        return yamls.hostile(random, list(self.SEEDS), self.trees)

    def read(self, content: bytes) -> None:
        path, again = self.folder / "space.yaml", self.folder / "again.yaml"
        path.write_bytes(content)
        try:
            found = read_space(path, self.baseline)
        finally:
            check(not Path(yamls.MARK).exists(), "code in the file was run")
        plain = found.as_plain()
        again.write_text(
            json.dumps({name: _as_file(dimension) for name, dimension in plain.items()}, allow_nan=False)
        )
        back = read_space(again, self.baseline, checked=True)
        check(back == found, f"does not come back as it was: {plain}")
        known = flatten(as_tree(self.baseline))
        for each in found.dimensions:
            check(each.setting in known, f"{each.setting} is no setting")
            for value in each.choices or (each.low, *([] if each.step else [each.high])):  # steps may miss it
                check(each.contains(value), f"{each.setting} does not contain its own {value!r}")
                override(self.baseline, {each.setting: value})


def _as_file(dimension: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dimension.items() if name != "whole"}


class Journal(Target):
    """The journal of a study: it is refused, or all its trials can be listed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        baseline = parser.parse(["--config", "quickstart"])[0]
        dimensions = (
            Dimension("optim.lr", 1e-4, 0.1, log=True),
            Dimension("train.batch_size", choices=(16, 32, 64)),
        )
        self.plan = Plan("small", baseline, Space(dimensions), "", trials=6, sampler="random", pruner="none")
        self.seeds = [self._written(folder / f"{number}", number) for number in (0, 1)]

    def _written(self, folder: Path, seed: int) -> bytes:
        """A study of four trials, with fixed times and process ids."""
        folder.mkdir()
        path = folder / "studies.journal"
        study = Study(replace(self.plan, storage=str(path), sampler_seed=seed), folder)
        for number in range(3):
            assert study.ask()
            study.report(0, 0.25 * number)
            study.annotate(run=f"run {number}")
            study.fail("an error") if number == 1 else study.complete(0.5 + number / 10)
        study.ask()
        return b"".join(_without_times(line) for line in path.read_bytes().splitlines())

    def make(self, random: Random) -> bytes:
        content, other = random.sample(self.seeds, 2)
        if random.random() < 0.5:
            return damaged(random, content, other)
        lines = content.splitlines(keepends=True)
        place = random.randrange(len(lines))
        lines[place] = mutated_json(random, json.loads(lines[place])).encode() + b"\n"
        return b"".join(lines)

    def read(self, content: bytes) -> None:
        path = self.folder / "studies.journal"
        path.write_bytes(content)
        study = Study(replace(self.plan, storage=str(path)), self.folder)
        trials = study.trials()
        check([each.number for each in trials] == list(range(len(trials))), "trials are not counted up")
        complete = [each for each in trials if each.state == TrialState.COMPLETE]
        check(all(type(each.value) in (int, float) for each in complete), "a trial's value is no number")
        check(
            study.best_trial is None or study.best_trial in complete,
            "the best trial is none of the complete ones",
        )
        check(
            study.count_trials() <= len(trials) and study.is_finished in (True, False),
            "trials cannot be counted",
        )
        study.requeue_stale_trials()


def _without_times(line: bytes) -> bytes:
    event = json.loads(line)
    for name in ("datetime_start", "datetime_complete"):
        if event.get(name):
            event[name] = "2026-01-02T03:04:05.000000"
    if "worker_id" in event:
        event["worker_id"] = "worker"
    if "owner" in event.get("user_attr", {}):
        event["user_attr"]["owner"] = [
            "elsewhere" if event.get("trial_id") != 3 else os.uname().nodename,
            0,
            0.0,
        ]
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


class Environment(Target):
    """environment.json of a run that is reproduced."""

    CONTENT: ClassVar[dict[str, Any]] = {
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.15.0", "numpy": "2.4.6", "nothing-of-this-name": "1"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "device": "cpu",
        "processes": 2,
        "threads": 2,
        "precision": "no",
        "command": ["runner", "train"],
    }

    def make(self, random: Random) -> bytes:
        content = json.dumps(self.CONTENT, indent=1).encode()
        if random.random() < 0.4:
            return damaged(random, content, content)
        return mutated_json(random, self.CONTENT).encode("utf-8", "surrogatepass")

    def read(self, content: bytes) -> None:
        path = self.folder / "environment.json"
        path.write_bytes(content)
        client: Any = SimpleNamespace(download_artifacts=lambda *_: str(path))
        original = OriginalRun(client, RunInfo("0123456789", "small", "FINISHED"), self.folder)
        then = original.environment()
        present = {
            **reproduce._current_environment(then),
            "git_commit": "f" * 40,
            "git_dirty": True,
            "processes": 2,
        }
        for each in environment_changes(then, present):
            check(
                all(isinstance(word, str) for word in (each.what, each.then, each.now)), "a change is no text"
            )
        count = int(then.get("processes", 1))
        check(type(count) is int and 1 <= count <= 1024, f"{count!r} processes")
