"""A study: one baseline, one space, many trials, shared by any number of workers through a storage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.schema import Experiment, as_tree, flatten
from runner.evaluation.metrics import METRICS
from runner.study import storage as storages
from runner.study.plan import Plan
from runner.study.samplers import Keyed, build_pruner, distribution
from runner.study.space import Dimension, Value, applied
from runner.tracking.journal import is_alive, me, this_host
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.redaction import redact
from runner.utils.text import one_line

FAILURES = 5
"""Trials that may fail one after the other before the study stops: what makes them fail will not go by itself."""
MAKING = 10.0
"""Seconds that another host has to make a study, before we take it for dead and go on with that."""
SILENT = 600.0
"""Seconds without a word in a journal after which trials that run on another host count as dead."""


@dataclass(frozen=True)
class Asked:
    """A trial to be run: the experiment, and the values that make it."""

    number: int
    values: dict[str, Value]
    experiment: Experiment
    baseline: bool

    @property
    def name(self) -> str:
        """For the records: its number and what was searched."""
        if self.baseline:
            return f"trial {self.number}: baseline"
        return f"trial {self.number}: {words(self.values)}"


def words(values: dict[str, Value]) -> str:
    """Searched values, short: `lr=0.00031 dropout=0.42`."""
    return " ".join(
        f"{name.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )


class Study:
    """A plan in its storage. Only rank 0 of a launch holds one.

    Raises `UserError` where the storage is out of reach, or the study's name is taken by another one.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.storage = storages.connect(plan.storage, _retry)
        root.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(root, plan.storage, plan.name)
        self._trial: Trial | None = None
        with self.alone():
            about: dict[str, Any] = {
                "storage": self.storage,
                "study_name": plan.name,
                "direction": METRICS[plan.objective].direction,
                "sampler": Keyed(plan.sampler, plan.space, plan.seed),
                "pruner": build_pruner(plan.pruner, plan.baseline.train.epochs, plan.fits),
            }
            try:
                self.optuna = optuna.create_study(**about)
            except optuna.exceptions.DuplicatedStudyError:
                self.optuna = optuna.create_study(**about, load_if_exists=True)
                self._await_maker()
            self._claim_name()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no other process of this host changes what the study is to do."""
        with self._lock:
            yield

    @property
    def maximises(self) -> bool:
        """Whether more is better."""
        return self.optuna.direction == StudyDirection.MAXIMIZE

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def counted(self) -> int:
        """Trials that are done or under way; not those that were lost with their worker."""
        return sum(each.state != TrialState.WAITING and not is_lost(each) for each in self.trials())

    @property
    def running(self) -> bool:
        """Whether this process has a trial that it has not told of."""
        return self._trial is not None

    @property
    def finished(self) -> bool:
        """Whether all that was asked for is done."""
        trials = self.trials()
        open_ = any(each.state in (TrialState.WAITING, TrialState.RUNNING) for each in trials)
        return not open_ and (self.counted() >= self.plan.trials or self._exhausted())

    @property
    def best(self) -> FrozenTrial | None:
        """The best complete trial, the earlier of equals."""
        complete = [each for each in self.trials() if each.state == TrialState.COMPLETE]
        sign = -1 if self.maximises else 1
        return min(complete, key=lambda each: (sign * (each.value or 0.0), each.number), default=None)

    @property
    def baseline(self) -> FrozenTrial | None:
        """The baseline's complete trial."""
        found = (each for each in self.trials() if is_baseline(each) and each.state == TrialState.COMPLETE)
        return next(found, None)

    def better(self, value: float) -> bool:
        """Whether a value beats every complete trial's."""
        best = self.best
        if best is None or best.value is None:
            return True
        return value > best.value if self.maximises else value < best.value

    def ask(self) -> Asked | None:
        """The next trial; None when there is no more to do.

        Raises `UserError` when too many trials failed in a row.
        """
        with self.alone():
            self.sweep()
            trials = self.trials()
            self._check_failures(trials)
            waiting = any(each.state == TrialState.WAITING for each in trials)
            if not waiting and (self.counted() >= self.plan.trials or self._exhausted()):
                return None
            self._trial = trial = self.optuna.ask()
            self.beat()  # before the owner is known: a trial with an owner has given a sign of life
            owner = me("", "")
            trial.set_user_attr("owner", [owner.host, owner.pid, owner.started])
        settings = flatten(as_tree(self.plan.baseline))
        values = self.plan.space.pick(settings, lambda each: suggest(trial, each))
        if "baseline" in trial.user_attrs:
            return Asked(trial.number, values, self.plan.baseline, True)
        return Asked(trial.number, values, applied(self.plan.baseline, values), False)

    def report(self, step: int, value: float) -> bool:
        """Tell an intermediate value of the running trial; True where it should be given up."""
        assert self._trial is not None  # noqa: S101 (for types: asked for before)
        try:
            self._trial.report(value, step)
        except optuna.exceptions.UpdateFinishedTrialError:
            return True  # it was taken for dead, and its values are tried elsewhere
        return "baseline" not in self._trial.user_attrs and bool(self._trial.should_prune())

    def note(self, **attributes: Any) -> None:
        """Write down something about the running trial."""
        assert self._trial is not None  # noqa: S101 (for types: asked for before)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead
            for name, value in attributes.items():
                self._trial.set_user_attr(name, redact(value) if isinstance(value, str) else value)

    def tell(self, state: str, value: float | None = None) -> None:
        """End the running trial: complete, with a value; pruned; or failed."""
        assert self._trial is not None  # noqa: S101 (for types: asked for before)
        kinds = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        try:
            self.optuna.tell(self._trial, value, kinds[state])
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            if not self.trials()[self._trial.number].state.is_finished():
                raise
        finally:
            self._trial = None

    def lost(self, reason: str) -> None:
        """The running trial was stopped from outside: it has failed, and its values are to be tried again."""
        if self._trial is not None:
            number, self._trial = self._trial.number, None
            with self.alone():
                self._lose(self.trials()[number], reason, stopped=True)

    def beat(self) -> None:
        """A sign of life of the running trial, where the storage takes one."""
        trial, record = self._trial, getattr(self.storage, "record_heartbeat", None)
        if trial is not None and record is not None:
            with suppress(Exception):  # the next one may get through
                record(trial._trial_id)

    def lost_by(self, pid: int) -> int | None:
        """The newest trial that was lost with a process of this host."""
        host = this_host()
        for trial in reversed(self.trials()):
            if trial.user_attrs.get("owner", [])[:2] == [host, pid]:
                return trial.number if "lost" in trial.user_attrs else None
        return None

    def sweep(self) -> list[int]:
        """Mark trials as failed whose worker died, to be tried again once: their numbers. Call it alone.

        Raises `UserError` where trials run on another host that a file cannot be shared with.
        """
        local = storages.is_local(self.plan.storage)
        dead = []
        for trial in self.trials():
            if trial.state != TrialState.RUNNING or (self._trial and trial.number == self._trial.number):
                continue
            host, pid, started = trial.user_attrs.get("owner", [this_host(), 0, 0.0])
            if host == this_host():
                if not is_alive(pid, started) and (local or pid or _age(trial) > storages.GRACE):
                    dead.append(trial)
            elif local and self._silence() > SILENT:
                dead.append(trial)
            elif local:
                raise UserError(
                    f"The study {self.plan.name!r} has a trial running on {host}; {self.plan.storage} can be shared by"
                    " processes of one host only: use PostgreSQL for several (--storage postgresql://…). If that host"
                    f" is gone, wait {SILENT / 60:.0f} minutes and start again."
                )
        for trial in dead:
            self._lose(trial, "its worker died", stopped=False)
        if not local:
            fail_stale_trials(self.optuna)
        return [trial.number for trial in dead]

    def _lose(self, trial: FrozenTrial, reason: str, stopped: bool) -> None:
        _lose(self.optuna, trial, reason, stopped)

    def _silence(self) -> float:
        path = Path(self.plan.storage.removeprefix("sqlite:///")).expanduser()
        return time.time() - path.stat().st_mtime if path.exists() else 0.0

    def _exhausted(self) -> bool:
        sampler = self.optuna.sampler
        return isinstance(sampler, Keyed) and sampler.exhausted(self.trials())

    def _check_failures(self, trials: list[FrozenTrial]) -> None:
        ended = [each for each in trials if each.state.is_finished() and not is_lost(each)]
        tail = ended[-FAILURES:]
        if len(tail) == FAILURES and all(each.state == TrialState.FAIL for each in tail):
            first = next(each for each in ended if each.state == TrialState.FAIL)
            raise UserError(
                f"The last {FAILURES} trials all failed, so the study {self.plan.name!r} stops; the first to fail,"
                f" trial {first.number}, said: {first.user_attrs.get('reason', 'nothing')}"
            )

    def _await_maker(self) -> None:
        """Another host, which our lock does not keep out, may be making the study: give it time to be done."""
        until = time.monotonic() + (0 if storages.is_local(self.plan.storage) else MAKING)
        while not self.trials() and time.monotonic() < until:
            time.sleep(0.1)

    def _check_trials(self) -> None:
        """Raises `UserError` where the storage was damaged so that it can still be read."""
        broken = [each.number for each in self.trials() if not _is_sound(each)]
        if broken or len(self.optuna.directions) != 1:
            what = f"trial {broken[0]}" if broken else "its direction"
            raise UserError(
                f"The study {self.plan.name!r} in {storages.hidden(self.plan.storage)} is damaged ({what}); restore the"
                " storage, or choose another --study."
            )

    def _claim_name(self) -> None:
        """Write down what the study is, and its baseline as trial 0; or see that it is the same one."""
        wanted = self.plan.identity()
        stored = self.optuna.user_attrs.get("plan")
        if stored is None and self.trials():
            raise UserError(
                f"The study {self.plan.name!r} in {storages.hidden(self.plan.storage)} was not made by this runner;"
                " choose another --study."
            )
        if stored is None:
            self.optuna.set_user_attr("plan", wanted)
            stored = wanted
        if differences := _differences(stored, wanted):
            raise UserError(
                f"The study {self.plan.name!r} is another one: {'; '.join(differences[:3])}"
                f"{f'; and {len(differences) - 3} more' if len(differences) > 3 else ''}; choose another --study name,"
                " or give what it was made with."
            )
        self._check_trials()
        if not self.trials():  # new, or its maker died here
            settings = flatten(as_tree(self.plan.baseline))
            values = self.plan.space.pick(settings, lambda each: settings[each.setting])
            self.optuna.set_metric_names([f"validation {self.plan.objective}"])
            self.optuna.enqueue_trial(values, user_attrs={"baseline": True})


