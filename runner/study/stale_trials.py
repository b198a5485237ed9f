"""Stale trials: marked as running, but their worker is dead. They are marked as failed and queued again, once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from runner.study import storage as storages
from runner.study.database import REQUEST
from runner.study.trials import is_lost, owner_of
from runner.tracking.process_identity import is_earlier_boot, this_host
from runner.utils.errors import UserError
from runner.utils.file_systems import sqlite_path
from runner.utils.network_files import server_time
from runner.utils.redaction import redact

WORKER_DIED = "its worker died"
"""Why a stale trial is lost."""
MAX_SILENCE = 600.0
"""Seconds without a write to a local storage after which trials of another host are stale."""


def find_stale_trials(study: optuna.Study, storage: str, own: Collection[int]) -> Iterator[FrozenTrial]:
    """The running trials whose worker is dead, as far as this host can tell.

    Args:
        study: The study.
        storage: Path or address of its storage. Databases with heartbeats tell about other hosts themselves.
        own: Numbers of the trials that this process runs.

    Raises `UserError` if another host runs trials in a storage that only processes of one host can share.
    """
    local = storages.is_local(storage)
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.RUNNING or trial.number in own:
            continue
        owner = owner_of(trial)
        if owner is None:  # its worker died before it stored itself, or will do so in a moment
            if local:
                yield trial
        elif owner.host == this_host():
            if not owner.alive:
                yield trial
        elif local and (is_earlier_boot(owner.host) or _silence(storage) > MAX_SILENCE):
            yield trial
        elif local:
            raise UserError(
                f"The study {study.study_name!r} has a trial running on {owner.host}, but {storage} can be shared by"
                " processes of one host only: use PostgreSQL for several (--storage postgresql://…). If that host is"
                f" gone, wait {MAX_SILENCE / 60:.0f} minutes and start again."
            )


def fail_lost_trial(study: optuna.Study, trial: FrozenTrial, stopped_by: str = "") -> None:
    """Mark a running trial as failed because its worker ended, and queue its values again.

    Args:
        study: The study.
        trial: One of its running trials.
        stopped_by: How the worker was stopped; empty if it died. Then the values are queued again only once.
    """
    with suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, "lost", redact(stopped_by or WORKER_DIED))
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    if is_lost(trials[trial.number]):
        _requeue(study, trial, trials, bool(stopped_by))


def requeue_lost_trials(study: optuna.Study) -> None:
    """Queue the values of lost trials where whoever marked them as lost did not come to that.

    It died, or the database went away for longer than a worker waits that was stopped.
    """
    trials = study.get_trials(deepcopy=False)
    for trial in filter(is_lost, trials):
        stopped = trial.user_attrs.get("lost", WORKER_DIED) != WORKER_DIED
        # Earlier versions created trials without a token, and left no trace when they queued those of stopped workers.
        if not stopped or REQUEST in trial.user_attrs:
            _requeue(study, trial, trials, stopped)


def _requeue(
    study: optuna.Study, trial: FrozenTrial, trials: list[FrozenTrial], stopped: bool = False
) -> None:
    """Queue the values of a lost trial again: once if its worker died in it, always if that was stopped."""
    stopped = stopped or "owner" not in trial.user_attrs  # it has not begun
    if "retry" in trial.user_attrs and not stopped:
        return
    request = f"repeats trial {trial.number}"
    copied = {name: value for name, value in trial.user_attrs.items() if name in ("baseline", "retry")}
    attributes = copied if stopped else {**copied, "retry": trial.number}
    values = trial.params or trial.system_attrs.get("fixed_params", {})
    if any(
        other.user_attrs.get(REQUEST) == request or other.user_attrs.get("retry") == trial.number
        for other in trials
        if other.number > trial.number
    ):
        return
    if values or attributes.get("baseline"):
        study.enqueue_trial(values, user_attrs={**attributes, REQUEST: request})


def stale_trials_in_journal(journal: str) -> list[tuple[optuna.Study, FrozenTrial]]:
    """The stale trials of this host in all studies of a journal file. Raises `UserError` if it is no journal."""
    storage = storages.connect(journal)
    names = optuna.get_all_study_names(storage)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    return [(study, trial) for study in studies for trial in study.trials if _is_stale(trial)]


def requeue_stale_trial(root: Path, journal: str, study: optuna.Study, trial: FrozenTrial) -> None:
    """Requeue one of `stale_trials_in_journal`, unless another process has dealt with it since.

    Args:
        root: Folder of the tracking store.
        journal: The journal file.
        study: The study.
        trial: The trial.
    """
    with storages.study_lock(root, journal, study.study_name):
        current = study.get_trials(deepcopy=False)[trial.number]
        if _is_stale(current):
            fail_lost_trial(study, current)


def _is_stale(trial: FrozenTrial) -> bool:
    owner = owner_of(trial)
    is_alive = owner is not None and owner.alive and not is_earlier_boot(owner.host)
    return trial.state == TrialState.RUNNING and not is_alive


def _silence(storage: str) -> float:
    """Seconds since the file of a local storage was written to, by the clock of its file system."""
    path = (Path(storage) if storages.is_file(storage) else sqlite_path(storage)).expanduser()
    try:
        # It lies on a local disk, so that `stat` is up to date; to open and close a SQLite file would drop its locks.
        return server_time(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
