"""Files of an interrupted run: journals, `run.json`, snapshots."""

from __future__ import annotations

import copy
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch

from fuzz import tensorfile
from fuzz.damage import damaged, mutated_json
from fuzz.target import Target, check
from runner.cli import sync
from runner.config.data_schema import DataConfig
from runner.config.parser import Options
from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.tracking.interrupted_runs import RunRecord, list_interrupted_runs, resolved_settings, write_record
from runner.tracking.journal import Journal, Owner
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.resume_lookup import changed_settings, runs_to_resume
from runner.training import snapshot
from runner.training.resume import ResumePoint, apply_resume_point
from runner.training.snapshot import Snapshot
from runner.utils.errors import UserError
from runner.utils.hashing import digest


class JournalFile(Target):
    """The events of a journal: complete lines are read as they were written, the rest is skipped."""

    EVENTS = (
        {
            "kind": "metrics",
            "step": 3,
            "time": 1700000000000,
            "values": {"train/loss": 0.25, "val/top1": 0.5},
        },
        {"kind": "artifact", "file": "figures/loss.png", "folder": "figures"},
        {"kind": "end", "status": "KILLED", "time": 1700000000001},
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lines = b"".join(json.dumps(event).encode() + b"\n" for event in self.EVENTS)

    def make(self, random: Random) -> bytes:
        if random.random() < 0.6:
            return damaged(random, self.lines, self.lines)
        return b"".join(
            mutated_json(random, copy.deepcopy(event)).encode("utf-8", "replace") + b"\n"
            for event in self.EVENTS
        )

    def read(self, content: bytes) -> None:
        root = self.folder / "journals"
        shutil.rmtree(root, ignore_errors=True)
        journal = Journal.create(root, Owner("elsewhere", 1, 1.0, uri="sqlite:///x", run_id="run"))
        (journal.folder / "events.jsonl").write_bytes(content)
        journal.repair()
        whole = set(content.split(b"\n")[:-1])
        for event in journal.events():
            check(isinstance(event["kind"], str), "an event without a kind")
        events = [json.dumps(event).encode() for event in journal.events()]
        written = [json.dumps(event).encode() for event in self.EVENTS]
        check(all(line in events for line in written if line in whole), "a whole line was lost")
        check(len(journal.pending()) <= content.count(b"\n"), "there are more events than lines")
        _ = journal.ended, journal.resumable, journal.unlogged_files()


class OwnerFile(Target):
    """`owner.json` (its journal is valid or ignored) and `sent` (how much was delivered; nothing if damaged)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = folder / "journals"
        self.owner = Owner("elsewhere", 1, 1.0, uri="sqlite:///x", run_id="a" * 32)
        self.journal = Journal.create(self.root, self.owner)
        for event in JournalFile.EVENTS:
            self.journal.append(event)
        self.whole = [position for position, _ in self.journal.pending()]
        self.content = (self.journal.folder / "owner.json").read_bytes()

    def make(self, random: Random) -> bytes:
        sent = random.choice([b"", b"-5", b"999", b"1e3", b"7", str(self.whole[0]).encode()])
        if random.random() < 0.5:
            owner = damaged(random, self.content, self.content)
        else:
            owner = mutated_json(random, asdict(self.owner)).encode("utf-8", "replace")
        return sent + b"\n" + owner

    def read(self, content: bytes) -> None:
        sent, _, owner = content.partition(b"\n")
        folder = self.journal.folder
        (folder / "sent").write_bytes(sent)
        (folder / "owner.json").write_bytes(owner)
        for each in Journal.find_all(self.root):
            _ = each.alive, each.resumable, sync.undelivered(self.root)
            delivered = sent == str(self.whole[0]).encode()
            check(len(each.pending()) == len(self.whole) - delivered, "records were passed over")
        if Journal.load(folder) is None:
            raise UserError("It is no journal.")


class RunFile(Target):
    """`run.json`: the run is read as it was written, or skipped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.experiment = Experiment(data=DataConfig(kind="digits"))
        self.place = TrackingServer("sqlite:///x", folder)
        self.journal = Journal.create(
            folder / "journals", Owner("elsewhere", 1, 1.0, uri="sqlite:///x", run_id="a" * 32)
        )
        os.utime(self.journal.folder / "owner.json", (0, 0))  # its host fell silent long ago
        self.state = self.journal.folder / "state"
        write_record(
            self.state, RunRecord("name", as_tree(self.experiment), resolved_settings(self.experiment))
        )
        self.content = (self.state / "run.json").read_bytes()

    def make(self, random: Random) -> bytes:
        if random.random() < 0.5:
            return damaged(random, self.content, self.content)
        mutated = mutated_json(random, json.loads(self.content))
        with suppress(ValueError, TypeError, RecursionError, AttributeError):
            record = json.loads(mutated)
            if random.random() < 0.7:  # as whoever made it up would
                record["digest"] = digest({name: value for name, value in record.items() if name != "digest"})
            mutated = json.dumps(record)
        return mutated.encode("utf-8", "replace")

    def read(self, content: bytes) -> None:
        (self.state / "run.json").write_bytes(content)
        for run in list_interrupted_runs(self.place):
            record = run.record
            check(isinstance(record.requested, dict), "the experiment is not a tree")
            changed_settings(run, as_tree(self.experiment))
            point = ResumePoint(record.requested, run.run_id, record.name, resolved=record.resolved)
            apply_resume_point(self.experiment, point)
        try:
            runs_to_resume(self.place, self.experiment, Options(resume="aaaaaaaa"))
        except UserError as error:
            check("\n" not in str(error), "a sentence of several lines")
            raise


class SnapshotFile(Target):
    """A snapshot: loaded bit-identical, or refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tensors = {"trainable/w": torch.arange(6.0).reshape(2, 3), "optimizer/0/step": torch.tensor(3.0)}
        paths = [
            Snapshot(1, place, 7, self.tensors, {"schedule": {}}).save(folder / "made", 9) for place in (2, 3)
        ]
        self.files = [path.read_bytes() for path in paths]

    def make(self, random: Random) -> bytes:
        return tensorfile.hostile(random, *self.files)

    def read(self, content: bytes) -> None:
        path = self.folder / "000001-00000002.safetensors"
        path.write_bytes(content)
        try:
            found = snapshot.load(path)
        except ValueError as error:
            raise UserError(str(error)) from None
        check((found.epoch, found.step, found.values) == (1, 7, {"schedule": {}}), "another position loads")
        same = found.tensors.keys() == self.tensors.keys() and all(
            torch.equal(value, self.tensors[name]) for name, value in found.tensors.items()
        )
        check(same, "other numbers load")
