"""Runs on several hosts: features are computed once where the hosts share a cache, and a dead host holds nobody up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cached_features import cached_keys
from commands import COMMAND_TIMEOUT, ROOT, client_of, one_sentence, runs_of, user_environment
from fuse_mounts import clients_of
from hosts import network_of_hosts, unlabelled
from pictures import small_experiment
from stores import copy_store, wait_for

from benchmarks.support.host_launches import ranks
from benchmarks.support.hosts import Host

IMAGES = 2 * 18 + 9 + 9
"""Images and views of the small experiment."""
STAGES = 2
LEASE = 6.0
PROGRAM = """
import os, sys, time
from pathlib import Path
from runner import train
from runner.features import claims, shard_store, stages
from runner.features.extractor import FeatureExtractor
from runner.utils.exit_status import run_script

claims.LEASE, claims.RENEWAL = float(os.environ["LEASE"]), 1.0
stages.BATCHES_PER_PART, shard_store.SHARD_SECONDS = 1, 0.0
folder, runs = Path(os.environ["MEETING"]), int(os.environ["RUNS"])
run_stage, calls = FeatureExtractor.run_stage, 0

def watched(self, values, stage):
    global calls
    calls += 1
    (folder / f"{os.environ['NAME']} has started").touch()
    while len([*folder.glob("* has started")]) < runs:  # until all of them compute
        time.sleep(0.05)
    if calls == int(os.environ["HANGS_AT"]):
        (folder / "hangs").touch()
        time.sleep(3600)
    return run_stage(self, values, stage)

FeatureExtractor.run_stage = watched
sys.exit(run_script(train.main))
"""
"""Trains as runner/train.py does, in small parts. It may hang at a forward pass, while it still renews its claims."""


@contextmanager
def hosts_with_caches(folder: Path, shared: bool) -> Iterator[tuple[list[Host], list[Path]]]:
    """Two hosts, and the folder of each one's cache: one folder on a file system without locks, or two."""
    with ExitStack() as stack:
        if shared:
            caches = stack.enter_context(clients_of(folder / "cache", 2))
        else:
            caches = [folder / "cache 1", folder / "cache 2"]
        yield stack.enter_context(network_of_hosts(2, folder / "hosts")), caches