def _is_sound(trial: FrozenTrial) -> bool:
    """Whether a trial tells what its state and its owner must."""
    values = trial.values or []
    if trial.state == TrialState.COMPLETE and not (
        len(values) == 1 and type(values[0]) in (int, float) and math.isfinite(values[0])
    ):
        return False
    if "owner" not in trial.user_attrs:
        return True
    owner = trial.user_attrs["owner"]
    return (
        isinstance(owner, list)
        and [type(each) for each in owner[:2]] == [str, int]
        and len(owner) == 3
        and type(owner[2]) in (int, float)
    )


def _lock(root: Path, storage: str, name: str) -> FileLock:
    """Keeps other processes of this host from changing what a study is to do."""
    return FileLock(root / f".study-{digest(storage, name)[:12]}.lock")


def is_baseline(trial: FrozenTrial) -> bool:
    """Whether a trial is the baseline's."""
    return "baseline" in trial.user_attrs


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended with its worker, not by its own doing: that would have left a reason."""
    return "lost" in trial.user_attrs or (trial.state == TrialState.FAIL and "reason" not in trial.user_attrs)


def suggest(trial: Trial, dimension: Dimension) -> Value:
    """A dimension's value in a trial."""
    value: Value = trial._suggest(dimension.setting, distribution(dimension))
    return value


