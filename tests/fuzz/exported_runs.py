"""Files of exported runs."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from random import Random

from fuzz.damage import damaged, mutated_json
from fuzz.target import Target, check
from runner.tracking.archive_reader import extract, open_archive
from runner.tracking.run_archive import (
    DESCRIPTION,
    ArchivedInput,
    ArchivedModel,
    ArchivedRun,
    ArchiveWriter,
    RunArchive,
)

CONTENTS = {"manifest.csv": b"path,label\n", "checkpoints/best.safetensors": b"weights" * 40}


class ExportedRun(Target):
    """What is accepted has the content that was exported, and nothing is written outside its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "files" / "checkpoints").mkdir(parents=True)
        for name, content in CONTENTS.items():
            (folder / "files" / name).write_bytes(content)
        self.whole = self._written("a1")
        self.other = self._written("b2")

    def _written(self, run_id: str) -> bytes:
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as archive:
            writer = ArchiveWriter(archive)
            files = tuple(
                writer.add(self.folder / "files" / name, name, f"runs/{run_id}/artifacts")
                for name in CONTENTS
            )
            writer.finish(
                RunArchive(
                    (
                        ArchivedRun(
                            run_id,
                            *("vgg11", "flowers", "FINISHED", 1, 2, ""),
                            {"lr": "0.1"},
                            {"note": "ü"},
                            {"loss": ((0, 1000, 0.25), (1, 1001, float("nan")))},
                            (ArchivedInput("flowers", "d1", "local", "/data", tags={"context": "train"}),),
                            files,
                            ArchivedModel({"top1": 0.5}, 3, "m1", "flowers", "top1", files[1:]),
                        ),
                    )
                )
            )
        return raw.getvalue()

    def make(self, random: Random) -> bytes:
        if random.random() < 0.5:
            return damaged(random, self.whole, self.other)
        with zipfile.ZipFile(io.BytesIO(self.whole)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        description = mutated_json(random, json.loads(entries[DESCRIPTION]))
        entries[DESCRIPTION] = description.encode("utf-8", "replace")
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return raw.getvalue()

    def read(self, content: bytes) -> None:
        path, folder = self.folder / "run.zip", self.folder / "place" / "out"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        path.write_bytes(content)
        with open_archive(path) as (archive, described):
            extract(archive, described, folder)
        check([each.name for each in folder.parent.iterdir()] == ["out"], "a file is outside")
        for run in described.runs:
            for file in run.files:
                written = (folder / run.id / "artifacts" / file.path).read_bytes()
                check(written in CONTENTS.values(), f"{file.path} has another content")
            check(all(type(value) is str for value in (*run.params.values(), *run.tags.values())), "no text")
