"""Passwords and tokens are hidden in text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.utils.redaction import error_line, redact, without_credentials


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("http://user:s3cret-token@host:5000/x", "http://user:…@host:5000/x"),
        ("https://s3cret-token@host", "https://…@host"),
        ("see 'postgresql://me:s3cret-token@host/db'.", "see 'postgresql://me:…@host/db'."),
        ("postgresql+psycopg://me:s3cret-token@a/b@host/db", "postgresql+psycopg://me:…@host/db"),
        ("postgresql://:s3cret-token@host/db", "postgresql://:…@host/db"),
        (
            "postgresql://host/db?user=me&password=s3cret-token&x=1",
            "postgresql://host/db?user=me&password=…&x=1",
        ),
        ("GET /?access_token=s3cret-token HTTP/1.1", "GET /?access_token=… HTTP/1.1"),
        ("dsn host=h password='s3cret token' user=me", "dsn host=h password=… user=me"),
        ("header value: 'Bearer s3cret-token\\n'", "header value: 'Bearer …'"),
        ("{'Authorization': 'Basic czNjcmV0Og=='}", "{'Authorization': 'Basic …'}"),
        ("https://store/x?sv=2&sig=s3cret-token&se=1", "https://store/x?sv=2&sig=…&se=1"),
        ('{"token": "s3cret token", "a": 1}', '{"token": …, "a": 1}'),
        ("x-api-key: s3cret-token", "x-api-key: …"),
        ("api-key=s3cret-token", "api-key=…"),
        ("runner train --tracking-token s3cret-token --a b", "runner train --tracking-token … --a b"),
        ("There is no http:/user:s3cret-token@host; give one", "There is no http:/user:…@host; give one"),
        ("-http://user:s3cret-token@host", "-http://user:…@host"),
        ("url=http://host/?a=1&token=s3cret-token&b=2", "url=http://host/?a=1&token=…&b=2"),
        ("--storage-password=s3cret-token", "--storage-password=…"),
        ("aws_access_key_id=s3cret-token", "aws_access_key_id=…"),
        ("a http://u:s3cret-token@h b http://v:s3cret-token@i", "a http://u:…@h b http://v:…@i"),
    ],
)
def test_secrets_are_hidden(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/small@champion",
        "postgresql://me@host:5432/db",
        "sqlite:////home/me/my runs/mlflow.db",
        "models:/small@champion, runs:/abc, file:///data/a@b.png",
        "there is no small@champion at http://host:5000; mail me@host",
        "/mnt/2026-01-01T10:30@camera/x.png",
        "the basic settings: optim.lr=0.1",
        "tokens: 3, key: value, a design=4, signal=2, its password: see the manual",
    ],
)
def test_text_without_secrets_is_not_changed(text: str) -> None:
    assert redact(text) == text


@given(
    scheme=st.sampled_from(["http", "https", "postgresql", "mysql+pymysql"]),
    user=st.text("abcXYZ019._-%", max_size=8),
    word=st.text(
        st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Z", "C"]), min_size=1
    ),
    around=st.sampled_from(["{}", "The server {} does not answer.", "'{}'", "({})", "x={}&y=1"]),
)
def test_any_password_in_an_address_is_hidden(scheme: str, user: str, word: str, around: str) -> None:
    password = f"q7{word}7q"
    redacted = redact(around.format(f"{scheme}://{user}:{password}@host/db"))
    assert password not in redacted
    assert "q7" not in redacted
    assert "host/db" in redacted


@pytest.mark.parametrize(
    "part",
    [
        *(
            "a:/",
            "a:/b",
            "a.",
            "a-",
            "1+",
            ":/",
            "http://u",
            "a:/b:c",
            "@",
            "a@",
            "a:/@",
            "token",
            "token-",
            "token=",
        ),
        *(
            "token='",
            "'",
            '"',
            'token"  ',
            "--a-",
            "--",
            "--token ",
            "Bearer ",
            "Authorization: ",
            "Authorization:x",
        ),
        *("key", "api-key", "_", " ", "…", "…=", "sig", "é"),
    ],
)
@pytest.mark.parametrize("end", ["", "@", "x", "=", " "])
def test_long_text_takes_linear_time(part: str, end: str) -> None:
    text = part * (100_000 // len(part)) + end
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 1  # quadratic time would be minutes


def test_credentials_are_removed_from_an_address() -> None:
    assert without_credentials("http://user:p@ss@[::1]:5000/x?y=1") == "http://[::1]:5000/x?y=1"
    assert without_credentials("https://host") == "https://host"


def test_the_line_of_an_error_is_short_and_has_no_secret() -> None:
    error = ValueError("refused\n  for postgresql://me:secret@host/db " + "because " * 1000)
    line = error_line(error)
    assert line.startswith("refused for postgresql://me:…@host/db because")
    assert "\n" not in line
    assert len(line) == 300