def abandoned(journal: str) -> list[tuple[optuna.Study, FrozenTrial]]:
    """The trials in a journal file that are RUNNING, of workers of this host that are dead.

    Raises `UserError` where the file is no journal of studies.
    """
    storage, found = storages.connect(journal), []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        found += [(study, trial) for trial in study.get_trials(deepcopy=False) if _is_abandoned(trial)]
    return found


def _is_abandoned(trial: FrozenTrial) -> bool:
    host, pid, started = trial.user_attrs.get("owner", [this_host(), 0, 0.0])
    return trial.state == TrialState.RUNNING and host == this_host() and not is_alive(pid, started)


def give_back(root: Path, journal: str, study: optuna.Study, trial: FrozenTrial) -> None:
    """Mark an abandoned trial as failed, to be tried again once, unless it was taken up since it was looked at.

    Args:
        root: Folder of the tracking store.
        journal: The file that the study lies in.
        study: The study.
        trial: One of `abandoned`.
    """
    with _lock(root, journal, study.study_name):
        now = study.get_trials(deepcopy=False)[trial.number]
        if _is_abandoned(now):
            _lose(study, now, "its worker died", stopped=False)


def _lose(study: optuna.Study, trial: FrozenTrial, reason: str, stopped: bool) -> None:
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, "lost", redact(reason))
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        _retry(study, trial, stopped)


def _retry(study: optuna.Study, trial: FrozenTrial, stopped: bool = False) -> None:
    """Put a lost trial's values into the queue; not a second time, unless its user stopped it."""
    if "retry" in trial.user_attrs and not stopped:
        return
    kept: dict[str, Any] = {
        name: trial.user_attrs[name] for name in ("baseline", "retry") if name in trial.user_attrs
    }
    if not stopped:
        kept["retry"] = trial.number
    if trial.params or kept.get("baseline"):
        study.enqueue_trial(trial.params, user_attrs=kept)


def _age(trial: FrozenTrial) -> float:
    from datetime import datetime

    return (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    one, other = flatten(stored), flatten(wanted)
    return [
        one_line(f"{name} was {one.get(name, 'not there')!r} and is {other.get(name, 'not there')!r} now", 300)
        for name in sorted({*one, *other})
        if one.get(name, "not there") != other.get(name, "not there")
    ]
