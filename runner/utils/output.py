"""Standard output and error of a command: characters that they cannot show, and readers that go away."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

SPELLINGS = {
    "…": "...",
    "–": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "→": "->",
    "±": "+-",
    "≥": ">=",
    "✓": "ok",
    "✗": "x",
    "²": "^2",
}
"""What is printed where an encoding lacks our own characters; others become escapes such as `\\xe9`."""
FALLBACK = "runner.fallback"
"""Name of the error handler that does so."""


def _fallback(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle a character that an encoding lacks. Bytes of file names that were no text are printed as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return SPELLINGS.get(character) or character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error(FALLBACK, _fallback)


def prepare_output() -> None:
    """Let standard output and error take every character, whatever their encoding, and exist.

    Where one is closed (`>&-`), the next file that is opened would take its place, and what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=FALLBACK)


def outlive_readers() -> None:
    """Go on if what reads standard output or error goes away (`| head`, a log collector, a terminal).

    What is printed then is lost. For commands whose work is more than what they print.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A test or a notebook has replaced other streams.
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _outliving(stream))


def label_lines(label: str) -> None:
    """Begin each line that this process prints from now on with a label: several hosts write into one log."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, _Labelled(getattr(sys, name), label))


class _Labelled(io.TextIOBase):
    """A stream of text whose lines begin with a label. It is no terminal: a progress bar redraws its line.

    Args:
        stream: Takes the lines.
        label: What each begins with.
    """

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._at_start = True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text:
            start = self._label if self._at_start else ""
            self._at_start = text.endswith("\n")
            body = text[:-1] if self._at_start else text
            self._stream.write(start + body.replace("\n", f"\n{self._label}") + "\n" * self._at_start)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def discard(stream: TextIO) -> None:
    """Write what a stream still holds, and all that follows, to nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _OutlivingFile(io.FileIO):
    """A file descriptor that takes text even if nothing can be written to it."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A stream that writes as `stream` does, but outlives its reader."""
    try:
        stream.flush()
    except OSError:
        discard(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_OutlivingFile(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
