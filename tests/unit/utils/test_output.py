"""What a command prints: every character on every output, and readers that go away."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.utils import output

PRINT = "import sys; from runner.utils.output import prepare_output; prepare_output(); print(sys.argv[1]);"


def printed(text: str, encoding: str) -> bytes:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    process = subprocess.run(
        [sys.executable, "-c", PRINT, text], env=environment, capture_output=True, check=True
    )
    return process.stdout


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [("0.93 ± 0.01", "0.93 +- 0.01"), ("2 × …", "2 x ..."), ("blu\xe9", "blu\\xe9"), ("\u6771", "\\u6771")],
)
def test_an_output_without_unicode_takes_every_character(text: str, ascii_text: str) -> None:
    assert printed(text, "ascii") == ascii_text.encode() + b"\n"
    assert printed(text, "utf-8") == text.encode() + b"\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_is_no_text_is_printed_as_its_bytes(encoding: str) -> None:
    assert printed(os.fsdecode(b"blu\xe9"), encoding) == b"blu\xe9\n"


def test_text_that_cannot_be_decoded_stays_an_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xe9".decode("ascii", output.FALLBACK)


@pytest.mark.parametrize("closed", [1, 2])
def test_files_do_not_take_the_place_of_a_closed_output(closed: int, tmp_path: Path) -> None:
    program = (
        "import os, sys; from runner.utils.output import prepare_output, outlive_readers;"
        "prepare_output(); outlive_readers(); file = open(sys.argv[1], 'w');"
        "os.write(1, b'out'); os.write(2, b'err'); file.close(); print('end')"
    )
    words = f'exec "$0" "$@" {closed}>&-'
    path = tmp_path / "file"
    process = subprocess.run(["sh", "-c", words, sys.executable, "-c", program, path], capture_output=True)
    assert process.returncode == 0, process.stderr
    assert path.read_bytes() == b""


def test_a_command_outlives_what_reads_its_output(tmp_path: Path) -> None:
    program = (
        "import sys, time; from runner.utils.output import outlive_readers; outlive_readers();"
        "from runner.utils.console import Terminal; terminal = Terminal();"
        "terminal.line('first'); sys.stdin.read();"
        "[(terminal.line('x' * 9999), print('y', file=sys.stderr)) for _ in range(50)];"
        "open(sys.argv[1], 'w').write('done')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stderr.close()
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "done"


def test_a_stream_that_a_test_has_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    output.outlive_readers()
    assert sys.stdout is stream


def test_a_command_whose_reader_goes_away_ends_without_a_word() -> None:
    program = (
        "import sys; from runner.utils.exit_status import run_main; from runner.utils.console import Terminal;"
        "sys.exit(run_main(lambda: sum(Terminal().line('x' * 100) is None for _ in range(10_000))))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 128 + signal.SIGPIPE
