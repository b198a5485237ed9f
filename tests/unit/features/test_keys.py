"""Keys of features, and the index that finds them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cached_features import keys_of

from runner.features.key_index import KeyIndex
from runner.features.keys import FeatureKeys

DIGITS = "a" * 40


def digests(*numbers: int) -> np.ndarray:
    """Digests that end in these numbers (less than 2³²) and are equal before."""
    return np.frombuffer(b"".join(number.to_bytes(20, "big") for number in numbers), np.uint8).reshape(-1, 20)


class TestJson:
    @pytest.mark.parametrize("view", [-1, 0, 15])
    def test_is_the_list_of_texts_that_stores_always_had(self, view: int) -> None:
        keys = keys_of("abc", view)
        assert keys.to_json() == json.dumps([f"{bytes(row).hex()}:{view}" for row in keys.digests])
        again = FeatureKeys.from_json(keys.to_json())
        assert again.view == view
        assert np.array_equal(again.digests, keys.digests)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[]", "{", "null", '["a:-1"]', f'["{DIGITS}"]', f'["{DIGITS}:"]', f'["{DIGITS}:-0"]'),
            *(f'["{DIGITS.upper()}:0"]', f'["{DIGITS[1:]} :1"]', f'["{DIGITS}:1"]\n', f'["{DIGITS}:٣"]'),
            *(
                f'["{DIGITS}:1" , "{DIGITS}:1"]',
                f'["{DIGITS}:1", "{DIGITS}:2"]',
                f'["{DIGITS}:{"9" * 5000}"]',
            ),
        ],
    )
    def test_of_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 (the texts are Python's as well)
            FeatureKeys.from_json(text)


class TestIndex:
    def test_of_nothing_finds_nothing(self) -> None:
        assert KeyIndex().find(keys_of("ab").digests).tolist() == [-1, -1]
        assert KeyIndex().find(digests()).tolist() == []

    def test_finds_what_a_dictionary_finds(self) -> None:
        random = np.random.default_rng(0)
        pool = random.integers(0, 256, (600, 20), dtype=np.uint8)
        pool[::3, :8] = pool[0, :8]  # many begin with the same bytes
        index, expected = KeyIndex(), dict[bytes, int]()
        for shard in range(8):
            rows = pool[random.integers(0, 400, 60)]
            index.add(shard, rows)
            for row, digest in enumerate(rows):
                expected.setdefault(digest.tobytes(), shard << 32 | row)
            if shard % 3:  # sorted in at once, or several together
                index.find(pool)
        wanted = pool[random.permutation(600)]
        assert index.find(wanted).tolist() == [expected.get(digest.tobytes(), -1) for digest in wanted]

    def test_compares_all_bytes(self) -> None:
        index = KeyIndex()
        index.add(0, digests(5, 3, 1 << 40))
        assert index.find(digests(3, 4, 5, 1 << 40, 1 << 41)).tolist() == [1, -1, 0, 2, -1]

    def test_a_feature_in_two_shards_survives_the_loss_of_one(self) -> None:
        index = KeyIndex()
        index.add(0, digests(1, 2))
        index.add(1, digests(2, 3))
        assert (index.find(digests(1, 2, 3)) >> 32).tolist() == [0, 0, 1]
        index.remove({0})
        assert index.find(digests(1, 2, 3)).tolist() == [-1, 1 << 32, 1 << 32 | 1]
