"""Digests and seeds are the same in every version: views, splits and caches depend on them."""

from __future__ import annotations

from runner.utils.hashing import derive_seed, digest, digest_bytes


def test_digests_and_seeds_do_not_change() -> None:
    assert digest("a", 1, [2.5, None]) == "d4809e93708a15aa50670efd6eb274bb2bdb21b7"
    assert digest_bytes(b"abc") == "384264f676f39536840523f284921cdc68b6846b"
    assert derive_seed("view", 3, "x", 1) == 2109967844455491622


def test_every_part_of_a_key_matters() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a",), (["a", 1],), ("a1",)]
    assert len({digest(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_the_order_of_names_in_a_mapping_does_not_matter() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
