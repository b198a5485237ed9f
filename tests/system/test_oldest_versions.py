"""The oldest versions of packages that pyproject.toml declares: the unit tests pass with them, in a new environment."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def oldest_requirements() -> list[str]:
    """Each requirement with its lower bound as the version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return sorted({re.sub(r">=([\w.]+)", r"==\1", requirement) for requirement in declared})


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_unit_tests_pass_with_them(version: str, tmp_path: Path) -> None:
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        pytest.skip(f"there is no python{version}")
    python, install = tmp_path / "venv/bin/python", ("-m", "pip", "install", "-q", "--no-compile")
    requirements = oldest_requirements()
    assert "torch==2.11.0" in requirements
    subprocess.run([interpreter, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, *install, *requirements], check=True)
    subprocess.run([python, *install, "--no-deps", "-e", ROOT], check=True)
    tests = subprocess.run([python, "-m", "pytest", "tests/unit"], cwd=ROOT, capture_output=True, text=True)
    shutil.rmtree(tmp_path / "venv")  # several GB
    assert tests.returncode == 0, tests.stdout[-10000:]
    assert " passed" in tests.stdout
