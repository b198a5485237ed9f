"""Which MLflow the records go to, and getting it ready: once, under a lock, before anything is trained."""

from __future__ import annotations

import http.client
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from runner.utils.atomic_files import make_folder, replacing
from runner.utils.errors import UserError
from runner.utils.redaction import redacted, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password of the address with it
}
"""Set before MLflow is imported, whatever they were: no telemetry, no pickles, no words of its own."""
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Our own patience in place of MLflow's minutes, where the environment says nothing else."""
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

        Raises `UserError` where the server does not answer, or refuses.
        """
        quieten()
        ask(self.uri)
        for name in ("alembic", "mlflow.tracking", "mlflow.store.model_registry.abstract_store"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It logs a traceback of every fault that it also raises: a full disk is told in a sentence.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

        if not self.uri.startswith("sqlite:///"):
            return _let_in(self.uri)
        return _opened(self.uri)

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
                try:
                    return str(client.create_experiment(name, artifact_location=place, tags=tags))
                except MlflowException as error:
                    # The lock keeps out who has the same root; others may share a database or server.
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise UserError(
                            f"The MLflow experiment {name!r} cannot be made ({redacted(str(error))[:300]})."
                        ) from None
        if found.lifecycle_stage != "active":
            try:
                client.restore_experiment(found.experiment_id)
            except MlflowException as error:
                raise UserError(
                    f"The MLflow experiment {name!r} was deleted and cannot be restored ({error})."
                ) from None
        return str(found.experiment_id)


def _make(path: Path) -> None:
    """Make a database, whole or not at all: MLflow cannot go on from tables of which only some were made."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    with replacing(path) as aside:
        engine = create_engine(f"sqlite:///{aside}")
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()


def _opened(uri: str) -> MlflowClient:
    """A client of a sqlite database. Raises `UserError` where it cannot be made or opened."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    path = Path(uri.removeprefix("sqlite:///"))
    make_folder(path.parent)
    try:
        # Several processes that create one database at once corrupt it, whatever roots they have.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _make(path)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # without it readers block writers
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n", 1)[0][:300]
        raise UserError(
            f"The database {path} cannot be used ({reason}); free some space if its disk is full, else mend its mode or"
            " restore it from a copy."
        ) from None
    return client


def quieten() -> None:
    """Set what MLflow reads from the environment; to be called before it is imported."""
    os.environ.update(QUIET)
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)


def _let_in(uri: str) -> MlflowClient:
    """A client of a server or database that answers a first question. Raises `UserError` where it does not."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if uri.partition("://")[0].partition("+")[0] in DATABASE_ENGINES:
            create_engine(uri).connect().close()  # MLflow would ask again for minutes
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, ValueError) as error:
        reason = redacted(" ".join(str(getattr(error, "orig", None) or error).split()))[:300]
        raise UserError(
            f"The tracking store {redacted(uri)} cannot be used ({reason}); mend it, its login, or"
            " MLFLOW_TRACKING_URI."
        ) from None
    return client


def server(root: str) -> Server:
    """The store that MLFLOW_TRACKING_URI names, else the embedded one under `root`."""
    folder = Path(root).expanduser().resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _database_uri(folder)
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {_as_folder(uri)!r}, a folder; MLflow keeps its records in a database now:"
            " use sqlite:////path/mlflow.db, a server's http:// address, or unset it."
        )
    return Server(uri.rstrip("/"), folder)


def _database_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def _as_folder(uri: str) -> str:
    """What was taken for a folder, fit to be said: it may be an address that lacks only its scheme."""
    return redacted(f"x://{uri}").removeprefix("x://")


def ask(uri: str) -> None:
    """See whether a server answers. Any answer will do: one behind a login says no, but it says it.

    Raises `UserError` where none comes.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        address = f"{without_login(uri)}/health"
        urllib.request.urlopen(address, timeout=PATIENCE).close()  # noqa: S310 (http or https, see above)
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = redacted(str(getattr(error, "reason", error)))
        raise UserError(
            f"The tracking server {redacted(uri)} does not answer ({reason}); start it, or mend or unset"
            " MLFLOW_TRACKING_URI."
        ) from None
