"""The console script, as a user calls them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, RUNNER, environment

from runner.cli import main


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "jsonargparse", "numpy", "rich")
    code = (
        f"import sys; from runner.cli.main import main; status = main(['--help']);"
        f"print(status, [name for name in {heavy} if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.startswith("usage: runner VERB")
    assert outcome.stdout.splitlines()[-1] == "0 []"


def test_checks_before_the_launch_import_neither_torch_nor_mlflow(words: list[str]) -> None:
    code = (
        "import sys; from runner.cli import train; train.launch = lambda *_: 7;"
        "from runner.cli.main import main; status = main(sys.argv[1:]);"
        "print(status, [name for name in ('torch', 'mlflow') if name in sys.modules])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, "train", *words], env=environment(), capture_output=True, text=True
    )
    assert outcome.stdout.splitlines()[-1] == "7 []", outcome.stderr


def test_usage_names_every_verb(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    usage = capfd.readouterr().out
    for verb in main.VERBS:
        assert f"\n  {verb} " in usage
    assert main.main(["--version"]) == 0
    assert capfd.readouterr().out.strip()[0].isdigit()


MODULES = sorted(
    [path.stem for path in RUNNER.glob("*.py") if path.stem != "__init__"]
    + [path.parent.name for path in RUNNER.glob("*/__init__.py")]
)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_the_name_of_another_package(name: str) -> None:
    """`accelerate launch runner/train.py` puts runner/ first on the module path."""
    assert str(RUNNER) not in sys.path
    assert importlib.util.find_spec(name) is None


@pytest.mark.parametrize("script", ["train.py", "search.py", "cli/evaluate.py"])
def test_a_script_takes_its_folder_off_the_module_path(script: str) -> None:
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2]);"
        "print(sys.argv[1] in sys.path)"
    )
    path = RUNNER / script
    words = [sys.executable, "-c", code, str(path.parent), str(path)]
    outcome = subprocess.run(words, capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_launch_sh_is_whole() -> None:
    outcome = subprocess.run(["bash", "-n", str(ROOT / "launch.sh")], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert os.access(ROOT / "launch.sh", os.X_OK)


PYTHON = """#!/usr/bin/env bash
# Stands in for Python: makes an environment with itself in it, and notes each installation.
case "$*" in
  *"-m venv"*) folder="${@: -1}"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  *"-m pip"*) echo installed >>"$NOTES"; sleep 1
    printf '#!/usr/bin/env bash\\necho "runner $*"\\n' >"$(dirname "$0")/runner"; chmod +x "$(dirname "$0")/runner" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone, and a Python that installs nothing."""
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return tmp_path


def test_several_launches_of_a_fresh_clone_prepare_it_once(checkout: Path) -> None:
    launches = [
        subprocess.Popen(
            [checkout / "launch.sh", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for words in ([], ["sync"], ["train", "--train.epochs", "3"])
    ]
    outcomes = [each.communicate(timeout=60) for each in launches]
    assert [each.returncode for each in launches] == [0, 0, 0], outcomes
    assert [out for out, _ in outcomes] == [
        "runner train\n",
        "runner sync\n",
        "runner train --train.epochs 3\n",
    ]
    assert (checkout / "notes").read_text() == "installed\n"


def test_a_preparation_that_was_killed_is_done_again(checkout: Path) -> None:
    first = subprocess.Popen([checkout / "launch.sh"], stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 30
    while not (checkout / "notes").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    for count in (2, 2):  # done again once, and then there
        again = subprocess.run([checkout / "launch.sh"], capture_output=True, text=True, timeout=60)
        assert (again.returncode, again.stdout) == (0, "runner train\n"), again.stderr
        assert (checkout / "notes").read_text() == "installed\n" * count
