"""What reading settings imports, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["--help"], ["--train.epoch", "3"], ["--print_config"]])
def test_settings_are_read_without_large_libraries(words: list[str]) -> None:
    source = (
        "import sys\nfrom contextlib import suppress\nfrom runner.config.parser import parse\n"
        "from runner.utils.errors import UserError\n"
        f"with suppress(SystemExit, UserError): parse({words!r})\n"
        "print(sorted({'torch', 'torchvision', 'mlflow', 'optuna', 'numpy', 'PIL'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
