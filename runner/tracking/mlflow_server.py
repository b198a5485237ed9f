"""The MLflow tracking store: which one it is, connecting to it, and creating the embedded database."""

from __future__ import annotations

import http.client
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from runner.tracking import moved_records
from runner.tracking.artifact_store import (
    ROOT_VARIABLE,
    artifact_root,
    check_takes_files,
    limit_waiting,
    location_in,
)
from runner.utils.atomic_files import atomic_write, make_folder
from runner.utils.errors import UserError
from runner.utils.file_systems import absolute_uri, is_sqlite, network_file_system, sqlite_path, sqlite_uri
from runner.utils.hashing import digest
from runner.utils.redaction import error_line, redact, without_credentials
from runner.utils.text import valid_unicode

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL may hold a password
}
"""Always set before MLflow is imported: no telemetry, no pickles, no output of its own."""
MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "AWS_MAX_ATTEMPTS": "2",
}
"""Used unless the environment says otherwise: seconds instead of minutes until an outage is noticed, and no way around
a server to the store behind it, which this host may not reach and which takes 100 MB of memory per piece of a file."""
CONNECT_TIMEOUT = 10.0
"""Seconds that a tracking server has for its first answer."""
LONGEST_FOLDER_NAME = 200
"""Bytes of an experiment's name that name the folder of its artifacts; file systems allow 255."""


@dataclass(frozen=True)
class TrackingServer:
    """An MLflow tracking store: a server, or the database embedded under `root`.

    Args:
        uri: Its absolute tracking URI.
        root: Folder of the journals, and of the embedded database and its artifacts.
    """

    uri: str
    root: Path

    @property
    def embedded(self) -> bool:
        """Whether it is the database under `root`, rather than a store that MLFLOW_TRACKING_URI names."""
        return self.uri == _database_uri(self.root)

    @property
    def warning(self) -> str:
        """What speaks against the place of the database; empty if nothing does."""
        if not is_sqlite(self.uri) or not (kind := network_file_system(sqlite_path(self.uri))):
            return ""
        return (
            f"{sqlite_path(self.uri)} lies on a network file system ({kind}), where a database is slow and processes of"
            " several hosts can damage it; set --tracking.root to a local disk, or MLFLOW_TRACKING_URI to a server"
        )

    @property
    def journals(self) -> Path:
        """Folder of the journals of runs that are in progress, interrupted or not delivered yet."""
        return self.root / "journals"

    def check_exists(self, artifacts: bool = True) -> None:
        """Raises `UserError` if the embedded database does not exist: commands that only read do not create it.

        Args:
            artifacts: Artifacts are needed too: raises if they lie elsewhere because the folder was moved meanwhile.
        """
        if self.embedded and not (self.root / "mlflow.db").exists():
            raise UserError(f"There are no records in {self.root} yet; ./launch.sh makes the first.")
        if artifacts:
            self.check_place()

    def check_place(self) -> None:
        """Raises `UserError` if a run writes to the embedded store under another path than its present one."""
        if self.embedded:
            moved_records.check_place(self.root)

    def connect(self, read_only: bool = False) -> MlflowClient:
        """A client of a store that answers; a sqlite database that does not exist is created.

        Args:
            read_only: Nothing will be written: an embedded store that may not be written is read from a copy.

        Raises `UserError` if the server does not answer, or refuses.
        """
        configure_mlflow()
        check_reachable(self.uri)
        limit_waiting()
        for name in ("alembic", "mlflow.tracking", "mlflow.store.model_registry.abstract_store"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It logs the traceback of every error that it also raises, as of a full disk.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if read_only and self.embedded and moved_records.is_read_only(self.root):
            return _connect_to_sqlite(sqlite_uri(moved_records.readable_copy(self.root)))
        if is_sqlite(self.uri):
            return _connect_to_sqlite(self.uri)
        return _connect_to_server(self.uri)

    def get_or_create_experiment(self, client: MlflowClient, name: str) -> str:
        """The id of the MLflow experiment `name`, created or restored if necessary.

        Raises `UserError` if that fails.
        """
        from mlflow.exceptions import MlflowException

        name = valid_unicode(name)
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            found = client.get_experiment_by_name(name)
            if found is None:
                location = self._new_location(name)
                if location is not None:  # before MLflow stores a wrong one for good
                    check_takes_files(location, self.uri)
                kind = {"mlflow.experimentKind": "custom_model_development"}  # selects the view in the UI
                try:
                    created = client.create_experiment(name, artifact_location=location, tags=kind)
                    found = client.get_experiment(created)
                except MlflowException as error:
                    # The lock is of this root; processes with other roots may share the store.
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise UserError(
                            f"The MLflow experiment {name!r} cannot be created ({error_line(error)})."
                        ) from None
        check_takes_files(found.artifact_location, self.uri)
        if found.lifecycle_stage != "active":
            try:
                client.restore_experiment(found.experiment_id)
            except MlflowException as error:
                raise UserError(
                    f"The MLflow experiment {name!r} was deleted and cannot be restored ({error})."
                ) from None
        return str(found.experiment_id)

    def check_artifacts(self, client: MlflowClient, run_id: str) -> None:
        """Raises `UserError` if the artifacts of a run cannot be stored."""
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
        check_takes_files(experiment.artifact_location, self.uri)

    def other_location(self, client: MlflowClient, name: str) -> str:
        """Says that the artifacts of an experiment stay elsewhere than MLFLOW_DEFAULT_ARTIFACT_ROOT; else empty."""
        root = artifact_root() if self.decides_location else ""
        found = client.get_experiment_by_name(valid_unicode(name)) if root else None
        if found is None or found.artifact_location.startswith(f"{root}/"):
            return ""
        return (
            f"the artifacts of the experiment {name!r} stay in {found.artifact_location}, where it was created;"
            f" {ROOT_VARIABLE} is for new experiments: give another --name, or unset it"
        )

    @property
    def decides_location(self) -> bool:
        """Whether this program says where the artifacts of a new experiment go; else a server does."""
        return not self.uri.startswith(("http://", "https://", "databricks"))

    def _new_location(self, name: str) -> str | None:
        """The address of the artifacts of a new experiment; None if MLflow decides."""
        if self.decides_location and (root := artifact_root()):
            return location_in(root, _folder_name(name))
        return (self.root / "artifacts" / _folder_name(name)).as_uri() if self.embedded else None


def tracking_server(root: str) -> TrackingServer:
    """The store that MLFLOW_TRACKING_URI names, or else the one embedded under `root`.

    If the folder was moved or copied, the paths in its records are updated.

    Raises `UserError` if the variable names a folder, or if MLflow cannot store the path of the embedded one.
    """
    folder = Path(root).expanduser().resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _database_uri(folder)
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        shown = redact(f"x://{uri}").removeprefix("x://")  # it may be an address that lacks only its scheme
        raise UserError(
            f"MLFLOW_TRACKING_URI is {shown!r}, a folder; MLflow stores runs in a database now:"
            " use sqlite:////path/mlflow.db or a server's http:// address, or unset it."
        )
    server = TrackingServer(absolute_uri(uri).rstrip("/"), folder)
    if server.embedded and valid_unicode(str(folder)) != str(folder):
        raise UserError(
            f"{valid_unicode(str(folder))} cannot hold the run records: MLflow stores only paths that are valid UTF-8;"
            " set --tracking.root to another folder."
        )
    moved_records.adopt_records(folder)
    return server


def configure_mlflow() -> None:
    """Set the environment variables that MLflow reads. Call it before MLflow is imported."""
    os.environ.update(MLFLOW_ENVIRONMENT)
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)


