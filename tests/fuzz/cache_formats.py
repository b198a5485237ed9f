"""Caches: features, their recipes, scans, channel statistics. Damage costs only time."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from fuzz import tensorfile
from fuzz.damage import damaged, mutated, mutated_json
from fuzz.target import Target, check
from runner.cli import store as store_command
from runner.config.data_schema import DataConfig
from runner.config.schema import Normalization
from runner.data import channel_stats
from runner.data import scan as scans
from runner.data.dataset_listing import list_dataset
from runner.features import eviction, store_lock
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore, checksum
from runner.utils.console import Terminal
from runner.utils.hashing import digest_bytes, raw_digest

QUIET = Terminal(enabled=False)


def eight_keys() -> FeatureKeys:
    content = b"".join(raw_digest(bytes([number])) for number in range(8))
    return FeatureKeys(np.frombuffer(content, np.uint8).reshape(8, 20), -1)


class StoreFile(Target):
    """A shard of features: rows are read as they were written, or they are missing. With a forged checksum the damage
    cannot be detected, but must do no harm."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = eight_keys()
        self.rows = torch.arange(8 * 4, dtype=torch.float32).reshape(8, 4) / 7
        self.files = [
            self._file(self.keys.take(part), self.rows[list(part)]) for part in (range(4), range(4, 8))
        ]
        self.store = ShardStore(folder / "features", {"of": "fuzz"}, {"layer": "of fuzz"})
        self.store.write(self.keys.take([0]), self.rows[:1])

    @staticmethod
    def _file(keys: FeatureKeys, rows: torch.Tensor) -> bytes:
        metadata = {"keys": keys.to_json(), "seconds": "0.5", "checksum": checksum(keys.to_json(), rows)}
        return safetensors.torch.save({"features": rows}, metadata)

    def make(self, random: Random) -> bytes:
        if random.random() < 0.7:
            return b"0" + tensorfile.hostile(random, *self.files)
        keys: Any = mutated(random, json.loads(self.keys.take(range(4)).to_json()))
        rows = random.choice(
            (
                self.rows[:4],
                self.rows[:4, :3],
                self.rows[:3],
                self.rows[:0],
                self.rows[0, 0],
                self.rows[:4].long(),
                self.rows[:4].half(),
                self.rows[:4].reshape(4, 2, 2),
                torch.zeros(4, 0),
            )
        ).contiguous()
        try:
            metadata = {
                "keys": json.dumps(keys),
                "seconds": random.choice(("0.5", "nan", "-1", "1e999", "x")),
            }
            metadata["checksum"] = checksum(metadata["keys"], rows)
        except (TypeError, UnicodeEncodeError):
            metadata["checksum"] = "00000000"
        return b"1" + safetensors.torch.save({"features": rows}, metadata)

    def read(self, content: bytes) -> None:
        folder = self.store.folder
        for path in folder.glob("*.safetensors"):
            path.unlink()
        (folder / f"{1:032}.safetensors").write_bytes(self.files[1])
        (folder / f"{0:032}.safetensors").write_bytes(content[1:])
        store = ShardStore(self.folder / "features", {"of": "fuzz"}, {"layer": "of fuzz"})
        store.refresh()
        for _ in range(3):
            present = sorted({*range(8)} - set(store.missing(self.keys).tolist()))
            if not store.verify(self.keys.take(present)):
                break
        seconds = store.compute_seconds(self.keys)
        check(math.isfinite(seconds) and seconds >= 0, f"rows cost {seconds} s")
        if content[:1] == b"0":
            check(set(present) >= {4, 5, 6, 7}, "rows of another file were lost")
        if present:
            rows = store.read(self.keys.take(present))
            check(len(rows) == len(present), "some rows are not there")
            if content[:1] == b"0":
                check(torch.equal(rows, self.rows[present]), "other rows come back")
        store.release()


