"""The feature store on disk: what is whole, what is shared, what goes when it is too much."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.cli.main import main
from runner.features import eviction
from runner.features import shard_store as store_module
from runner.features.shard_store import ShardStore, ShardWriter
from runner.utils.console import Terminal
from runner.utils.errors import UserError, user_message

QUIET = Terminal(enabled=False)
HOLDER = """
import sys, time
from pathlib import Path
from runner.store import Store
import torch
store = Store(Path(sys.argv[1]), {})
with store.computing(lambda: None):
    print("holding", flush=True)
    time.sleep(float(sys.argv[2]))
    store.write(["a"], torch.ones(1, 4))
"""


def holder(root: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that computes rows of a store for some seconds, then writes one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def files(store: ShardStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


class TestRows:
    def test_come_back_in_the_order_asked_for(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {"recipe": 1})
        rows = torch.rand(5, 4, dtype=torch.float32).bfloat16()
        store.write(["a", "b", "c"], rows[:3])
        store.write(["d", "e"], rows[3:])
        store.refresh()
        assert store.missing(["e", "x", "a", "y"]) == [1, 3]
        assert torch.equal(store.read(["e", "a", "c", "a"]), rows[[4, 0, 2, 0]])
        with pytest.raises(KeyError):
            store.read(["a", "x"])

    def test_another_recipe_is_another_store(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {"precision": "no", "view": {"crop": 32}})
        store.write(["a"], torch.ones(1, 4))
        for recipe, missing in (
            ({"view": {"crop": 32}, "precision": "no"}, []),
            ({"precision": "bf16", "view": {"crop": 32}}, [0]),
            ({"precision": "no", "view": {"crop": 48}}, [0]),
        ):
            other = ShardStore(tmp_path, recipe)
            other.refresh()
            assert other.missing(["a"]) == missing

    def test_another_process_s_file_is_learned_of(self, tmp_path: Path) -> None:
        mine, other = ShardStore(tmp_path, {}), ShardStore(tmp_path, {})
        mine.refresh()
        other.write(["a"], torch.ones(1, 4))
        assert mine.missing(["a"]) == [0]
        mine.refresh()
        assert mine.missing(["a"]) == []

    def test_what_they_cost_is_remembered(self, tmp_path: Path) -> None:
        ShardStore(tmp_path, {}).write(["a", "b"], torch.ones(2, 4), seconds=3.0)
        store = ShardStore(tmp_path, {})
        store.refresh()
        assert store.seconds(["a", "a", "x"]) == 3.0

    def test_same_row_of_two_files_outlives_one(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        store.write(["a"], torch.ones(1, 4))
        store.write(["a"], torch.ones(1, 4))
        store.refresh()
        files(store)[0].unlink()
        store.refresh()
        assert torch.equal(store.read(["a"]), torch.ones(1, 4))

    def test_more_files_than_maps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "MAX_OPEN_MAPS", 2)
        store = ShardStore(tmp_path, {})
        for number in range(5):
            store.write([str(number)], torch.full((1, 4), float(number)))
        store.refresh()
        for _ in range(2):
            assert store.read([str(n) for n in range(5)])[:, 0].tolist() == [0, 1, 2, 3, 4]


class TestDamage:
    @pytest.fixture
    def damaged(self) -> list[Path]:
        return []

    @pytest.fixture
    def store(self, tmp_path: Path, damaged: list[Path]) -> ShardStore:
        ShardStore(tmp_path, {}).write(["a", "b"], torch.rand(2, 40))
        ShardStore(tmp_path, {}).write(["c"], torch.rand(1, 40))
        return ShardStore(tmp_path, {}, on_damage=damaged.append)

    def whole(self, store: ShardStore) -> bool:
        """Whether rows a and b are there after a check; row c must be in any case."""
        store.refresh()
        store.verify(["a", "b", "c"])
        missing = store.missing(["a", "b", "c"])
        assert missing in ([], [0, 1])
        return not missing

    def larger(self, store: ShardStore) -> Path:
        return max(files(store), key=lambda path: path.stat().st_size)

    def test_truncated_at_any_length(self, store: ShardStore, tmp_path: Path) -> None:
        path = self.larger(store)
        content = path.read_bytes()
        for length in range(0, len(content), 9):
            path.write_bytes(content[:length])
            assert not self.whole(ShardStore(tmp_path, {})), length
            assert not path.exists()
        path.write_bytes(content)
        assert self.whole(ShardStore(tmp_path, {}))

    def test_bit_flipped_anywhere(self, store: ShardStore, tmp_path: Path) -> None:
        path = self.larger(store)
        content = path.read_bytes()
        untouched = store_rows(tmp_path)
        for place in range(0, len(content), 3):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            again = ShardStore(tmp_path, {})
            if self.whole(again):  # nothing that a row depends on: its recorded cost, or spaces
                assert torch.equal(again.read(["a", "b"]), untouched), place
        path.write_bytes(content)
        assert self.whole(store)

    def test_is_told_once_and_checked_once(
        self, store: ShardStore, damaged: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.larger(store)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        checks: list[Path] = []
        check = store_module.is_intact
        monkeypatch.setattr(store_module, "is_intact", lambda path: checks.append(path) or check(path))
        assert not self.whole(store)
        assert not self.whole(store)
        assert damaged == [path]
        assert len(checks) == 2

    def test_in_a_store_that_cannot_be_written_it_is_forgotten(
        self, store: ShardStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.larger(store)
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        assert not self.whole(store)
        assert path.exists()

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100])
    def test_file_that_is_no_store_s(self, store: ShardStore, tmp_path: Path, content: bytes) -> None:
        (store.folder / "0.safetensors").write_bytes(content)
        save_file({"rows": torch.zeros(1, 4)}, store.folder / "1.safetensors")
        said = {"keys": "{", "seconds": "0", "checksum": ""}
        save_file({"rows": torch.zeros(1, 4)}, store.folder / "2.safetensors", said)
        assert self.whole(store)
        assert len(files(store)) == 2


def store_rows(root: Path) -> torch.Tensor:
    store = ShardStore(root, {})
    store.refresh()
    return store.read(["a", "b"])


class TestWriting:
    def test_leaves_nothing_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = ShardStore(tmp_path, {})

        def break_off(tensors: object, aside: Path, *_: object) -> None:
            aside.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("runner.features.shard_store.write", break_off)
        with pytest.raises(OSError, match="No space left"), ShardWriter(store) as writer:
            writer.add(["a"], torch.ones(1, 4))
        assert sorted(path.name for path in store.folder.iterdir()) == ["in-use", "recipe.json"]

    def test_what_was_gathered_is_written_when_the_work_is_stopped(self, tmp_path: Path) -> None:
        store = ShardStore(tmp_path, {})
        with pytest.raises(KeyboardInterrupt), ShardWriter(store) as writer:  # noqa: PT012
            writer.add(["a"], torch.ones(1, 4))
            writer.add(["b"], torch.ones(1, 4))
            raise KeyboardInterrupt
        store.refresh()
        assert store.missing(["a", "b"]) == []
        assert len(files(store)) == 1

    def test_files_have_a_fair_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "SHARD_BYTES", 64)
        store = ShardStore(tmp_path, {})
        with ShardWriter(store) as writer:
            for number in range(8):
                writer.add([str(number)], torch.ones(1, 4))  # 16 bytes
        assert len(files(store)) == 2

    def test_full_disk(self, tmp_path: Path) -> None:
        place = tmp_path / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
        if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        try:
            store = ShardStore(place, {})
            store.write(["a"], torch.ones(1, 1000))
            with pytest.raises(OSError, match=r"(?i)no space") as failure, ShardWriter(store) as writer:
                writer.add(["b"], torch.ones(1, 100_000))
            assert "disk is full" in (user_message(failure.value) or "")
            assert len(list(store.folder.iterdir())) == 3
            fresh = ShardStore(place, {})
            fresh.refresh()
            assert fresh.missing(["a", "b"]) == [1]
            store.release()
            fresh.release()
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)

    @pytest.mark.parametrize(
        ("number", "words"), [(28, "disk is full"), (30, "read-only"), (13, "No permission")]
    )
    def test_what_a_disk_refuses_is_a_sentence(self, number: int, words: str) -> None:
        assert words in (user_message(OSError(number, os.strerror(number), "/place")) or "")


class TestTwoProcesses:
    def test_one_waits_and_shares(self, tmp_path: Path) -> None:
        other = holder(tmp_path, 0.5)
        store, waited = ShardStore(tmp_path, {}), []
        with store.computing(lambda: waited.append(True)):
            store.refresh()
            assert store.missing(["a"]) == []
        assert waited == [True]
        assert other.wait() == 0

    def test_killed_holder_lets_go(self, tmp_path: Path) -> None:
        other = holder(tmp_path, 60)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        store, waited = ShardStore(tmp_path, {}), []
        with store.computing(lambda: waited.append(True)):
            store.refresh()
            assert store.missing(["a"]) == [0]
        assert waited == []


class TestAllStores:
    @pytest.fixture
    def three(self, tmp_path: Path) -> list[ShardStore]:
        """Stores of 4 kB each, used a day, an hour and a minute ago."""
        made = []
        for name, ago in (("old", 86400), ("middle", 3600), ("new", 60)):
            store = ShardStore(tmp_path / "features", {"name": name}, {"layer": name, "view": "clean"})
            store.write(["a"], torch.ones(1, 1000))
            store.release()
            os.utime(store.folder / "recipe.json", (time.time() - ago,) * 2)
            made.append(store)
        return made

    def names(self, root: Path) -> list[str]:
        return [store.about["layer"] for store in eviction.list_stores(root / "features")]

    def test_longest_unused_goes_first(
        self, three: list[ShardStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        eviction.ensure_space(tmp_path / "features", 5000, 14_500, Terminal())
        assert self.names(tmp_path) == ["new", "middle"]
        said = capsys.readouterr().out
        assert three[0].folder.name[:10] in said
        assert "features.cap" in said

    def test_one_in_use_stays(self, three: list[ShardStore], tmp_path: Path) -> None:
        user = ShardStore(tmp_path / "features", {"name": "old"})
        user.refresh()
        os.utime(user.folder / "recipe.json", (0, 0))
        eviction.ensure_space(tmp_path / "features", 5000, 14_500, QUIET)
        assert self.names(tmp_path) == ["new", "old"]
        user.release()

    def test_what_does_not_fit_is_refused(
        self, three: list[ShardStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        eviction.ensure_space(tmp_path / "features", 0, 1, QUIET)
        assert len(self.names(tmp_path)) == 3
        with pytest.raises(UserError, match=r"features need 4\.9 KiB .*features\.cap is 1 B"):
            eviction.ensure_space(tmp_path / "features", 5000, 1, QUIET)
        monkeypatch.setattr("runner.features.eviction.free_bytes", lambda _: 100)
        with pytest.raises(UserError, match=r"need 4\.9 KiB, but .* has 100 B left"):
            eviction.ensure_space(tmp_path / "features", 5000, 1e9, QUIET)

    def test_nothing_is_removed_where_it_would_not_suffice(self, three: list[ShardStore], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"features\.cap"):
            eviction.ensure_space(tmp_path / "features", 5000, 4000, QUIET)
        assert len(self.names(tmp_path)) == 3

    def test_use_renews(self, three: list[ShardStore], tmp_path: Path) -> None:
        user = ShardStore(tmp_path / "features", {"name": "old"})
        user.refresh()
        assert self.names(tmp_path)[0] == "old"
        user.release()

    def test_removed_while_it_was_open_is_made_again(self, three: list[ShardStore], tmp_path: Path) -> None:
        user = ShardStore(tmp_path / "features", {"name": "old"})
        user.refresh()
        user.release()
        assert main(["store", "remove", "--all", "--cache", str(tmp_path)]) == 0
        user.refresh()
        assert user.missing(["a"]) == [0]
        user.write(["a"], torch.ones(1, 4))
        user.refresh()
        assert user.missing(["a"]) == []
        user.release()

    def test_what_a_killed_writer_left_is_cleared(self, three: list[ShardStore], tmp_path: Path) -> None:
        left = three[0].folder / ".a.safetensors.b.partial"
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
        user = ShardStore(tmp_path / "features", {"name": "old"})
        user.refresh()
        user.release()
        self.names(tmp_path)
        assert not left.exists()

    def test_half_removed_is_cleared(self, three: list[ShardStore], tmp_path: Path) -> None:
        three[0].folder.rename(three[0].folder.with_name(".removed-x"))
        assert self.names(tmp_path) == ["new", "middle"]
        assert not (tmp_path / "features" / ".removed-x").exists()

    def test_list(self, three: list[ShardStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["store", "list", "--cache", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert all(store.folder.name[:10] in said for store in three)
        assert main(["store", "list", "--json", "--cache", str(tmp_path)]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [fact["layer"] for fact in facts] == ["new", "middle", "old"]
        assert all(fact["bytes"] > 4000 for fact in facts)

    def test_remove(self, three: list[ShardStore], tmp_path: Path) -> None:
        cache = ["--cache", str(tmp_path)]
        assert main(["store", "remove", "--unused", "0.5", *cache]) == 0
        assert self.names(tmp_path) == ["new", "middle"]
        assert main(["store", "remove", three[2].folder.name[:10], *cache]) == 0
        assert self.names(tmp_path) == ["middle"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["remove"], "Which stores"),
            (["remove", "zz"], "No store's name begins"),
            (["remove", ""], "Several stores' names"),
            (["forget"], "invalid choice"),
        ],
    )
    def test_mistakes(
        self,
        three: list[ShardStore],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        said: str,
    ) -> None:
        cache = ["--cache", str(tmp_path)] if words != ["forget"] else []
        assert main(["store", *words, *cache]) == 2
        assert said in capsys.readouterr().err
        assert len(self.names(tmp_path)) == 3

    def test_one_in_use_is_not_removed(
        self, three: list[ShardStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        three[1].refresh()
        assert main(["store", "remove", "--all", "--cache", str(tmp_path)]) == 2
        assert three[1].folder.name[:10] in capsys.readouterr().err
        assert self.names(tmp_path) == ["middle"]
        three[1].release()
