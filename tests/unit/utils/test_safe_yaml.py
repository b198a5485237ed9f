"""YAML is read as YAML 1.2 into plain values, within limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from runner.utils.errors import UserError
from runner.utils.safe_yaml import MAX_DEPTH, MAX_VALUES, dump_yaml, parse_yaml, read_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
"""Nine to the power of ten values in ten lines."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-1.5", -1.5),
        (".5", 0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("08", 8),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("e5", "e5"),
        ("inf", "inf"),
        ("<<: 1", {"<<": 1}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("{a: {b: [1, 2.0]}}", {"a": {"b": [1, 2.0]}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000 + "a",
        "".join(f"{' ' * n}a:\n" for n in range(2000)),
        "? " * 3000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" + "a," * (MAX_VALUES + 1) + "]",
        "&a [*a]",
        "&a {b: *a}",
        "*a",
        "a: 1\na: 2\n",
        "--- a\n--- b\n",
        "a: !!int x\n",
        "a: !!int [1]\n",
        "a: !!float x\n",
        "a: !!timestamp 2001-99-99\n",
        "a: !!binary x\n",
        "a: !!set {b, c}\n",
        "a: !!omap [b: 1]\n",
        "a: !unknown x\n",
        "!!python/name:os.system",
        "!!python/object/apply:os.system ['true']",
        "? [a, b]\n: 1\n",
        "a: " + "9" * 5000 + "\n",
        "\ta: 1\n",
        "'",
        "a: [\n",
        "a: b: c",
    ],
    ids=range(29),
)
def test_what_is_not_plain_yaml_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_yaml(path)
    sentence = str(refused.value)
    assert sentence.startswith(f"{path} ")
    assert "\n" not in sentence
    assert len(sentence) < 600


@pytest.mark.parametrize("content", [b"\x00\x01", b"\xff\xd8\xff\xe0 a picture", b"\xff"])
def test_a_file_that_is_not_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not valid YAML"):
        read_yaml(path)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", min_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("flow", [False, True])
@example(value="\x85")
@example(value=["a\u2028b"])
@given(value=plain | st.from_regex(r"[-+0-9.:_exoEnaif~<=]{1,8}", fullmatch=True))
def test_values_written_are_read_back(flow: bool, value: Any) -> None:
    text = dump_yaml(value, flow)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value, "by a reader of YAML 1.1 too"