def check_reachable(uri: str) -> None:
    """Check that a server answers; any HTTP status will do, such as the refusal of one that needs a login.

    Raises `UserError` if no answer comes within `CONNECT_TIMEOUT`.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        address = f"{without_credentials(uri)}/health"
        urllib.request.urlopen(address, timeout=CONNECT_TIMEOUT).close()  # noqa: S310 (http or https, see above)
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error_line(getattr(error, "reason", error))
        raise UserError(
            f"The tracking server {redact(uri)} does not answer ({reason}); start it, or correct or unset"
            " MLFLOW_TRACKING_URI."
        ) from None


def _database_uri(root: Path) -> str:
    return sqlite_uri(root / "mlflow.db")


def _folder_name(experiment: str) -> str:
    """A name for the folder of an experiment's artifacts: its own, unless that is no name of a folder."""
    name = experiment.replace("/", "-")
    if len(name.encode()) <= LONGEST_FOLDER_NAME and name.strip("."):
        return name
    start = name.encode()[:LONGEST_FOLDER_NAME].decode(errors="ignore")
    return f"{start}-{digest(experiment)[:12]}"


def _connect_to_sqlite(uri: str) -> MlflowClient:
    """A client of a sqlite database. Raises `UserError` if it cannot be created or opened."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    path = sqlite_path(uri)
    make_folder(path.parent)
    try:
        # Processes that create one database at the same time corrupt it, whatever roots they have.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _create_database(path)
            _set_journal_mode(path)  # before the client, which keeps connections open
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n", 1)[0][:300]
        raise UserError(
            f"The database {path} cannot be used ({reason}); if its disk is full, free some space; else correct its"
            " permissions or restore it from a backup."
        ) from None
    return client


def _set_journal_mode(path: Path) -> None:
    """With a write-ahead log readers do not block writers; it needs memory that all processes share, so one host."""
    with closing(sqlite3.connect(path)) as connection:
        if not network_file_system(path):
            connection.execute("PRAGMA journal_mode=WAL")
            return
        with suppress(sqlite3.OperationalError):  # another process has it open, in its present mode
            connection.execute("PRAGMA journal_mode=DELETE")


def _create_database(path: Path) -> None:
    """Create a database whole or not at all: MLflow cannot use one in which only some tables were created."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    with atomic_write(path) as partial:
        engine = create_engine(sqlite_uri(partial))
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()


def _connect_to_server(uri: str) -> MlflowClient:
    """A client of a server or database that has answered a request. Raises `UserError` if it does not."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        if uri.partition("://")[0].partition("+")[0] in DATABASE_ENGINES:
            # MLflow itself would retry for minutes.
            engine = create_engine(uri, poolclass=NullPool)  # closes the connection, does not keep it
            engine.connect().close()
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, ValueError) as error:
        reason = error_line(getattr(error, "orig", None) or error)
        raise UserError(
            f"The tracking store {redact(uri)} cannot be used ({reason}); repair it, or correct its login or"
            " MLFLOW_TRACKING_URI."
        ) from None
    return client
