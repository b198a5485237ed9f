"""Optuna's storage in a database server that several hosts share.

It waits for a server that restarts. Repeating what was perhaps done already does no harm: a trial is created or taken
from the queue under a token, by which a second attempt finds it. Nothing depends on the clocks of the hosts: heartbeats
have the database's time.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import uuid
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.orm import Session, selectinload

from runner.study.outages import Outage

REQUEST = "runner:request"
"""Attribute of a trial: the token under which it was created. A second one with the same token is not created."""
CLAIM = "runner:claim"
"""Attribute of a queued trial that was started: the token of the attempt."""
SUSPECTED = "runner:suspected"
"""Attribute of a running trial whose heartbeats have stopped: the last one, and when that was noticed first."""
SECOND_LOOK_INTERVALS = 3
"""Heartbeat intervals between the two looks that find a trial silent."""
CLIENT_SETTINGS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Options of PostgreSQL's client library: half a minute until it gives up a server whose host has vanished."""
SERVER_SETTINGS = {
    "TimeZone": "UTC",  # the table of heartbeats has no time zone: all hosts must write the same
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "30000",
    "client_connection_check_interval": "10000",
    "idle_in_transaction_session_timeout": "60000",
}
"""Settings of PostgreSQL's side of a connection: a host that vanishes or freezes keeps no row locked for long."""
SET = sqlalchemy.text(
    "SELECT set_config(wanted.key, wanted.value, false)"
    " FROM json_each_text(CAST(:settings AS json)) AS wanted JOIN pg_settings ON lower(name) = lower(wanted.key)"
)
REPEATED = (
    *("create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_all_studies", "_set_trial_param", "get_trial_id_from_study_id_trial_number", "get_trial"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "_get_trials"),
    *("_get_best_trial_id",),
)
"""Methods of Optuna's storage that give the same result when they are repeated."""


def is_postgresql(storage: str) -> bool:
    """Whether a storage is the address of a PostgreSQL database."""
    return storage.partition("://")[0].partition("+")[0] in ("postgresql", "postgres")


def with_driver(storage: str) -> str:
    """The address, for PostgreSQL with the driver that is installed: psycopg 3 if possible, otherwise psycopg2."""
    scheme, _, rest = storage.partition("://")
    if scheme in ("postgresql", "postgres"):
        driver = "psycopg" if importlib.util.find_spec("psycopg") else "psycopg2"
        return f"postgresql+{driver}://{rest}"
    return storage


def client_settings(address: str) -> dict[str, Any]:
    """Arguments of a connection, without those that an address gives itself."""
    if not is_postgresql(address):
        return {}
    given = sqlalchemy.make_url(address).query
    return {name: value for name, value in CLIENT_SETTINGS.items() if name not in given}


def configure_sessions(engine: sqlalchemy.Engine, **more: str) -> None:
    """Let every connection of a PostgreSQL engine begin with `SERVER_SETTINGS` and more. Older servers lack some."""
    if engine.dialect.name != "postgresql":
        return
    statement = SET.bindparams(settings=json.dumps({**SERVER_SETTINGS, **more}))
    words = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))

    @sqlalchemy.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(words)
        connection.commit()

    engine.dispose()  # connections from before


