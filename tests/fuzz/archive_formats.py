"""Archives, WebDataset shards, and the cached index of an archive."""

from __future__ import annotations

import io
import random as random_module
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from random import Random

from fuzz.damage import damaged
from fuzz.target import Target, check
from runner.data.archives import files as archive_files
from runner.data.archives import index as archive_index
from runner.data.archives.listing import list_archive
from runner.data.archives.webdataset import list_shards, shard_names
from runner.data.listing import FileList
from runner.utils.console import Terminal
from runner.utils.text import valid_unicode

QUIET = Terminal(enabled=False)
CONTENTS = {
    f"{label}/{number}.jpg": random_module.Random(f"{label}{number}").randbytes(700 * number)
    for label in ("cat", "dög")
    for number in range(3)
}
NAMES = (
    "../x",
    "/etc/passwd",
    "C:/x",
    "a\\b",
    "cat",
    "cat/0.jpg",
    "./cat//0.jpg",
    ".hidden/x",
    "",
    ".",
    "a/../b",
)


class _Archive(Target):
    """An archive that is accepted: paths stay inside, and a member is read as it was written, or not at all."""

    name = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [self.written(CONTENTS), self.written(dict(list(CONTENTS.items())[:2]))]
        (folder / "user").mkdir()

    @staticmethod
    def written(members: dict[str, bytes]) -> bytes:
        raise NotImplementedError

    def make(self, random: Random) -> bytes:
        if random.random() < 0.3:
            members = dict(CONTENTS)
            members[random.choice(NAMES)] = members.pop(random.choice(list(members)))
            return self.written(members)
        return damaged(random, *random.sample(self.seeds, 2))

    def listed(self, content: bytes) -> FileList:
        path = self.folder / "user" / self.name
        path.write_bytes(content)
        archive_index.open_index.cache_clear()
        archive_files._opened.cache_clear()
        return list_archive(path, self.folder / "cache", QUIET)

    def read(self, content: bytes) -> None:
        found = self.listed(content)
        check(
            [path.name for path in (self.folder / "user").iterdir()] == [self.name], "something was unpacked"
        )
        paths = list(found.paths)
        check(paths == sorted(set(paths)), f"the paths are {paths}"[:500])
        check(len(paths) == len(found.stamps) == len(found.folder_of), "the columns differ in length")
        for path, folder in zip(paths, found.folder_of.tolist(), strict=True):
            parts = PurePosixPath(path).parts
            check(not path.startswith("/") and ".." not in parts, f"the path is {path!r}")
            check("/".join(parts) == path and "\0" not in path, f"the path is {path!r}")
            check(str(PurePosixPath(path).parent) in (found.folders[folder], "."), f"{path!r} is in {folder}")
            try:
                member = found.files.read(path)
            except OSError as error:
                check(bool(error.strerror), f"the error is {error!r}")
                continue
            self.check_member(path, member, found)

    def check_member(self, path: str, member: bytes, found: FileList) -> None:
        check(len(member) == found.stamps[list(found.paths).index(path), 0], "a member has another size")


class ZipFile(_Archive):
    """A zip file: its checksums tell what was damaged."""

    name = "a.zip"

    @staticmethod
    def written(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, (name, content) in enumerate(members.items()):
                method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), content, method)
        return buffer.getvalue()

    def check_member(self, path: str, member: bytes, found: FileList) -> None:
        super().check_member(path, member, found)
        if path in CONTENTS and found.stamps[list(found.paths).index(path), 1] != 0:
            known = {*CONTENTS.values(), b""}
            check(member in known or len(member) not in map(len, known), "damage was not noticed")


class TarFile(_Archive):
    """A tar file. Headers have checksums, contents have none."""

    name = "a.tar"

    @staticmethod
    def written(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


class CompressedTarFile(TarFile):
    """A tar.gz file: a checksum tells whether it was damaged."""

    name = "a.tar.gz"

    @staticmethod
    def written(members: dict[str, bytes]) -> bytes:
        import gzip

        return gzip.compress(TarFile.written(members), 1, mtime=0)


class Shard(Target):
    """A WebDataset shard: each image has a class that can be shown."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.members = {}
        for number in range(4):
            self.members[f"{number}.jpg"] = bytes([number]) * 10
            self.members[f"{number}.{'json' if number % 2 else 'cls'}"] = (
                b'{"label": "dog"}' if number % 2 else b"1"
            )
        self.seed = TarFile.written(self.members)

    def make(self, random: Random) -> bytes:
        if random.random() < 0.3:
            return damaged(random, self.seed, self.seed)
        members = dict(self.members)
        name = random.choice([name for name in members if not name.endswith(".jpg")])
        members[name] = damaged(random, members[name], b"[1, 2]")
        return TarFile.written(members)

    def read(self, content: bytes) -> None:
        path = self.folder / "0.tar"
        path.write_bytes(content)
        if not shard_names(list_archive(path, self.folder / "cache", QUIET)):
            return
        listing = list_shards(path, [path.name], self.folder / "cache", QUIET)
        check(len(listing.paths) == len(listing.labels) > 0, "there is no image")
        check(
            list(listing.classes) == sorted(set(listing.classes)), f"the classes are {listing.classes}"[:500]
        )
        for name in listing.classes:
            check(
                bool(name.strip()) and "\0" not in name and len(name.splitlines()) == 1,
                f"a class is {name!r}",
            )
            check(valid_unicode(name) == name, f"a class is {name!r}")


class Index(Target):
    """A cached index: damage is noticed, and it is made again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.archive = folder / "a.tar"
        self.archive.write_bytes(TarFile.written(CONTENTS))
        list_archive(self.archive, folder / "cache", QUIET)
        (self.index,) = (folder / "cache" / archive_index.FOLDER).glob("*.index")
        self.seed = self.index.read_bytes()

    def make(self, random: Random) -> bytes:
        return damaged(random, self.seed, self.seed)

    def read(self, content: bytes) -> None:
        self.index.unlink(missing_ok=True)  # others may have mapped it into memory
        self.index.write_bytes(content)
        archive_index.open_index.cache_clear()
        found = list_archive(self.archive, self.folder / "cache", QUIET)
        check({path: found.files.read(path) for path in found.paths} == CONTENTS, "other files are read")
