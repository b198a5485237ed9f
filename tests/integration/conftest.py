"""A tracking store for the tests of a module, and runs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import EXPERIMENT, Store, Track, copy_store, open_store

from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal


@pytest.fixture(scope="module")
def store(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests of a module: each looks at its own runs only."""
    return open_store(copy_store(mlflow_template, tmp_path_factory.mktemp("store")))


@pytest.fixture
def track(store: Store, silent: Terminal) -> Track:
    """`track("name")`: a run in the store, with the options of a `RunRequest`."""

    def start(name: str, client: Any = None, terminal: Terminal = silent, **request: Any) -> Any:
        return track_run(store[0], client or store[1], RunRequest(EXPERIMENT, name, **request), terminal)

    return start


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that takes the place of a model."""
    folder = tmp_path / "tiny"
    (folder / "artifacts" / "classifier").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    return folder
