"""`runner bench scaling`: its simulations and formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.support import lease_settings
from benchmarks.support.events import Process, QueueLock, SharedServer, Simulation
from benchmarks.support.extrapolation import (
    RESOURCES,
    Cluster,
    amount,
    first_limit,
    loads,
    lock_hold,
    reduce_seconds,
    table,
)
from benchmarks.support.lease_settings import LeaseSettings
from benchmarks.support.lease_simulation import LeaseSimulation
from benchmarks.support.study_simulation import StudySettings, StudySimulation, shortest_trial
from runner.features.claims import Claims

SMALL = LeaseSettings(workers=16, hosts=4, images=100_000)
DYING = replace(SMALL, deaths_per_host_hour=40.0, reboot=20.0, seed=1)
STUDY = StudySettings(workers=20, trials=100, trial_seconds=60.0)
COSTS = {
    "stored_bytes": 10_000.0,
    "manifest_memory_bytes": 80.0,
    "index_bytes": 20.0,
    "manifest_seconds": 2e-6,
    "shard_header_seconds": 1e-3,
    "results_seconds": 1e-6,
    "logit_bytes": 8,
    "all_gradient_bytes": 50e6,
    "ask_seconds": 0.1,
    "ask_seconds_per_running_trial": 0.01,
    "trial_database_seconds": 0.5,
    "heartbeat_seconds": 0.003,
    "mlflow_run_requests": 20,
    "mlflow_epoch_requests": 1,
    "mlflow_request_seconds": 0.01,
}


def lease(settings: LeaseSettings) -> Any:
    return LeaseSimulation(settings).run(limit=1e6)


@pytest.mark.parametrize("settings", [SMALL, DYING], ids=["calm", "dying"])
def test_features_simulated_with_one_seed_are_equal(settings: LeaseSettings) -> None:
    first, again = lease(settings), lease(settings)
    assert asdict(first) == asdict(again)
    assert asdict(first) != asdict(lease(replace(settings, seed=7)))


@pytest.mark.parametrize("seed", range(3))
def test_each_image_is_computed_at_least_once(seed: int) -> None:
    result = lease(replace(DYING, freezes_per_host_hour=20.0, seed=seed))
    assert result.deaths
    assert result.stored == pytest.approx(DYING.images)
    assert result.computed >= DYING.images - 1e-3
    assert result.seconds >= result.ideal


def test_without_deaths_nothing_is_computed_twice() -> None:
    result = lease(SMALL)
    assert result.twice == pytest.approx(0, abs=1e-3)
    assert (result.deaths, result.freezes, result.longest_wait) == (0, 0, 0.0)
    assert result.lost < 0.05


def test_a_dead_host_costs_what_it_had_not_written_yet() -> None:
    result = lease(DYING)
    a_shard = 5 * SMALL.images_per_second
    workers_of_a_host = SMALL.workers / SMALL.hosts
    assert 0 < result.twice <= result.deaths * workers_of_a_host * a_shard


def test_a_longer_lease_is_waited_for_longer() -> None:
    few_parts = LeaseSettings(workers=16, hosts=16, images=4096, deaths_per_host_hour=60.0, reboot=50.0)
    short, long = (
        max(lease(replace(few_parts, lease=length, seed=seed)).longest_wait for seed in range(5))
        for length in (30.0, 200.0)
    )
    assert 20 < short <= 31
    assert 31 < long <= 201


@pytest.mark.parametrize(("frozen", "is_double"), [(15.0, False), (90.0, True)])
def test_a_host_that_is_frozen_for_longer_than_the_lease_computes_what_others_do(
    frozen: float, is_double: bool
) -> None:
    result = lease(replace(SMALL, freezes_per_host_hour=60.0, frozen=frozen))
    assert result.freezes
    assert (result.twice > 1) is is_double


def test_listings_that_lag_let_parts_be_computed_again() -> None:
    assert lease(replace(SMALL, listing_lag=30.0)).twice > 100


def test_a_busy_file_server_slows_workers_down() -> None:
    slow = lease(replace(SMALL, server_rate=100.0))
    assert slow.lost > lease(SMALL).lost + 0.1
    assert slow.operations_per_second <= 100.5


def test_simulated_operations_are_those_of_the_claims(tmp_path: Path) -> None:
    folder, others = tmp_path / "claims", Claims(tmp_path / "claims")
    others.claim(0, ["00", "01"])
    claims = Claims(folder)
    claims.claim(1, ["0"])
    claims.release()
    simulated = lease_settings
    look = simulated.PROBE + simulated.LISTING
    with operations(folder) as count:
        claims.claim(0, ["11"])
    assert count() == simulated.CREATE + look + 3 * simulated.READ  # its own as well
    with operations(folder) as count:
        claims._renew()
    assert count() == simulated.TOUCH
    with operations(folder) as count:
        claims.release()
    assert count() == simulated.RELEASE
    claim = next(each for each in claims.others(0) if each.bits == "00")
    with operations(folder) as count:
        claims._remove(claim)
    assert count() == simulated.REMOVE
    others.release()


OPERATIONS = ("open", "os.link", "os.remove", "os.rename", "os.utime", "os.listdir")
_COUNTED: list[str] = []
_FOLDERS: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _FOLDERS and event in OPERATIONS and str(args[0]).startswith(_FOLDERS[0]):
        _COUNTED.append(event)


@contextmanager
def operations(folder: Path) -> Iterator[Callable[[], int]]:
    """Counts the file operations in a folder within the block."""
    if not getattr(sys, "_scaling_hook", False):
        sys.addaudithook(_audit)  # it cannot be removed
        sys._scaling_hook = True  # type: ignore[attr-defined]
    _COUNTED.clear()
    _FOLDERS.append(str(folder))
    try:
        yield lambda: len(_COUNTED)
    finally:
        _FOLDERS.clear()


def test_studies_simulated_with_one_seed_are_equal() -> None:
    settings = replace(STUDY, deaths_per_worker_hour=3.0)
    assert asdict(StudySimulation(settings).run()) == asdict(StudySimulation(settings).run())


@pytest.mark.parametrize("seed", range(4))
def test_a_study_has_as_many_trials_as_were_asked_for(seed: int) -> None:
    result = StudySimulation(replace(STUDY, deaths_per_worker_hour=5.0, seed=seed)).run(limit=1e6)
    assert result.lost > 0
    assert (result.trials, result.overshot) == (STUDY.trials, 0)


def test_without_the_lock_there_are_too_many_trials() -> None:
    crowd = StudySettings(workers=200, trials=250, trial_seconds=10.0, hold=0.5)
    assert StudySimulation(crowd).run().overshot == 0
    assert StudySimulation(replace(crowd, locked=False)).run().overshot > 0


def test_short_trials_wait_for_the_lock() -> None:
    settings = StudySettings(workers=100, trials=600, hold=0.2, hold_per_running=0.0)
    limit = shortest_trial(100, 0.2, 0.0)
    assert limit == pytest.approx(20)
    short, long = (
        StudySimulation(replace(settings, trial_seconds=seconds)).run() for seconds in (limit / 4, limit * 50)
    )
    assert short.lock_busy > 0.9 > 0.1 > long.lock_busy
    assert short.mean_wait > 10 > 3 > long.mean_wait - 100 * 0.2 / 2 / 6  # the first asks come all at once
    assert short.asks_per_second <= 1 / 0.2


def test_a_server_is_shared_evenly() -> None:
    simulation, ends = Simulation(), {}
    server = SharedServer(simulation, rate=10.0, latency=0.05)

    def client(name: str, requests: int) -> Process:
        yield server.request(requests)
        ends[name] = simulation.now

    simulation.start(client("short", 10))
    simulation.start(client("long", 30))
    simulation.start(client("late", 5), delay=4.0)
    simulation.run()
    # Two share 10/s until the short one has its 10 at 2 s; the long one alone has 10 + 20 at 4 s.
    assert ends == {"short": pytest.approx(2), "long": pytest.approx(4), "late": pytest.approx(4.5)}
    assert server.operations == 45


def test_one_client_is_limited_by_the_latency() -> None:
    simulation = Simulation()
    server = SharedServer(simulation, rate=1e6, latency=0.05)

    def client() -> Process:
        yield server.request(10)

    simulation.start(client())
    simulation.run()
    assert simulation.now == pytest.approx(0.5)


@pytest.mark.parametrize(("turn", "order"), [(100.0, "abc"), (2.5, "acb")])
def test_the_lock_is_given_in_turn(turn: float, order: str) -> None:
    simulation, got = Simulation(), []
    lock = QueueLock(simulation, turn)

    def process(name: str) -> Process:
        yield lock.acquire()
        got.append(name)
        yield 4.0
        lock.release()

    for delay, name in enumerate("abc"):  # at 4 s b has waited for 3 s, and c for 2 s
        simulation.start(process(name), delay)
    simulation.run()
    assert "".join(got) == order


def test_a_simulation_that_does_not_end_is_stopped() -> None:
    def endless() -> Process:
        while True:
            yield 1.0

    simulation = Simulation()
    simulation.start(endless())
    with pytest.raises(RuntimeError, match="100 s"):
        simulation.run(limit=100)


def test_formulas_by_hand() -> None:
    cluster = Cluster(gpus=16, images=10**9)
    assert lock_hold(COSTS, 16) == pytest.approx(0.26)
    assert reduce_seconds(50e6, cluster) == pytest.approx(2 * 50e6 * 15 / 16 / 6.25e9)
    needs = {each.name: each.need(COSTS, cluster) for each in RESOURCES}
    assert needs == pytest.approx(
        {
            "stored features": 1e13,
            "reading all features, each epoch": 1000,
            "shard headers, read by every process": 1e9 / 1820 * 1e-3,
            "image table and key index in memory, of a host": 8e11,
            "digest and text of the manifest, at the start of a run": 2000,
            "gathering results of validation images, each epoch": 50,
            "gathered logits of a split, in the memory of a GPU": 5e7 * 1001 * 8,
            "gradients of all weights, each step": 0.015,
            "the study's lock, share of the time": 16 * 0.26 / 3600,
            "PostgreSQL, busy cores": 16 * 0.5 / 3600 + 16 * 0.003 / 15,
            "MLflow, busy workers": 16 * 36 * 0.01 / 3600,
        }
    )
    assert loads(COSTS, cluster)["stored features"] == pytest.approx(0.01)
    assert first_limit(COSTS, cluster)[0] == "gathered logits of a split, in the memory of a GPU"
    assert cluster.extraction_seconds == pytest.approx(1e9 / (16 * 2492))


def test_the_table_names_what_limits_first() -> None:
    rows = table(COSTS, [Cluster(8, 10**6), Cluster(8, 10**9)])
    assert {len(row) for row in rows} == {3}
    assert rows[-1] == ["limits first", *(first_limit(COSTS, Cluster(8, n))[0] for n in (10**6, 10**9))]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (9.264e12, "bytes", "9.26 TB"),
        (5e3, "bytes", "5 kB"),
        (7200, "s", "2 h"),
        (0.5, "s", "0.5 s"),
        (3, "", "3"),
    ],
)
def test_amounts_as_people_read_them(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_scenarios_are_of_a_thousand_workers() -> None:
    leases, studies = scaling.lease_scenarios(5), scaling.study_scenarios(5, scaling.MEASURED)
    assert {each.seed for each in (*leases.values(), *studies.values())} == {5}
    assert leases["1000 CPU workers"].hosts == 125
    assert max(each.workers for each in studies.values()) == 1000
