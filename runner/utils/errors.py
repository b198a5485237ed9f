"""Errors that the user can fix, and the messages for them."""

from __future__ import annotations

import errno

from runner.utils.redaction import redact


class UserError(Exception):
    """An error that the user can fix. The message is one sentence: what is wrong, where, and how to fix it.

    Passwords in the message are hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class DivergedError(UserError):
    """Training diverged to values that are not finite. The same settings would diverge again."""


class NotResumableError(UserError):
    """An interrupted run cannot be resumed as requested. Its status stays as it was."""


class PeerLostError(UserError):
    """Another process of the launch has failed or is lost."""


def error_chain(error: BaseException) -> list[BaseException]:
    """An error and those that led to it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def user_message(error: BaseException) -> str | None:
    """One sentence for an error that the user can fix; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return (
            "A path begins with ~, but that user has no home folder here; write the whole path, or set HOME."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full (writing {error.filename or 'a file'}); free some space and run the command again (train"
            " continues with --resume auto)."
        )
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'The disk'} cannot be written: its file system is read-only; choose another place."
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"The path {str(error.filename)[:100]} cannot be used ({error.strerror}); correct it."
    if isinstance(error, PermissionError):
        return f"No permission for {error.filename}; change its mode or choose another place."
    return None
