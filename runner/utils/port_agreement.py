"""Agreement of a step's tasks on a port that is free on the host of rank 0.

A scheduler says who takes part and where, but no port. The port that a job's number suggests may be busy: other jobs
share the host. So rank 0 listens on the first free one of some ports that all know, until all others have called there.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import closing, suppress

from runner.utils.cluster import ClusterTask
from runner.utils.errors import UserError
from runner.utils.hashing import digest

LOWEST, HIGHEST = 20000, 30000
"""Range of the ports on which rank 0 may listen: below those that systems give to clients."""
CANDIDATES = 16
PATIENCE = 3.0
"""Seconds for an answer from one port; another service that listens there may never give one."""
CONFIRMATION = 60.0
"""Seconds in which a caller confirms that it got the answer."""
NOTICE = 10.0
"""Seconds after which it is said for whom this process waits."""
POLL = 0.2
"""Seconds between two looks."""
LONGEST_LINE = 200


def agree_on_port(task: ClusterTask, timeout: float) -> int:
    """A port that is free on the host of rank 0; all tasks of a step call this together.

    Args:
        task: This one.
        timeout: Seconds to wait for the others.

    Raises `UserError` if they cannot be reached.
    """
    ports = candidate_ports(task.step)
    notice = threading.Timer(NOTICE, _say, [f"note: waiting up to {timeout:.0f} s for {task.others} …"])
    notice.daemon = True
    notice.start()
    try:
        return _serve(task, ports, timeout) if task.rank == 0 else _ask(task, ports, timeout)
    finally:
        notice.cancel()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def candidate_ports(step: str) -> list[int]:
    """The ports on which rank 0 of a step may listen, in the order in which they are tried."""
    start = int(digest(step)[:8], 16)
    return [LOWEST + (start + 97 * index) % (HIGHEST - LOWEST) for index in range(CANDIDATES)]


def _serve(task: ClusterTask, ports: Sequence[int], timeout: float) -> int:
    """Let all other tasks call at a port, which is free for torch then. A thread a call, as strangers may be slow."""
    reached: set[int] = set()
    with closing(_listen(task, ports)) as listener:
        port = int(listener.getsockname()[1])
        deadline = time.monotonic() + timeout
        listener.settimeout(POLL)
        while waiting := set(range(1, task.count)) - reached:
            if time.monotonic() > deadline:
                raise UserError(_missing(task, waiting, timeout, port))
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threading.Thread(target=_answer, args=(connection, task, reached), daemon=True).start()
    return port


def _missing(task: ClusterTask, ranks: Collection[int], timeout: float, port: int) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:8]))
    return (
        f"{len(ranks)} of {task.count} tasks of the {task.scheduler} step {task.step} have not called rank 0 on"
        f" {socket.gethostname()} within {timeout:.0f} s (ranks {shown}); see whether they have started, and whether"
        f" their hosts reach this one at port {port}."
    )


def _listen(task: ClusterTask, ports: Sequence[int]) -> socket.socket:
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen(1024)
        except OSError:
            listener.close()
            continue
        return listener
    raise UserError(
        f"All of the {len(ports)} ports on which the {task.scheduler} step {task.step} may meet are busy on"
        f" {socket.gethostname()} (the first is {ports[0]}); end what listens there, or use another host."
    )


def _answer(connection: socket.socket, task: ClusterTask, reached: set[int]) -> None:
    """Answer a caller. Its rank is `reached` when it has confirmed that it got the answer."""
    with connection, suppress(OSError, ValueError):
        connection.settimeout(PATIENCE)
        # A task that has its answer goes on to torch's store, at this port, before it is closed: it must not wait here.
        rank = _read_line(connection, f"{task.step} ")
        connection.settimeout(CONFIRMATION)
        connection.sendall(f"{task.step} here\n".encode())
        if _read_line(connection) == "thanks":
            reached.add(int(rank))


def _ask(task: ClusterTask, ports: Sequence[int], timeout: float) -> int:
    """Ask rank 0, at one port after another, until it answers."""
    if not task.first_host:
        raise UserError(
            f"{task.scheduler} does not say where rank 0 is; pass it on with mpirun -x MASTER_ADDR=HOST."
        )
    deadline = time.monotonic() + timeout
    reason = "no attempt was made"
    while time.monotonic() < deadline:
        for port in ports:
            try:
                with socket.create_connection((task.first_host, port), PATIENCE) as connection:
                    connection.sendall(f"{task.step} {task.rank}\n".encode())
                    if _read_line(connection) == f"{task.step} here":
                        connection.sendall(b"thanks\n")
                        return port
                    reason = f"another service answers at port {port}"
            except (OSError, ValueError) as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                break
        time.sleep(POLL)
    raise UserError(
        f"Rank 0 of the {task.scheduler} step {task.step} on {task.first_host} could not be reached from"
        f" {socket.gethostname()} within {timeout:.0f} s ({reason}); see whether it has started, and whether this host"
        " can reach it."
    )


def _read_line(connection: socket.socket, start: str = "") -> str:
    """The rest of a line of text that has this start. Raises OSError or ValueError as soon as something else comes."""
    line, expected = b"", start.encode()
    while not line.endswith(b"\n"):
        part = connection.recv(LONGEST_LINE)
        line += part
        if not part or len(line) > LONGEST_LINE or not line.startswith(expected[: len(line)]):
            raise ValueError("no such line of text came")
    return line.decode().rstrip("\n").removeprefix(start)
