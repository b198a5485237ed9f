"""The processes of a launch, on one host or several: what they run on, and that they run the same."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed import distributed_c10d

from runner.config.identity import Identity, weights_digest
from runner.config.parser import Options
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten
from runner.tracking.process_identity import this_host
from runner.training.joining import RESTARTS
from runner.utils import peers
from runner.utils.cluster import own_address
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.output import label_lines
from runner.utils.paths import PACKAGE

SAME_EVERYWHERE = ("torch", "torchvision", "timm", "pillow", "numpy", "accelerate")
"""Packages whose version decides results."""


@dataclass(frozen=True)
class ProcessInfo:
    """A process of the launch."""

    name: str
    """Of its host."""
    host: str
    """Tells hosts apart that have one name."""
    address: str
    """Of its host, towards the others."""
    device: str
    token: str
    """Nothing else has it."""

    @classmethod
    def this(cls, device: torch.device, is_alone: bool = False) -> ProcessInfo:
        """This process."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        address = "" if is_alone else own_address(os.environ.get("MASTER_ADDR", ""))
        return cls(socket.gethostname(), this_host(), address, name, uuid.uuid4().hex)


@dataclass(frozen=True)
class World:
    """All processes of this launch, by rank."""

    processes: Sequence[ProcessInfo]

    @property
    def hosts(self) -> list[str]:
        """The hosts' names; those that share one are numbered."""
        first = {each.host: each.name for each in reversed(self.processes)}
        names = [first[host] for host in dict.fromkeys(each.host for each in self.processes)]
        return [
            name if names.count(name) == 1 else f"{name}#{names[: index + 1].count(name)}"
            for index, name in enumerate(names)
        ]

    @property
    def host_of(self) -> list[str]:
        """The host's name of each process."""
        names = dict(zip(dict.fromkeys(each.host for each in self.processes), self.hosts, strict=True))
        return [names[each.host] for each in self.processes]

    @property
    def labels(self) -> list[str]:
        """What each process is called: `node2 (rank 3)`."""
        return [f"{host} (rank {rank})" for rank, host in enumerate(self.host_of)]

    @property
    def addresses(self) -> dict[str, str]:
        """The hosts' names by address."""
        return dict(zip((each.address for each in self.processes), self.host_of, strict=True))

    def label_at(self, address: str) -> str:
        """What the first process on a host is called.

        Args:
            address: Of the host, or its name.
        """
        found = [address]
        with suppress(OSError):
            found.append(socket.gethostbyname(address))
        labels = zip(self.processes, self.labels, strict=True)
        return next((label for each, label in labels if each.address in found or each.name in found), "")

    def tags(self) -> dict[str, str]:
        """The tags by which a run in MLflow shows what it was computed on."""
        return {"runner.hosts": ", ".join(self.hosts), "runner.world_size": str(len(self.processes))}

    def describe(self) -> dict[str, Any]:
        """For environment.json: each host with its devices."""
        devices: dict[str, list[str]] = {host: [] for host in self.hosts}
        for host, process in zip(self.host_of, self.processes, strict=True):
            devices[host].append(process.device)
        return {"hosts": devices, "world_size": len(self.processes)}

    def differing(self, values: Sequence[dict[str, Any]]) -> str:
        """How the first process that differs from rank 0 does so, in words; empty if none does.

        Args:
            values: Of each process, by name.
        """
        first = values[0]
        for host, own in zip(self.host_of, values, strict=True):
            names = [name for name in own if name in first and first[name] != own[name]]
            if names:
                shown = [
                    f"{name} ({own[name]} there, {first[name]} on {self.host_of[0]})" for name in names[:3]
                ]
                return f"{host} has another {', '.join(shown)}{', …' * (len(names) > 3)}"
        return ""


_world: World | None = None


def this_world() -> World:
    """The processes of this launch; before `join_launch`, this process alone."""
    return _world or World([ProcessInfo.this(torch.device("cpu"), is_alone=True)])


