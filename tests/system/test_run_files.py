"""Exported runs go to a store whose artifacts lie on S3, and come back."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_runs import SECRET, add_run, everything
from s3_server import BUCKET, KEY_SECRET, S3Server
from stores import FailingClient, Store, copy_store, open_store

from runner.cli import main
from runner.tracking.run_import import import_run
from runner.tracking.run_lookup import find_run
from runner.utils.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_environment")]


@pytest.fixture
def on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`on_s3()`: from now on new experiments keep their artifacts there."""

    def set_variables() -> None:
        for name, value in {**s3.environment, "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{BUCKET}/runs"}.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_a_run_goes_to_s3_and_back(
    s3: S3Server,
    on_s3: Callable[[], None],
    mlflow_store: Store,
    mlflow_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(*words: object, root: Path) -> None:
        assert main.main([*map(str, words), "--tracking.root", str(root)]) == 0

    run_id = add_run(mlflow_store, tmp_path, "odd")
    before = everything(mlflow_store[1], run_id, tmp_path / "before")
    local, bucket = (copy_store(mlflow_template, tmp_path / name) for name in ("local", "bucket"))
    command("export-run", run_id, tmp_path / "run.zip", root=mlflow_store[0].root)
    on_s3()
    server, client = open_store(bucket)
    failing = FailingClient(client, 1000, ("set_terminated",))
    with pytest.raises(UserError, match="nothing was imported"):
        import_run(server, failing, tmp_path / "run.zip")  # type: ignore[arg-type]
    assert s3.file_names("runs/") == []
    command("import-run", tmp_path / "run.zip", root=bucket)
    assert len(s3.file_names("runs/")) == 3
    assert everything(client, find_run(client, run_id).run_id, tmp_path / "there") == before
    command("export-run", run_id, tmp_path / "again.zip", root=bucket)
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert not any(secret.encode() in content for secret in (KEY_SECRET, SECRET))
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    command("import-run", tmp_path / "again.zip", root=local)
    assert len(list((local / "artifacts").rglob("empty.bin"))) == 1
    client = open_store(local)[1]
    assert everything(client, find_run(client, run_id).run_id, tmp_path / "back") == before
