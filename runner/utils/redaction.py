"""Words without their secrets: no password or token is said, recorded, or kept where others can read it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "…"
"""Stands for what is left out."""
_USER = re.compile(
    r"""
    (?P<scheme>\b[a-z][a-z0-9+.-]*:/+)  # a path's normalisation leaves one slash of two
    (?P<user>[^\s/?\#:@'"]*)
    (?P<secret>:(?!\d{1,5}(?:[/?\#'"\s]|$))[^\s]*)?  # no port; it may hold what belongs escaped, an @ too
    @
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMED = re.compile(
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
_HEADER = re.compile(r"""((?:\bBearer|Authorization['"]?: ?['"]?\w+|['"]Basic)\s+)[^\s'"]+""")


def redacted(text: str) -> str:
    """A text in which the passwords of addresses, what is called a password or token, and login headers are hidden.

    `postgresql://me:word@host/studies?token=abc` → `postgresql://me:…@host/studies?token=…`. The name of an
    http address without a password is hidden too: services take tokens there. Where a secret ends is not certain in
    a text; rather too much is hidden than too little.
    """
    text = _USER.sub(_without_secret, text)
    text = _NAMED.sub(rf"\g<1>{HIDDEN}", text)
    return _HEADER.sub(rf"\g<1>{HIDDEN}", text)


def _without_secret(found: re.Match[str]) -> str:
    scheme, user = found["scheme"], found["user"]
    if found["secret"] is not None:
        return f"{scheme}{user}:{HIDDEN}@"
    return f"{scheme}{HIDDEN}@" if user and scheme.lower().startswith("http") else found[0]


def without_login(address: str) -> str:
    """An address without user and password: what a request that needs none is sent to."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
