"""The processes that decode images: nothing waits for ever, and they end with their parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stores import wait_for
from torch import Tensor

from runner.config.augment_schema import AugmentConfig
from runner.data import workers
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.data.transforms import ViewTransform
from runner.data.workers import load_in_processes
from runner.utils.errors import UserError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Processes are started in each test, and ended after it."""
    workers._stop(2)
    yield
    workers._stop(2)


def pid() -> Tensor:
    """The process, as a batch."""
    time.sleep(0.05)
    return torch.tensor([os.getpid()])


def die() -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return pid()


def sleep() -> Tensor:
    time.sleep(60)
    return pid()


def pids(count: int = 8) -> set[int]:
    """The processes that load `count` batches."""
    return {int(batch) for batch in load_in_processes([pid] * count, 2, 8, lambda batch: batch)}


def exists(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
        return False


def test_the_processes_serve_all_calls() -> None:
    first = pids()
    assert len(first) == 2
    assert os.getpid() not in first
    abandoned = load_in_processes([pid] * 20, 2, 8, lambda batch: batch)
    next(abandoned)
    two = zip(*(load_in_processes([pid] * 3, 2, 8, lambda batch: batch) for _ in range(2)), strict=True)
    assert {int(batch) for pair in two for batch in pair} <= first
    abandoned.close()
    assert pids() == first


@pytest.mark.parametrize("limit", ["small shared memory", "long folder of temporary files"])
def test_batches_need_no_shared_memory(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    """64 MiB are Docker's default; schedulers make folders of more than 90 characters."""
    if limit == "small shared memory":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    else:
        folder = tmp_path / ("long" * 25)
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert not workers.has_shared_memory(10_000)
    transform = ViewTransform(AugmentConfig(resize=36, crop=32), 0)
    both = [
        list(ImageLoader(manifest.files, transform, count).batches(manifest.entries, 1, [[0, 1, 2], [3]]))
        for count in (0, 2)
    ]
    assert all(torch.equal(alone, loaded) for alone, loaded in zip(*both, strict=True))


def test_a_process_that_dies_ends_the_run_with_a_sentence() -> None:
    with pytest.raises(UserError, match=r"ended unexpectedly, .* data\.workers"):
        list(load_in_processes([pid, die, pid], 2, 8, lambda batch: batch))
    assert len(pids()) == 2


def test_a_process_that_hangs_ends_the_run_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    running = pids()
    monkeypatch.setattr(workers, "MAX_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"No batch of images was decoded .*; check the disk"):
        list(load_in_processes([sleep], 2, 8, lambda batch: batch))
    wait_for(lambda: not any(map(exists, running)))


def test_a_signal_ends_the_wait_for_a_process_that_hangs() -> None:
    running = pids()
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            list(load_in_processes([sleep], 2, 8, lambda batch: batch))
    finally:
        signal.signal(signal.SIGALRM, before)
    wait_for(lambda: not any(map(exists, running)), 10)


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        *(pytest.param(end, marks=pytest.mark.slow) for end in ("sys.exit()", "os._exit(1)")),
    ],
)
def test_the_processes_end_with_their_parent(end: str) -> None:
    program = (
        "import os, signal, sys, torch; from functools import partial;"
        "from runner.data.workers import load_in_processes, _pools;"
        "list(load_in_processes([partial(torch.zeros, 1)] * 4, 2, 8, lambda batch: batch));"
        f"print(*_pools[2]._processes, flush=True); {end}"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    processes = [int(word) for word in run.stdout.split()]
    assert len(processes) == 2, run.stderr
    wait_for(lambda: not any(map(exists, processes)))


def test_a_result_keeps_its_place() -> None:
    calls = [partial(torch.full, (1,), number) for number in range(20)]
    assert [int(batch) for batch in load_in_processes(calls, 2, 8, lambda batch: batch + 1)] == list(
        range(1, 21)
    )


def test_a_process_that_hangs_does_not_hold_back_who_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    running = pids()
    monkeypatch.setattr(workers, "LAST_SECONDS", 0.2)
    batches = load_in_processes([pid, sleep, sleep], 2, 8, lambda batch: batch)
    next(batches)
    batches.close()
    wait_for(lambda: not any(map(exists, running)))


def test_processes_of_which_one_died_idle_are_replaced() -> None:
    first = pids()
    os.kill(min(first), signal.SIGKILL)
    wait_for(lambda: not any(map(exists, first)))
    assert len(pids()) == 2


@pytest.mark.slow
def test_an_idle_process_that_dies_does_not_hold_back_the_end() -> None:
    program = (
        "import os, signal, time, torch; from functools import partial;"
        "from runner.data.workers import load_in_processes, _pools;"
        "list(load_in_processes([partial(torch.zeros, 1)] * 8, 4, 8, lambda batch: batch));"
        "[os.kill(process, signal.SIGKILL) for process in list(_pools[4]._processes)[:3]]; time.sleep(0.5)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_pause_of_the_whole_command_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of the wait that lasts for hours, as after Ctrl-Z, counts as one slice."""
    waits: list[float] = []

    def paused(futures: list[Future[Tensor]], timeout: float) -> SimpleNamespace:
        waits.append(timeout)
        return SimpleNamespace(done=futures if len(waits) == 59 else [])

    monkeypatch.setattr(workers, "wait", paused)
    loaded: Future[Tensor] = Future()
    loaded.set_result(torch.ones(1))
    assert workers._result(loaded) == 1
    assert sum(waits) < workers.MAX_SECONDS


def test_full_shared_memory_is_gone_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    batches = load_in_processes([partial(torch.ones, 1)] * 3, 2, 8, lambda batch: batch)
    assert torch.cat(list(batches)).tolist() == [1, 1, 1]


def test_nothing_to_load_starts_no_process(manifest: Manifest) -> None:
    transform = ViewTransform(AugmentConfig(resize=36, crop=32), 0)
    assert list(ImageLoader(manifest.files, transform, 2).batches(manifest.entries, 1, [])) == []
    assert not workers._pools
