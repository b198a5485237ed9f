"""Hides passwords and tokens in text, before it is printed, recorded or stored where others can read it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "…"
"""Replaces a secret."""
_LOGIN_IN_URL = re.compile(
    r"""
    (?P<scheme>\b[a-z][a-z0-9+.-]*:/+)  # `Path` turns :// into :/
    (?P<user>[^\s/?\#:@'"]*)
    (?P<secret>:(?!\d{1,5}(?:[/?\#'"\s]|$))[^\s]*)?  # not a port; it may hold unescaped characters, even @
    @
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMED_SECRET = re.compile(
    r"""
    (
      (?:
        (?:passw(?:or)?d|pwd|passphrase|token|secret|credential|(?:api|access)[-_]?key|signature)\w*
        | \bsig
      )
      (?: = | ['"]\ *:\ * )  # in a query, in JSON
    | api-key:[ ]  # a header
    | --(?:\w+-)*(?:password|token|secret)\s+  # an option
    )
    (?!…)
    (?:'[^']*'|"[^"]*"|[^\s&;'"]+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LOGIN_HEADER = re.compile(r"""((?:\bBearer|Authorization['"]?: ?['"]?\w+|['"]Basic)\s+)[^\s'"]+""")


def redact(text: str) -> str:
    """`text` with … in place of passwords in addresses, values named password or token, and login headers.

    `postgresql://me:word@host/studies?token=abc` → `postgresql://me:…@host/studies?token=…`. The user name of an
    http address without a password is hidden, too: it can be a token. Where a secret ends is not always certain;
    then too much is hidden rather than too little.
    """
    text = _LOGIN_IN_URL.sub(_without_secret, text)
    text = _NAMED_SECRET.sub(rf"\g<1>{HIDDEN}", text)
    return _LOGIN_HEADER.sub(rf"\g<1>{HIDDEN}", text)


def error_line(error: object) -> str:
    """An error's message on one line of at most 300 characters, without secrets."""
    text = str(error)[:10_000]  # servers answer with whole pages
    return redact(" ".join(text.split()))[:300]


def _without_secret(match: re.Match[str]) -> str:
    scheme, user = match["scheme"], match["user"]
    if match["secret"] is not None:
        return f"{scheme}{user}:{HIDDEN}@"
    return f"{scheme}{HIDDEN}@" if user and scheme.lower().startswith("http") else match[0]


def without_credentials(address: str) -> str:
    """An address without user and password, for requests that need none."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
