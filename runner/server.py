"""Which MLflow the records go to, and getting it ready: once, under a lock, before anything is trained."""

from __future__ import annotations

import http.client
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from runner.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Set before MLflow is imported: no telemetry, no pickles, and our own patience in place of its minutes."""
PATIENCE = 10.0
"""Seconds that a tracking server has for its first answer."""


@dataclass(frozen=True)
class Server:
    """An MLflow tracking store.

    Args:
        uri: Absolute.
        root: Folder of the journals, and of the embedded database and its artifacts.
    """

    uri: str
    root: Path

    @property
    def embedded(self) -> bool:
        """Whether it is the database under `root` rather than one that MLFLOW_TRACKING_URI names."""
        return self.uri == _database_uri(self.root)

    def check_exists(self) -> None:
        """Raises `UserError` where the embedded database is not there: a command that only reads makes none."""
        if self.embedded and not (self.root / "mlflow.db").exists():
            raise UserError(f"There are no records in {self.root} yet; ./launch.sh makes the first.")

    def connect(self) -> MlflowClient:
        """A client, after making sure that the store answers; creates a sqlite database where there is none.

        Raises `UserError` where the server does not answer.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        ask(self.uri)
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        if not self.uri.startswith("sqlite:///"):
            return MlflowClient(self.uri)
        # Several processes that create one sqlite database at once corrupt it; without WAL readers block writers.
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
            with sqlite3.connect(self.uri.removeprefix("sqlite:///")) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        return client

    def experiment_id(self, client: MlflowClient, name: str) -> str:
        """The id of the MLflow experiment called `name`, which is created where there is none."""
        from mlflow.exceptions import MlflowException

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            found = client.get_experiment_by_name(name)
            if found is None:
                place = (self.root / "artifacts" / name).as_uri() if self.embedded else None
                tags = {
                    "mlflow.experimentKind": "custom_model_development"
                }  # which of its faces the UI shows
                return str(client.create_experiment(name, artifact_location=place, tags=tags))
        if found.lifecycle_stage != "active":
            try:
                client.restore_experiment(found.experiment_id)
            except MlflowException as error:
                raise UserError(
                    f"The MLflow experiment {name!r} was deleted and cannot be restored ({error})."
                ) from None
        return str(found.experiment_id)


def server(root: str) -> Server:
    """The store that MLFLOW_TRACKING_URI names, else the embedded one under `root`."""
    folder = Path(root).expanduser().resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _database_uri(folder)
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri!r}, a folder; MLflow keeps its records in a database now:"
            " use sqlite:////path/mlflow.db, a server's http:// address, or unset it."
        )
    return Server(uri.rstrip("/"), folder)


def _database_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def ask(uri: str) -> None:
    """See whether a server answers. Any answer will do: one behind a login says no, but it says it.

    Raises `UserError` where none comes.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"The tracking server {uri} does not answer ({reason}); start it, or mend or unset MLFLOW_TRACKING_URI."
        ) from None
