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
  *"-m pip index"*) name="${@: -1}"; echo "$name (9.0)"; echo "Available versions: $OFFERED" ;;
  *"-m pip"*) echo installed >>"$NOTES"; echo "$*" >"$NOTES.words"
    echo "Collecting torch"; echo "  Downloading torch.whl (900.1 MB)"; sleep "${SECONDS_TO_INSTALL:-1}"
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
    monkeypatch.setenv("OFFERED", "9.0, 8.0")
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


@pytest.mark.slow
def test_an_installation_that_takes_long_says_what_it_does(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDS_TO_INSTALL", "13")
    outcome = subprocess.run([checkout / "launch.sh"], capture_output=True, text=True, timeout=60)
    assert outcome.stdout == "runner train\n"
    assert "Downloading torch.whl (900.1 MB)" in outcome.stderr


@pytest.mark.parametrize("has_gpu", [False, True])
def test_cpu_packages_of_torch_are_taken_where_the_index_has_them_and_there_is_no_gpu(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    pinned = dict(line.strip().split("==") for line in (checkout / "constraints.txt").open() if "==" in line)
    names = [f"{name}=={pinned[name]}+cpu" for name in ("torch", "torchvision")]
    monkeypatch.setenv("OFFERED", ", ".join(name.partition("==")[2] for name in names))
    if has_gpu:
        (checkout / "nvidia-smi").write_text("#!/bin/sh")
        (checkout / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{checkout}:{os.environ['PATH']}")
    elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    outcome = subprocess.run([checkout / "launch.sh"], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    words = (checkout / "notes.words").read_text().split()
    assert [name in words for name in names] == [not has_gpu] * 2


def test_other_packages_are_installed_where_the_index_has_none_for_the_cpu(checkout: Path) -> None:
    outcome = subprocess.run([checkout / "launch.sh"], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert "+cpu" not in (checkout / "notes.words").read_text()


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