def join_launch(state: PartialState) -> None:
    """Learn of all processes of the launch, once, and watch them from now on. All of them call this together.

    Raises `UserError` if they run different code.
    """
    global _world
    if _world is not None:
        return
    own = ProcessInfo.this(state.device, state.num_processes == 1)
    if state.num_processes == 1:
        _world = World([own])
        return
    processes, versions = zip(*gather_object([(own, program_versions())]), strict=True)
    _world = world = World(processes)
    if len(world.hosts) > 1:
        label_lines(f"[{world.host_of[state.process_index]}:{state.process_index}] ")
    # torchrun starts processes again with the same store.
    store = distributed_c10d.PrefixStore(processes[0].token, distributed_c10d._get_default_store().clone())
    abort, store_label = _abort_function(state.device), world.label_at(os.environ.get("MASTER_ADDR", ""))
    peers.watch(
        peers.PeerWatchdog(store, state.process_index, world.labels, abort, world.addresses, store_label)
    )
    raise_if_different("programs", versions)


def check_same_command(experiment: Experiment, options: Options | None = None) -> None:
    """Raise `UserError` on all processes if their settings or options differ, as after a change on one host."""
    if len(this_world().processes) == 1:
        return
    tree = as_tree(experiment)
    # Those of features decide which processes compute when, and so in what order they meet.
    settings = {**Identity.of(tree).settings, **flatten({"features": tree["features"]})}
    given = {f"--{name}": value for name, value in vars(options).items()} if options else {}
    values = {name: str(value) for name, value in {**settings, **given}.items()}
    raise_if_different("settings", gather_object([values]))


def is_restarted() -> bool:
    """Whether torchrun has started this command again, after a failure on any host: each counts its own restarts."""
    if len(this_world().processes) == 1:
        return os.environ.get(RESTARTS, "0") != "0"
    return any(count != "0" for count in gather_object([os.environ.get(RESTARTS, "0")]))


def check_same_data(manifest: str, experiment: Experiment) -> None:
    """Raise `UserError` on all processes if some found other images, another split or other pretrained weights.

    Args:
        manifest: Digest of the images and their split.
        experiment: Names the weights; a file's content is compared.
    """
    world = this_world()
    values = {"images or split": manifest[:8]}
    if (
        len(world.hosts) > 1 and os.environ.get("LOCAL_RANK", "0") == "0"
    ):  # others of its host read the same file
        values["pretrained weights"] = weights_digest(experiment.model.weights)[:8]
    gathered = gather_object([values])
    if len(world.hosts) > 1:
        raise_if_different("data", gathered)
    elif any(each != values for each in gathered):
        raise UserError(
            f"The processes of this run found different images in {experiment.data.root}: files came or went meanwhile;"
            " start again when nothing writes there."
        )


def raise_if_different(what: str, values: Sequence[dict[str, str]]) -> None:
    """Raise `UserError` if the values of some process differ from those of rank 0.

    Args:
        what: They are.
        values: Of each process, by name. A name that a process lacks is not compared.
    """
    if different := this_world().differing(values):
        raise UserError(f"The {what} of this launch differ: {different}; start all hosts with the same.")


def program_versions() -> dict[str, str]:
    """What decides results beside an experiment: the runner's own code, as a digest, and versions of packages."""
    files = sorted(PACKAGE.rglob("*.py"))
    code = digest([(str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")) for path in files])
    return {"version of the runner's code": code[:8], **{each: version(each) for each in SAME_EVERYWHERE}}


def _abort_function(device: torch.device) -> Callable[[], None]:
    """What makes collective operations of this process fail at once, to be called in another thread."""
    if device.type == "cuda":
        return distributed_c10d._abort_process_group
    connections = _gloo_connections()

    def close_connections() -> None:
        for descriptor, target in connections:
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{descriptor}") == target:
                    with socket.socket(fileno=os.dup(descriptor)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)

    return close_connections


def _gloo_connections() -> list[tuple[int, str]]:
    """The connections to other processes, apart from that to the store: descriptors, and what they stand for.

    gloo's own way to abort does not reach an operation that waits.
    """
    store_port = int(os.environ.get("MASTER_PORT") or 0)
    found = []
    with suppress(psutil.Error, OSError):
        for each in psutil.Process().net_connections("tcp"):
            if each.status == psutil.CONN_ESTABLISHED and store_port not in (
                each.laddr.port,
                each.raddr.port,
            ):
                found.append((each.fd, os.readlink(f"/proc/self/fd/{each.fd}")))
    return found