class DatabaseStorage(RDBStorage):
    """Optuna's storage in a database server.

    Args:
        address: Of the database, with its driver.
        outage: Waits while the database is away.
        heartbeat_interval: Seconds between two heartbeats of a trial.
        grace_period: Seconds without a heartbeat after which a trial counts as dead.

    Raises what SQLAlchemy raises if the database cannot be used; it does not wait for that.
    """

    def __init__(self, address: str, outage: Outage, heartbeat_interval: int, grace_period: int) -> None:
        self.outage = outage
        options = {"pool_pre_ping": True, "connect_args": client_settings(address)}
        super().__init__(address, options, heartbeat_interval=heartbeat_interval, grace_period=grace_period)
        configure_sessions(self.engine)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        template = deepcopy(template_trial) or create_trial(state=TrialState.RUNNING)
        template.user_attrs.setdefault(REQUEST, uuid.uuid4().hex)
        create = super()._create_new_trial
        trial_id = self.outage.retry(lambda: create(study_id, template))._trial_id
        return self.get_trial(trial_id)  # it may be an earlier one, which differs from the template by now

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """The new trial; if one exists under the token of the template, that one. The study's row is locked."""
        assert template_trial is not None  # noqa: S101 (for types: see above)
        attribute = models.TrialUserAttributeModel
        existing = (
            session.query(models.TrialModel)
            .join(attribute, attribute.trial_id == models.TrialModel.trial_id)
            .filter(models.TrialModel.study_id == study_id, attribute.key == REQUEST)
            .filter(attribute.value_json == json.dumps(template_trial.user_attrs[REQUEST]))
            .first()
        )
        return existing or super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING:
            token = uuid.uuid4().hex
            return self.outage.retry(lambda: self._claim(trial_id, token))
        end = super().set_trial_state_values
        return self.outage.retry(lambda: end(trial_id, state, values))

    def _claim(self, trial_id: int, token: str) -> bool:
        """Start a queued trial. Returns whether this attempt, or an earlier one under the token, did it."""
        with self._begin() as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.WAITING:
                return _attributes(trial).get(CLAIM) == token
            trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
            self._set_attribute(session, trial_id, CLAIM, token)
            return True

    def heartbeats(self, study_id: int) -> dict[int, datetime | None]:
        """The last heartbeats of a study's running trials by number, in the database's time."""

        def read() -> dict[int, datetime | None]:
            with self._begin() as session:
                return {int(trial.number): _last_heartbeat(trial) for trial in _running(session, study_id)}

        return self.outage.retry(read)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Ids of trials that were silent for the grace period, and still are some heartbeats after that was noticed.

        If the database itself was away, all trials have been silent; the live ones are heard before the second look.
        """
        stale, unheard = self.outage.retry(lambda: self._find_silent_trials(study_id))
        for trial_id in unheard:  # if its worker died before the first heartbeat, its grace begins now
            self.outage.retry(functools.partial(self.record_heartbeat, trial_id))
        return stale

    def _find_silent_trials(self, study_id: int) -> tuple[list[int], list[int]]:
        """Ids of stale trials, and of running ones without any heartbeat."""
        assert self.grace_period is not None  # noqa: S101 (for types)
        assert self.heartbeat_interval is not None  # noqa: S101 (for types)
        grace = timedelta(seconds=self.grace_period)
        apart = timedelta(seconds=SECOND_LOOK_INTERVALS * self.heartbeat_interval)
        stale: list[int] = []
        unheard: list[int] = []
        with self._begin() as session:
            now = session.execute(sqlalchemy.select(sqlalchemy.func.now())).scalar_one().replace(tzinfo=None)
            for trial in _running(session, study_id):
                trial_id, last = int(trial.trial_id), _last_heartbeat(trial)
                if last is None:
                    unheard.append(trial_id)
                elif now - last > grace:
                    heard, noticed = _attributes(trial).get(SUSPECTED, ("", ""))
                    if heard != last.isoformat():
                        looked = [last.isoformat(), now.isoformat()]
                        self._set_attribute(session, trial_id, SUSPECTED, looked)
                    elif now - datetime.fromisoformat(noticed) > apart:
                        stale.append(trial_id)
        return stale, unheard

    def _begin(self) -> Any:
        """A transaction, as a context manager of its session."""
        return self.scoped_session.session_factory.begin()

    def _set_attribute(self, session: Session, trial_id: int, key: str, value: Any) -> None:
        self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, key, value)


def _running(session: Session, study_id: int) -> list[models.TrialModel]:
    query = session.query(models.TrialModel).filter_by(study_id=study_id, state=TrialState.RUNNING)
    loaded = (models.TrialModel.heartbeats, models.TrialModel.system_attributes)
    return list(query.options(*map(selectinload, loaded)).all())


def _attributes(trial: models.TrialModel) -> dict[str, Any]:
    return {attribute.key: json.loads(attribute.value_json) for attribute in trial.system_attributes}


def _last_heartbeat(trial: models.TrialModel) -> datetime | None:
    return trial.heartbeats[0].heartbeat if trial.heartbeats else None


def _repeated(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(self: DatabaseStorage, *args: Any, **named: Any) -> Any:
        return self.outage.retry(functools.partial(method, self, *args, **named))

    return call


for _name in REPEATED:
    setattr(DatabaseStorage, _name, _repeated(_name))