class Recipe(Target):
    """recipe.json of a store, as `runner store list` prints it."""

    CONTENT: ClassVar[dict[str, Any]] = {
        "description": {
            "layer": "vgg11 avgpool",
            "view": "not augmented, 32 px",
            "computed": "precision no, cpu",
        },
        "recipe": {"batch_size": 8, "libraries": ["torch 2.15.0"], "view": {"crop": 32}},
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = ShardStore(folder / "features", {"of": "fuzz"}, {"layer": "of fuzz"})
        self.store.write(eight_keys().take([0]), torch.zeros(1, 2))
        self.store.release()

    def make(self, random: Random) -> bytes:
        content = json.dumps(self.CONTENT, indent=1).encode()
        if random.random() < 0.4:
            return damaged(random, content, content)
        return mutated_json(random, self.CONTENT).encode("utf-8", "surrogatepass")

    def read(self, content: bytes) -> None:
        (self.store.folder / store_lock.RECIPE_FILE).write_bytes(content)
        (found,) = eviction.list_stores(self.store.folder.parent)
        size = sum(path.stat().st_size for path in self.store.folder.iterdir())
        check(found.folder == self.store.folder and found.bytes == size, "another store is found")
        for words in (["list", "--json"], ["list"]):
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                store_command.main([*words, "--cache", str(self.folder)])
            text = output.getvalue()
            check("\x1b" not in text and "\0" not in text, "what is shown steers the terminal")
            check(len(text) < 10_000, f"{len(text):,} characters are shown")
            if "--json" in words:
                (content,) = json.loads(text, parse_constant=_refuse)
                check(content["name"] == found.name and content["bytes"] == size, f"content is {text[:300]}")


def _refuse(word: str) -> None:
    check(False, f"JSON has no {word}")


class Scan(Target):
    """A cached scan: the result is the same as without it. With a forged digest it must do no harm."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = folder / "images"
        for label in ("cat", "dog"):
            (self.root / label).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (4 + number, 4), "red" if label == "cat" else "blue").save(
                    self.root / label / f"{number}.png"
                )
        self.data = DataConfig(kind="folder", root=str(self.root))
        (self.root / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n")
        self.found = self._scan()
        (self.memory,) = (folder / "cache" / "scans").glob("*/*")
        self.seed = self.memory.read_bytes()

    def _scan(self) -> scans.Verdicts:
        listing = list_dataset(self.data, self.folder / "cache", QUIET)
        return scans.scan_images(listing, self.folder / "cache", QUIET)

    def make(self, random: Random) -> bytes:
        changed = damaged(random, self.seed, self.seed)
        if random.random() < 0.5:
            return b"0" + changed
        return b"1" + digest_bytes(changed[41:]).encode() + b"\n" + changed[41:]

    def read(self, content: bytes) -> None:
        self.memory.write_bytes(content[1:])
        found = self._scan()
        if content[:1] == b"0":
            check(np.array_equal(found.digests, self.found.digests), f"other contents: {found}"[:900])
        check(found.digests.shape == self.found.digests.shape, "other files are found")
        check(found.errors == self.found.errors, f"other errors: {found.errors}"[:900])
        check(set(found.gray) <= set(range(len(found.digests))), f"gray values: {found.gray}"[:900])


class Statistics(Target):
    """Cached channel statistics: they are read as they were written, or computed again."""

    WRITTEN = Normalization((0.485123, 0.456, 0.406), (0.229, 0.224, 0.225))

    def make(self, random: Random) -> bytes:
        content = channel_stats.statistics_to_json(self.WRITTEN)
        if random.random() < 0.4:
            return damaged(random, content.encode(), content.encode())
        return mutated_json(random, json.loads(content)).encode("utf-8", "surrogatepass")

    def read(self, content: bytes) -> None:
        path = self.folder / "statistics.json"
        path.write_bytes(content)
        cached = channel_stats._read_cached(path)
        check(cached in (None, self.WRITTEN), f"other numbers are read: {cached}")
