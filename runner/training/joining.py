"""Joining of a launch's processes: their ranks, from the environment or a scheduler, and a wait that can be stopped.

torch waits in C++, where no signal reaches the main thread, and prints what it tries. So it waits in another thread,
and begins when rank 0 can be reached.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from runner.utils.cluster import choose_network_interface, this_task
from runner.utils.errors import UserError
from runner.utils.launch_environment import JOIN_MINUTES, join_seconds
from runner.utils.port_agreement import agree_on_port
from runner.utils.processes import cpu_count
from runner.utils.redaction import error_line

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
NOTICE = 10.0
"""Seconds after which it is said for whom this process waits."""
POLL = 0.2
"""Seconds between two looks."""
MARGIN = 60.0
"""Seconds by which torch would wait longer than this module does."""
BELONG_TO_RANK = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


def take_ranks(timeout: float) -> None:
    """Complete the ranks in the environment, where a scheduler has started this script itself.

    Args:
        timeout: Seconds to wait for the other processes.

    Raises `UserError` if they cannot be reached, or if the variables contradict each other.
    """
    environment = os.environ
    if environment.get("RANK"):
        if not environment.get("LOCAL_RANK"):  # as PyTorchJob starts a process in each of its containers
            environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        if not torch.distributed.is_initialized():
            _check_ranks()
        if not environment.get("OMP_NUM_THREADS"):  # Accelerate would set another number, and warn
            threads = max(
                1, cpu_count() // int(environment.get("LOCAL_WORLD_SIZE") or environment["WORLD_SIZE"])
            )
            environment["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
    elif (task := this_task()) is not None:
        environment |= task.ranks()
        environment.setdefault("OMP_NUM_THREADS", str(task.threads(cpu_count())))
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
            port = agree_on_port(task, timeout)
            environment |= {"MASTER_ADDR": task.first_host, "MASTER_PORT": str(port)}
    several_hosts = environment.get("LOCAL_WORLD_SIZE") not in (None, environment.get("WORLD_SIZE"))
    if several_hosts and (interface := choose_network_interface(environment.get("MASTER_ADDR", ""))):
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)


def _check_ranks() -> None:
    """Raise `UserError` if RANK and what belongs to it contradict each other."""
    advice = "; set all of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset RANK to run one process"
    if os.environ.get("WORLD_SIZE") != "1" and (
        missing := [name for name in BELONG_TO_RANK if not os.environ.get(name)]
    ):
        raise UserError(
            f"RANK is set, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not{advice}."
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise UserError(f"{name} is {value!r}, but it must be a whole number{advice}.")
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= count:
        raise UserError(
            f"RANK is {rank} and WORLD_SIZE {count}, but ranks count from 0 to {count - 1}{advice}."
        )


def join(cpu: bool, timeout: float) -> PartialState:
    """Join the processes that the environment names; this process alone if it names no others.

    Args:
        cpu: Compute on the CPU.
        timeout: Seconds to wait for the others. Signals interrupt the wait.

    Raises `UserError` if they do not come, and RuntimeError or ValueError as torch and Accelerate do.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") in ("", "1") or not os.environ.get("RANK")
    if is_alone or torch.distributed.is_initialized():
        return PartialState(cpu=cpu, timeout=timedelta(seconds=timeout))
    deadline = time.monotonic() + timeout
    if os.environ.get("RANK") != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        _wait_for_rank_0(deadline)

    def join_all() -> PartialState:
        longer = timedelta(seconds=timeout + MARGIN)
        _join_after_restart(cpu, longer)
        return PartialState(cpu=cpu, timeout=longer)

    state = _in_thread(join_all, deadline)
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)  # torch knows it for each thread
    return state


def _wait_for_rank_0(deadline: float) -> None:
    """Wait until rank 0 listens, whose host or name may not be there yet. Raises `UserError` at the deadline."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    notice = _Notice()
    while True:
        try:
            with socket.create_connection((address, int(port)), max(0.1, deadline - time.monotonic())):
                return
        except (OSError, ValueError, OverflowError) as error:
            reason = error_line(error)
        if time.monotonic() > deadline:
            raise not_joined(reason)
        notice.show_in_time()
        time.sleep(POLL)


def _in_thread(work: Callable[[], T], deadline: float) -> T:
    """What a function returns that waits in C++. Raises what it raises, and `UserError` at the deadline."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="join", daemon=True)
    thread.start()
    notice = _Notice()
    while thread.is_alive():
        thread.join(POLL)
        notice.show_in_time()
        if time.monotonic() > deadline and thread.is_alive():
            raise not_joined("some have not come")
    if errors:
        raise errors[0]
    return results[0]


def not_joined(reason: str) -> UserError:
    """What is raised if processes do not join, for this reason."""
    return UserError(
        f"The processes of this launch have not all joined at {_master()} within {join_seconds() / 60:g} minutes"
        f" ({JOIN_MINUTES}): {reason}; see whether all hosts have started and reach that one, or unset RANK,"
        " LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which ./launch.sh would ignore."
    )


def _master() -> str:
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))


class _Notice:
    """Says once, after a while, for whom this process waits."""

    def __init__(self) -> None:
        self._due = time.monotonic() + NOTICE

    def show_in_time(self) -> None:
        if time.monotonic() > self._due:
            self._due = float("inf")
            rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
            text = f"note: rank {rank} waits for the other processes of this launch ({count} in all) at {_master()} …"
            print(text, file=sys.stderr, flush=True)


def _join_after_restart(cpu: bool, timeout: timedelta) -> None:
    """Join processes that torchrun has started again.

    It keeps its store, which holds the addresses of those before: the names of the new ones must be others.
    """
    restarts = os.environ.get(RESTARTS, "0")
    if restarts != "0" and not torch.distributed.is_initialized():
        store, rank, count = next(rendezvous("env://", timeout=timeout))
        store = distributed_c10d.PrefixStore(f"restart {restarts}", store)
        backend = "gloo" if cpu else "nccl"
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=timeout
        )
