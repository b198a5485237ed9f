"""`runner store`: listing and removing cached features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cached_features import old_stores, store_names

from runner.cli.main import main
from runner.features.shard_store import ShardStore


@pytest.fixture
def stores(tmp_path: Path) -> list[ShardStore]:
    """The stores old, middle and new."""
    return old_stores(tmp_path)


def test_list(stores: list[ShardStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "list", "--cache", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(store.folder.name[:10] in output for store in stores)
    assert main(["store", "list", "--json", "--cache", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in rows] == ["new", "middle", "old"]
    assert all(row["bytes"] > 4000 for row in rows)
    assert {row["folder"] for row in rows} == {str(store.folder) for store in stores}


def test_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "list", "--cache", str(tmp_path)]) == 0
    assert "No cached features" in capsys.readouterr().out


def test_remove(stores: list[ShardStore], tmp_path: Path) -> None:
    cache = ["--cache", str(tmp_path)]
    assert main(["store", "remove", "--unused", "0.5", *cache]) == 0
    assert store_names(tmp_path) == ["new", "middle"]
    assert main(["store", "remove", stores[2].folder.name[:10], *cache]) == 0
    assert store_names(tmp_path) == ["middle"]
    assert main(["store", "remove", "--all", *cache]) == 0
    assert store_names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["remove"], "needs names"),
        (["remove", "zz"], "No store has a name that starts with 'zz'"),
        (["remove", ""], "Several stores have names that start with ''"),
        (["forget"], "invalid choice"),
    ],
)
def test_mistakes(
    stores: list[ShardStore],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    cache = ["--cache", str(tmp_path)] if words != ["forget"] else []
    assert main(["store", *words, *cache]) == 2
    assert message in capsys.readouterr().err
    assert len(store_names(tmp_path)) == 3


def test_a_store_in_use_is_not_removed(
    stores: list[ShardStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores[1].refresh()
    assert main(["store", "remove", "--all", "--cache", str(tmp_path)]) == 2
    assert stores[1].folder.name[:10] in capsys.readouterr().err
    assert store_names(tmp_path) == ["middle"]
    stores[1].release()
