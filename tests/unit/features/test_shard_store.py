"""The store of features on disk: reading and writing shards, and damaged ones."""

from __future__ import annotations

import errno
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_features import flip_a_bit, keys_of, shards
from safetensors.torch import save_file

from runner.features import shard_store
from runner.features.keys import FeatureKeys
from runner.features.shard_store import TENSOR, ShardStore, ShardWriter
from runner.utils.hashing import digest_bytes

ONE = torch.ones(1, 4)


class TestShards:
    def test_are_read_in_the_requested_order(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {"recipe": 1})
        features = torch.rand(5, 4, dtype=torch.float32).bfloat16()
        store.write(keys_of("abc"), features[:3])
        store.write(keys_of("de"), features[3:])
        store.refresh()
        assert store.missing(keys_of("exay")).tolist() == [1, 3]
        assert torch.equal(store.read(keys_of("eaca")), features[[4, 0, 2, 0]])
        with pytest.raises(KeyError):
            store.read(keys_of("ax"))

    def test_those_of_earlier_versions_are_read(self, tmp_path: Path) -> None:
        features = torch.rand(3, 2, 2).bfloat16()
        texts = [f"{digest_bytes(name)}:7" for name in (b"a", b"b", b"c")]
        header = zlib.crc32(f"{texts} {(3, 2, 2)} torch.bfloat16".encode())
        check = zlib.crc32(features.view(torch.uint8).numpy().tobytes(), header)
        metadata = {"keys": json.dumps(texts), "seconds": "6.0", "checksum": f"{check:08x}"}
        store = ShardStore(tmp_path, {})
        store.folder.mkdir()
        save_file({TENSOR: features}, store.folder / "0123.safetensors", metadata)
        store.refresh()
        keys = keys_of("cxa", view=7)
        assert store.missing(keys).tolist() == [1]
        assert store.verify(keys) == []
        assert torch.equal(store.read(keys.take([0, 2])), features[[2, 0]])
        assert store.compute_seconds(keys) == 4.0
        assert len(store.missing(keys_of("cxa", view=8))) == 3

    def test_every_recipe_has_its_own_store(self, tmp_path: Path) -> None:
        ShardStore(tmp_path, {"precision": "no", "view": {"crop": 32}}).write(keys_of("a"), ONE)
        for recipe, missing in (
            ({"view": {"crop": 32}, "precision": "no"}, []),
            ({"precision": "bf16", "view": {"crop": 32}}, [0]),
            ({"precision": "no", "view": {"crop": 48}}, [0]),
        ):
            other = ShardStore(tmp_path, recipe)
            other.refresh()
            assert other.missing(keys_of("a")).tolist() == missing

    def test_those_of_another_process_are_found(self, tmp_path: Path) -> None:
        own, other = ShardStore(tmp_path, {}), ShardStore(tmp_path, {})
        own.refresh()
        other.write(keys_of("a"), ONE)
        assert own.missing(keys_of("a")).tolist() == [0]
        own.refresh()
        assert own.missing(keys_of("a")).tolist() == []

    def test_a_file_that_another_host_replaced(self, tmp_path: Path) -> None:
        store, other = ShardStore(tmp_path, {}), ShardStore(tmp_path, {})
        store.write(keys_of("a"), ONE)
        store.refresh()
        (old,) = shards(store)
        other.write(keys_of("a"), ONE)
        old.unlink()
        assert torch.equal(store.read(keys_of("a")), ONE)
        for path in shards(store):
            path.unlink()
        with pytest.raises(KeyError):
            store.read(keys_of("a"))

    def test_one_that_is_gone_when_it_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A network file system lists a file for a while after another host removed it."""
        ShardStore(tmp_path, {}).write(keys_of("a"), ONE)
        store = ShardStore(tmp_path, {})

        def stale(*_: object) -> None:
            raise OSError(f"Stale file handle (os error {errno.ESTALE})")

        with monkeypatch.context() as patch:
            patch.setattr(shard_store, "safe_open", stale)
            store.refresh()
        assert store.missing(keys_of("a")).tolist() == [0]
        assert len(shards(store)) == 1, "it is no damage"
        store.refresh()
        assert store.missing(keys_of("a")).tolist() == []

    def test_state_what_computing_them_took(self, tmp_path: Path) -> None:
        ShardStore(tmp_path, {}).write(keys_of("ab"), torch.ones(2, 4), seconds=3.0)
        store = ShardStore(tmp_path, {})
        store.refresh()
        assert store.compute_seconds(keys_of("aax")) == 3.0

    def test_a_feature_in_two_of_them_survives_the_loss_of_one(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        store.write(keys_of("a"), ONE)
        store.write(keys_of("a"), ONE)
        store.refresh()
        shards(store)[0].unlink()
        store.refresh()
        assert torch.equal(store.read(keys_of("a")), ONE)

    def test_more_of_them_than_can_be_mapped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_store, "MAX_OPEN_MAPS", 2)
        store = ShardStore(tmp_path, {})
        for number in range(5):
            store.write(keys_of(str(number)), torch.full((1, 4), float(number)))
        store.refresh()
        for _ in range(2):
            assert store.read(keys_of("01234"))[:, 0].tolist() == [0, 1, 2, 3, 4]

    def test_those_that_are_read_at_once_do_not_stay_mapped(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        store.write(keys_of("abcd"), torch.rand(4, 4))
        store.refresh()
        store.read(keys_of("a"))
        assert len(store._maps) == 1
        store.read(keys_of("abc"))
        assert len(store._maps) == 0

    def test_of_many_features_take_little_memory(self, tmp_path: Path) -> None:
        digests = np.random.default_rng(0).integers(256, size=(100_000, 20), dtype=np.uint8)
        for part in np.split(digests, 10):
            ShardStore(tmp_path, {}).write(FeatureKeys(part, 0), torch.ones(len(part), 1))
        store, keys = ShardStore(tmp_path, {}), FeatureKeys(digests[::-1].copy(), 0)
        tracemalloc.start()
        store.refresh()
        assert len(store.missing(keys)) == 0
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 40 * len(keys)  # 28 for the index, 8 for the places that were found
        assert peak < 150 * len(keys)
        assert torch.equal(store.read(keys), torch.ones(len(keys), 1))

    def test_of_another_shape_or_dtype_are_dropped(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        store.write(keys_of("a"), ONE)
        store.refresh()
        assert store.verify(keys_of("a")) == []
        for other in (torch.ones(1, 5), ONE.double()):
            store.write(keys_of("b"), other)
            store.refresh()
            assert len(store.verify(keys_of("ab"))) == 1
            assert store.missing(keys_of("ab")).tolist() == [1]


class TestDamage:
    @pytest.fixture
    def damaged(self) -> list[Path]:
        return []

    @pytest.fixture
    def store(self, tmp_path: Path, damaged: list[Path]) -> ShardStore:
        ShardStore(tmp_path, {}).write(keys_of("ab"), torch.rand(2, 40))
        ShardStore(tmp_path, {}).write(keys_of("c"), torch.rand(1, 40))
        return ShardStore(tmp_path, {}, on_damage=damaged.append)

    def is_whole(self, store: ShardStore) -> bool:
        """Whether a and b are there after verification. c must be in any case."""
        store.refresh()
        store.verify(keys_of("abc"))
        missing = store.missing(keys_of("abc")).tolist()
        assert missing in ([], [0, 1])
        return not missing

    def larger(self, store: ShardStore) -> Path:
        """The shard of a and b."""
        return max(shards(store), key=lambda path: path.stat().st_size)

    def test_truncated_at_any_length(self, store: ShardStore, tmp_path: Path) -> None:
        path = self.larger(store)
        content = path.read_bytes()
        for length in range(0, len(content), 9):
            path.write_bytes(content[:length])
            assert not self.is_whole(ShardStore(tmp_path, {})), length
            assert not path.exists()
        path.write_bytes(content)
        assert self.is_whole(ShardStore(tmp_path, {}))

    def test_a_bit_flipped_anywhere(self, store: ShardStore, tmp_path: Path) -> None:
        path = self.larger(store)
        content = path.read_bytes()
        reader = ShardStore(tmp_path, {})
        reader.refresh()
        expected = reader.read(keys_of("ab"))
        for index in range(0, len(content), 3):
            flipped = bytearray(content)
            flipped[index] ^= 1 << index % 8
            path.write_bytes(flipped)
            again = ShardStore(tmp_path, {})
            if self.is_whole(again):  # the bit was of the stored time, or of white space
                assert torch.equal(again.read(keys_of("ab")), expected), index
        path.write_bytes(content)
        assert self.is_whole(store)

    def test_is_reported_once_and_verified_once(
        self, store: ShardStore, damaged: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.larger(store)
        flip_a_bit(path)
        verified: list[Path] = []
        is_intact = shard_store.is_intact
        monkeypatch.setattr(shard_store, "is_intact", lambda path: verified.append(path) or is_intact(path))
        assert not self.is_whole(store)
        assert not self.is_whole(store)
        assert damaged == [path]
        assert len(verified) == 2

    def test_in_a_read_only_store_it_is_ignored(
        self, store: ShardStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.larger(store)
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        assert not self.is_whole(store)
        assert path.exists()

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100])
    def test_files_that_are_no_shards_are_dropped(self, store: ShardStore, content: bytes) -> None:
        (store.folder / "0.safetensors").write_bytes(content)
        save_file({TENSOR: torch.zeros(1, 4)}, store.folder / "1.safetensors")
        metadata = {"keys": "{", "seconds": "0", "checksum": ""}
        save_file({TENSOR: torch.zeros(1, 4)}, store.folder / "2.safetensors", metadata)
        assert self.is_whole(store)
        assert len(shards(store)) == 2


class TestWriter:
    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = ShardStore(tmp_path, {})

        def fail(_: object, temporary: Path, *__: object) -> None:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shard_store, "save_tensors", fail)
        with pytest.raises(OSError, match="No space left"), ShardWriter(store) as writer:
            writer.add(keys_of("a"), ONE)
        assert sorted(path.name for path in store.folder.iterdir()) == ["in-use", "recipe.json"]

    def test_what_was_collected_is_written_when_the_block_is_interrupted(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        with pytest.raises(KeyboardInterrupt), ShardWriter(store) as writer:  # noqa: PT012
            writer.add(keys_of("a"), ONE)
            writer.add(keys_of("b"), ONE)
            raise KeyboardInterrupt
        store.refresh()
        assert store.missing(keys_of("ab")).tolist() == []
        assert len(shards(store)) == 1

    def test_shards_have_a_reasonable_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_store, "SHARD_BYTES", 64)
        store = ShardStore(tmp_path, {})
        with ShardWriter(store) as writer:
            for number in range(8):
                writer.add(keys_of(str(number)), ONE)  # 16 bytes
        assert len(shards(store)) == 2