class Runs:
    """Starts runs of the small experiment on hosts."""

    def __init__(self, folder: Path, images: Path, template: Path) -> None:
        self.folder, self.images, self.template = folder, images, template
        self.meeting = folder / "meeting"
        self.meeting.mkdir(parents=True)

    def start(
        self, host: Host, cache: Path, words: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a run with a store of its own; its output goes to a file."""
        place = self.folder / host.name
        root = copy_store(self.template, place / "mlruns")
        settings = [*small_experiment(self.images, cache, root), "--features.compile", "false"]
        settings += ["--features.batch_size", "2", "--train.epochs", "2", *words]
        environment = user_environment(
            MLFLOW_DISABLE_TELEMETRY="true",
            PYTHONPATH=str(ROOT),
            MEETING=str(self.meeting),
            NAME=host.name,
            **{"RUNS": "1", "HANGS_AT": "0", "LEASE": "30", **(env or {})},
        )
        with (place / "output").open("w") as output, (place / "errors").open("w") as errors:
            command = [sys.executable, "-c", PROGRAM, *settings]
            return host.start(command, environment, stdout=output, stderr=errors)

    def text(self, host: Host, name: str = "output") -> str:
        return (self.folder / host.name / name).read_text()

    def errors(self, hosts: Sequence[Host]) -> str:
        return "\n".join(f"{host.name}: {self.text(host, 'errors')[-2000:]}" for host in hosts)

    def finish(self, host: Host, process: subprocess.Popen[str]) -> None:
        assert process.wait(COMMAND_TIMEOUT) == 0, self.text(host, "errors")[-3000:]

    def metrics(self, host: Host) -> dict[str, float]:
        (run,) = runs_of(client_of(self.folder / host.name))
        return dict(run.data.metrics)


@pytest.fixture
def runs(tmp_path: Path, images: Path, mlflow_template: Path) -> Runs:
    return Runs(tmp_path / "runs", images, mlflow_template)


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(("train/", "val/", "test/"))}


def check_computed_once(cache: Path) -> None:
    keys = cached_keys(cache)
    assert len(keys) == len(set(keys)) == STAGES * IMAGES


@pytest.mark.slow
def test_two_runs_on_two_hosts_divide_the_work(runs: Runs, tmp_path: Path) -> None:
    with hosts_with_caches(tmp_path, shared=True) as (hosts, caches):
        words, env = ("--features.shared", "true"), {"RUNS": "2"}
        started = [runs.start(host, cache, words, env) for host, cache in zip(hosts, caches, strict=True)]
        for host, process in zip(hosts, started, strict=True):
            runs.finish(host, process)
    first, second = (runs.metrics(host) for host in hosts)
    misses = [each["system/features/misses"] for each in (first, second)]
    assert min(misses) > 0
    assert sum(misses) == IMAGES
    check_computed_once(tmp_path / "cache")
    assert results(first) == results(second)
    assert not [*(tmp_path / "cache").rglob("claims/*")]


def claims(cache: Path) -> dict[Path, str]:
    """The contents of all claims."""
    found = {}
    for path in cache.rglob("claims/[0-9]*"):
        with suppress(FileNotFoundError):
            found[path] = path.read_text()
    return found


@pytest.mark.long
def test_a_host_that_dies_delays_the_other_by_the_lease(runs: Runs, tmp_path: Path) -> None:
    with hosts_with_caches(tmp_path, shared=True) as (hosts, caches):
        words = ("--features.shared", "true")
        first, second = hosts
        runs.start(first, caches[0], words, {"HANGS_AT": "4", "LEASE": str(LEASE)})
        wait_for(lambda: (runs.meeting / "hangs").exists())
        process = runs.start(second, caches[1], words, {"LEASE": str(LEASE)})
        wait_for(lambda: "waiting for another run on host1, which computes" in runs.text(second))
        time.sleep(LEASE)  # as long as the first host lives, the second one waits
        assert [*(tmp_path / "cache").rglob("claims/[0-9]*")]
        assert process.poll() is None
        assert "epoch" not in runs.text(second)
        of_first = claims(tmp_path / "cache")
        killed = time.monotonic()
        first.kill()
        wait_for(lambda: not of_first.items() & claims(tmp_path / "cache").items())
        assert time.monotonic() - killed < LEASE + 60
        runs.finish(second, process)
    check_computed_once(tmp_path / "cache")


def launch(runs: Runs, hosts: Sequence[Host], caches: Sequence[Path], *words: str) -> list[int]:
    """Train on one process of each host; returns their exit statuses. The first has the run."""
    started = []
    for rank, (host, cache) in enumerate(zip(hosts, caches, strict=True)):
        started.append(runs.start(host, cache, words, ranks(rank, len(hosts), hosts[0].address)))
    return [process.wait(COMMAND_TIMEOUT) for process in started]


@pytest.mark.long
def test_a_launch_on_two_hosts_with_one_cache(runs: Runs, tmp_path: Path) -> None:
    with hosts_with_caches(tmp_path, shared=True) as (hosts, caches):
        assert launch(runs, hosts, caches) == [0, 0], runs.errors(hosts)
    assert runs.metrics(hosts[0])["system/features/misses"] == IMAGES
    check_computed_once(tmp_path / "cache")
    assert not [*(tmp_path / "cache").rglob(".host-*")]


@pytest.mark.long
def test_a_launch_on_two_hosts_with_a_cache_each(runs: Runs, tmp_path: Path) -> None:
    with hosts_with_caches(tmp_path, shared=False) as (hosts, caches):
        assert launch(runs, hosts, caches) == [0, 0], runs.errors(hosts)
        assert runs.metrics(hosts[0])["system/features/misses"] == IMAGES
        for cache in caches:
            check_computed_once(cache)


@pytest.mark.long
def test_a_cache_that_another_host_cannot_see_is_refused(runs: Runs, tmp_path: Path) -> None:
    with hosts_with_caches(tmp_path, shared=False) as (hosts, caches):
        assert launch(runs, hosts, caches, "--features.shared", "true") == [2, 2]
        sentence = one_sentence(unlabelled(runs.text(hosts[0], "errors")))
        assert sentence.startswith("features.shared is true, but host2 cannot see what the first host writes")
    assert not [*tmp_path.glob("cache */features/*/*.safetensors")]
