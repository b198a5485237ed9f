"""Hides passwords and tokens in text, before it is printed, recorded or stored where others can read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "…"
"""Replaces a secret."""
_UP_TO_LAST_AT = re.compile(r"(?<!\S)\S*@")
"""The part of a word that may hold a login. Patterns here start once in a word or name: they take linear time."""
_LOGIN_IN_URL = re.compile(
    r"""
    (?<![a-z0-9+.-])
    (?P<scheme>[0-9+.-]*+[a-z][a-z0-9+.-]*+:/++)  # `Path` turns :// into :/
    (?P<user>[^\s/?\#:@'"]*+)
    (?P<secret>:(?!\d{1,5}[/?\#'"])[^\s]*)?  # not a port; it may hold unescaped characters, even @
    @
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAME = re.compile(
    r"""
    (?<![\w-])
    ([\w-]++)
    (?: = | ['"]\ *+:\ *+ | (?<=api-key):[ ] )  # in a query, in JSON, in a header
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"passw(or)?d|pwd|passphrase|token|secret|credential|(api|access)_?key|signature|^sig$", re.IGNORECASE
)
_OPTION = re.compile(r"--(?:\w++-)*?(?:password|token|secret)\s++", re.IGNORECASE)
_VALUE = re.compile(r"""(?!…)(?:'[^']*'|"[^"]*"|[^\s&;'"]+)""")
_LOGIN_HEADER = re.compile(r"""((?:\bBearer|Authorization['"]?: ?['"]?\w++|['"]Basic)\s++)[^\s'"]+""")


def redact(text: str) -> str:
    """`text` with … in place of passwords in addresses, values named password or token, and login headers.

    `postgresql://me:word@host/studies?token=abc` → `postgresql://me:…@host/studies?token=…`. The user name of an
    http address without a password is hidden, too: it can be a token. Where a secret ends is not always certain;
    then too much is hidden rather than too little.
    """
    text = _UP_TO_LAST_AT.sub(lambda word: _LOGIN_IN_URL.sub(_without_secret, word[0]), text)
    text = _without_values(text, (match for match in _NAME.finditer(text) if _is_secret(match[1])))
    text = _without_values(text, _OPTION.finditer(text))
    return _LOGIN_HEADER.sub(rf"\g<1>{HIDDEN}", text)


def _is_secret(name: str) -> bool:
    """Whether the last word of a name says that its value is secret: `db-password`, `x-api-key`."""
    name = re.sub("-key", "_key", name, flags=re.IGNORECASE)
    return _SECRET_NAME.search(name.rpartition("-")[2]) is not None


def _without_values(text: str, names: Iterable[re.Match[str]]) -> str:
    """The text without the values that follow these names."""
    parts, done = [], 0
    for name in names:
        if name.start() >= done and (value := _VALUE.match(text, name.end())):
            parts += [text[done : name.end()], HIDDEN]
            done = value.end()
    return "".join([*parts, text[done:]])


def error_line(error: object) -> str:
    """An error's message on one line of at most 300 characters, without secrets."""
    text = str(error)[:10_000]  # servers answer with whole pages
    return redact(" ".join(text.split()))[:300]


def _without_secret(match: re.Match[str]) -> str:
    scheme, user = match["scheme"], match["user"]
    if match["secret"] is not None:
        return f"{scheme}{user}:{HIDDEN}@"
    is_http = scheme.lower().lstrip("0123456789+.-").startswith("http")
    return f"{scheme}{HIDDEN}@" if user and is_http else match[0]


def without_credentials(address: str) -> str:
    """An address without user and password, for requests that need none."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
