"""Errors that the user can fix have a message of one sentence; passwords in it are hidden."""

from __future__ import annotations

import errno

import pytest

from runner.utils.errors import DivergedError, NotResumableError, UserError, user_message


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (UserError("There is no x; give another."), "There is no x"),
        (DivergedError("It diverged."), "diverged"),
        (NotResumableError("It cannot be resumed."), "resumed"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "a file"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "read-only"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_the_user_can_fix_has_a_message_of_one_line(error: Exception, part: str) -> None:
    message = user_message(error)
    assert message is not None
    assert part in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "I/O error"), KeyError("x")])
def test_other_errors_have_no_message(error: Exception) -> None:
    assert user_message(error) is None


def test_passwords_in_a_message_are_hidden() -> None:
    assert str(UserError("No answer from http://me:word@host.")) == "No answer from http://me:…@host."
