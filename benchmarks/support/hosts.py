"""Several hosts inside this machine: Linux namespaces with addresses, names, processes and cables of their own.

Each host has a network namespace on a bridge, a host name, a process tree that can be killed at once, and its own
temporary folder. Files are shared, as on a cluster with a network file system. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.support.requirements import MissingRequirementError

NAMESPACES = ("--net", "--uts", "--mount", "--pid")
_NETWORKS = itertools.count()
"""Numbers of the networks that this process has made: several may exist at the same time."""
INIT = "while :; do sleep 1000 & wait; done"
"""The first process of a host: it adopts and reaps the processes of others that were killed."""


@dataclass
class Host:
    """A host. Its processes end with it.

    Args:
        name: Its host name.
        address: Its IP address.
        folder: Its files: `tmp` is its folder for temporary files.
        prefix: Distinguishes the names of its namespace and cable from those of other networks.
    """

    name: str
    address: str
    folder: Path
    prefix: str
    _init: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: list[subprocess.Popen[str]] = field(default_factory=list, init=False)

    @property
    def network(self) -> str:
        """Name of its network namespace."""
        return f"{self.prefix}{self.address.rpartition('.')[2]}"

    @property
    def outside(self) -> list[str]:
        """Words before a command that uses its network only: `kill` and `pause` do not reach it."""
        return [*_in_network(self.network), "--"]

    def boot(self) -> None:
        """Start the host."""
        script = f"hostname {self.name}; mount --bind {self.folder.parent / 'etc-hosts'} /etc/hosts; {INIT}"
        self._init = subprocess.Popen(
            [
                *(*_in_network(self.network), "unshare", *NAMESPACES[1:], "--fork", "--mount-proc"),
                *("--kill-child", "bash", "-c", script),
            ],
            stderr=subprocess.DEVNULL,  # unshare complains when its child is killed
        )
        deadline = time.monotonic() + 30
        while self._pid is None or _name_in(self._pid) != self.name:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start")
            time.sleep(0.01)

    @property
    def _pid(self) -> int | None:
        """This machine's id of the host's first process."""
        if self._init is None:
            return None
        try:
            first = psutil.Process(self._init.pid)
            while first.name() != "bash":  # nsenter becomes unshare, which forks
                (first,) = first.children()
        except (psutil.Error, ValueError):
            return None
        return first.pid

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on the host."""
        environment = {**(os.environ if env is None else env), "TMPDIR": str(self.folder / "tmp")}
        words = ["nsenter", "-t", str(self._pid), *NAMESPACES, "--", *command]
        process = subprocess.Popen(words, env=environment, text=True, **options)
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end, with its output."""
        process = self.start(command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """All processes of the host but its first, and not those that merely wait for them from outside."""
        pid = self._pid
        if pid is None:
            return []
        space = os.stat(f"/proc/{pid}/ns/pid").st_ino
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != pid and os.stat(f"/proc/{process.pid}/ns/pid").st_ino == space:
                    found.append(process)
            except OSError:
                continue
        return found

    def cut_cable(self) -> None:
        """Let no packet through any more, without telling anybody."""
        _ip("link", "set", f"{self.network}b", "nomaster")

    def mend_cable(self) -> None:
        """Undo `cut_cable`."""
        _ip("link", "set", f"{self.network}b", "master", self.prefix)

    def pause(self) -> None:
        """Stop all processes of the host, as a frozen virtual machine does."""
        self._signal(signal.SIGSTOP)

    def unpause(self) -> None:
        """Continue them."""
        self._signal(signal.SIGCONT)
        for process in self._started:  # nsenter stops itself with what it has started
            process.send_signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self.processes():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def kill(self) -> None:
        """Kill all processes of the host at once, as when its power fails. Its network answers no longer either."""
        self.cut_cable()
        if (pid := self._pid) is not None:
            os.kill(pid, signal.SIGKILL)
        if self._init is not None:
            self._init.wait()

    def reboot(self) -> None:
        """Start a killed host again."""
        self.mend_cable()
        self.boot()


@contextmanager
def network_of_hosts(count: int, folder: Path, names: Sequence[str] = ()) -> Iterator[list[Host]]:
    """Some hosts on one network, which this process can reach, too. Raises `MissingRequirementError`.

    Args:
        count: Number of hosts.
        folder: For their files.
        names: Of the hosts; default: host1, host2, …
    """
    _check_requirements()
    own, number = os.getpid(), next(_NETWORKS)
    place = 8 * own + number
    prefix, net = f"rn{own:x}{chr(ord('p') + number % 10)}", f"10.{100 + (place >> 8) % 100}.{place % 256}"
    chosen = [*names] or [f"host{index + 1}" for index in range(count)]
    hosts = [
        Host(name, f"{net}.{index + 1}", folder / f"files{index + 1}", prefix)
        for index, name in enumerate(chosen)
    ]
    lines = [
        "127.0.0.1 localhost",
        *(f"{host.address} {host.name}" for host in hosts if host.name != "localhost"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "etc-hosts").write_text("\n".join(lines) + "\n")
    with ExitStack() as stack:
        _ip("link", "add", prefix, "type", "bridge")
        stack.callback(_ip, "link", "delete", prefix)
        _ip("addr", "add", f"{net}.254/24", "dev", prefix)
        _ip("link", "set", prefix, "up")
        for host in hosts:
            (host.folder / "tmp").mkdir(parents=True, exist_ok=True)
            _ip("netns", "add", host.network)
            stack.callback(_remove, host)
            _connect(host)
            host.boot()
        yield hosts


def _remove(host: Host) -> None:
    if host._init is not None and host._init.poll() is None:
        host.kill()
    _ip("netns", "delete", host.network)


def _connect(host: Host) -> None:
    """Lay a cable from a host's network namespace to the bridge."""
    name = host.network
    _ip("link", "add", f"{name}b", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"{name}b", "master", host.prefix, "up")
    for words in (
        ("addr", "add", f"{host.address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        _ip("-n", name, *words)


def _check_requirements() -> None:
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        raise MissingRequirementError(f"hosts inside this machine need {' and '.join(missing)}")
    if os.geteuid() != 0:
        raise MissingRequirementError("hosts inside this machine need root")
    clone_new_net = 0x40000000
    child = os.fork()
    if child == 0:
        os._exit(1 if ctypes.CDLL(None).unshare(clone_new_net) else 0)
    if os.waitpid(child, 0)[1]:
        raise MissingRequirementError("this machine does not allow network namespaces")


def _in_network(name: str) -> list[str]:
    # `ip netns exec` would hide /sys/fs/cgroup, which slurmd needs.
    return ["nsenter", f"--net=/run/netns/{name}"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)  # noqa: S607


def _name_in(pid: int) -> str:
    command = ["nsenter", "-t", str(pid), "--uts", "hostname"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
