"""Trials of a study: the one that this process runs, what the stored ones say about themselves, and stale ones.

A stale trial is marked as running, but its worker is dead. It is marked as failed, and its values are queued again,
once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.schema import Experiment
from runner.study import storage as storages
from runner.study.space import Dimension, Value
from runner.tracking.process_identity import ProcessIdentity, this_host
from runner.utils.errors import UserError
from runner.utils.redaction import redact


@dataclass(frozen=True)
class RunningTrial:
    """A trial that a worker runs: its values, and the experiment that has them."""

    number: int
    values: dict[str, Value]
    experiment: Experiment
    is_baseline: bool

    @property
    def name(self) -> str:
        """Name of its run in MLflow: `trial 7: lr=0.00031 dropout=0.42`."""
        return f"trial {self.number}: {'baseline' if self.is_baseline else short_values(self.values)}"


def short_values(values: Mapping[str, Value]) -> str:
    """Values of settings in short: `lr=0.00031 dropout=0.42`."""
    return " ".join(
        f"{setting.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for setting, value in values.items()
    )


def suggest(trial: Trial, dimension: Dimension) -> Value:
    """The value of a dimension in a trial, as the study's sampler draws it."""
    value: Value = trial._suggest(dimension.setting, to_distribution(dimension))
    return value


def to_distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's distribution."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, step)
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def is_baseline(trial: FrozenTrial) -> bool:
    """Whether a trial has the baseline's values because it is the baseline."""
    return "baseline" in trial.user_attrs


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its worker did. A trial that failed by itself has stored a reason."""
    return "lost" in trial.user_attrs or (trial.state == TrialState.FAIL and "reason" not in trial.user_attrs)


def state_name(trial: FrozenTrial) -> str:
    """Optuna's name of a trial's state, or LOST."""
    return "LOST" if is_lost(trial) else trial.state.name


def count_states(trials: list[FrozenTrial]) -> str:
    """`12 complete, 3 pruned`; empty without trials."""
    names = [state_name(trial).lower() for trial in trials]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def owner_of(trial: FrozenTrial) -> ProcessIdentity | None:
    """The worker that runs or ran a trial; None in the moment before it has stored itself."""
    return ProcessIdentity(*trial.user_attrs["owner"]) if "owner" in trial.user_attrs else None


def is_sound(trial: FrozenTrial) -> bool:
    """Whether the value and the owner of a stored trial have the types they must have."""
    values = trial.values or []
    if trial.state == TrialState.COMPLETE and not (
        len(values) == 1 and type(values[0]) in (int, float) and math.isfinite(values[0])
    ):
        return False
    match trial.user_attrs.get("owner", ["", 0, 0.0]):
        case [str(), int(pid), int() | float() as started]:
            return not isinstance(pid, bool) and not isinstance(started, bool)
    return False


WORKER_DIED = "its worker died"
"""Why a stale trial is lost."""
MAX_SILENCE = 600.0
"""Seconds without a write to a local storage after which trials of another host are stale."""


def find_stale_trials(study: optuna.Study, storage: str, own_trial: int | None) -> Iterator[FrozenTrial]:
    """The running trials whose worker is dead, as far as this host can tell.

    Args:
        study: The study.
        storage: Path or address of its storage. Databases with heartbeats tell about other hosts themselves.
        own_trial: Number of the trial that this process runs.

    Raises `UserError` if another host runs trials in a storage that only processes of one host can share.
    """
    local = storages.is_local(storage)
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.RUNNING or trial.number == own_trial:
            continue
        owner = owner_of(trial)
        if owner is None:  # its worker died before it stored itself, or will do so in a moment
            if local or _age(trial) > storages.HEARTBEAT_GRACE:
                yield trial
        elif owner.host == this_host():
            if not owner.alive:
                yield trial
        elif local and _silence(storage) > MAX_SILENCE:
            yield trial
        elif local:
            raise UserError(
                f"The study {study.study_name!r} has a trial running on {owner.host}, but {storage} can be shared by"
                " processes of one host only: use PostgreSQL for several (--storage postgresql://…). If that host is"
                f" gone, wait {MAX_SILENCE / 60:.0f} minutes and start again."
            )


def fail_lost_trial(study: optuna.Study, trial: FrozenTrial, reason: str, stopped: bool = False) -> None:
    """Mark a running trial as failed because its worker ended, and queue its values again.

    Args:
        study: The study.
        trial: One of its running trials.
        reason: Why the worker ended.
        stopped: Whether a user stopped it; if not, its values are queued again only the first time.
    """
    with suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, "lost", redact(reason))
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        requeue(study, trial, stopped)


def requeue(study: optuna.Study, trial: FrozenTrial, stopped: bool = False) -> None:
    """Queue the values of a lost trial again, but not a second time, unless a user stopped it."""
    if "retry" in trial.user_attrs and not stopped:
        return
    copied = ("baseline", "retry")
    attributes: dict[str, Any] = {name: trial.user_attrs[name] for name in copied if name in trial.user_attrs}
    if not stopped:
        attributes["retry"] = trial.number
    if trial.params or attributes.get("baseline"):
        study.enqueue_trial(trial.params, user_attrs=attributes)


def stale_trials_in_journal(journal: str) -> list[tuple[optuna.Study, FrozenTrial]]:
    """The stale trials of this host in all studies of a journal file. Raises `UserError` if it is no journal."""
    storage = storages.connect(journal)
    studies = (
        optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)
    )
    return [
        (study, trial) for study in studies for trial in study.get_trials(deepcopy=False) if _is_stale(trial)
    ]


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
            fail_lost_trial(study, current, WORKER_DIED)


def _is_stale(trial: FrozenTrial) -> bool:
    owner = owner_of(trial)
    return trial.state == TrialState.RUNNING and not (owner and owner.alive)


def _age(trial: FrozenTrial) -> float:
    """Seconds since a trial was started."""
    return (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0


def _silence(storage: str) -> float:
    """Seconds since the file of a local storage was written to."""
    path = Path(storage.removeprefix("sqlite:///")).expanduser()
    return time.time() - path.stat().st_mtime if path.exists() else 0.0
