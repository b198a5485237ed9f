"""A study: one baseline, one search space, many trials, shared by any number of workers through a storage.

Workers use it as Optuna's ask-and-tell interface: `ask` for a trial, `report` its progress, then `complete`, `prune`
or `fail` it. A process may run several trials at once; then it says which one it means by its number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.tree import as_tree, flatten, override
from runner.study import storage as storages
from runner.study.algorithms import PRUNERS
from runner.study.database import REQUEST, DatabaseStorage
from runner.study.database_lock import DatabaseLock
from runner.study.outages import DatabaseAwayError, Outage
from runner.study.plan import Plan, describe_differences
from runner.study.seeded_sampler import SeededSampler
from runner.study.space import Value, as_value
from runner.study.stale_trials import fail_lost_trial, find_stale_trials, requeue_lost_trials
from runner.study.trials import RunningTrial, is_baseline, is_lost, is_sound, owner_of, suggest
from runner.tracking.process_identity import ProcessIdentity, this_host
from runner.utils.errors import UserError
from runner.utils.redaction import redact

MAX_FAILURES = 5
"""Consecutive failed trials after which a study stops: their cause will not go away by itself."""
LOCK_LOST = "the database ended the connection that locked the study"
"""Why a trial is given up before it begins."""
POLL_INTERVAL = 2.0
"""Seconds between two looks at the trials of other hosts."""
STOPPING_PATIENCE = 10.0
"""Seconds that a process which was stopped waits for a database that is away."""


class Study:
    """A plan in its storage. Only rank 0 of a launch has one.

    Args:
        plan: What to search.
        root: Folder of the tracking store, for the lock.
        worked_before: The storage's address is known to be right: a database that is away is waited for.

    Raises `UserError` if the storage cannot be reached, or holds another study of this name.
    """

    def __init__(self, plan: Plan, root: Path, worked_before: bool = False) -> None:
        self.plan = plan
        self.outage = Outage(plan.storage)
        self.storage = storages.connect(plan.storage, self.outage, worked_before)
        root.mkdir(parents=True, exist_ok=True)
        self.lock = storages.study_lock(root, plan.storage, plan.name, self.outage)
        """Held while this process changes which trials are to run: no other process does so meanwhile."""
        self._running: dict[int, Trial] = {}
        """The trials that this process runs, by number."""
        with self.lock:
            self.optuna = self._open()
            self._check_identity()
            self._check_trials()
            self._queue_baseline()

    def trials(self) -> list[FrozenTrial]:
        """All trials by number, as stored; not to be modified."""
        return self.optuna.get_trials(deepcopy=False)

    def count_trials(self) -> int:
        """Trials that count towards the plan's total: those that were started and not lost with their worker."""
        return sum(trial.state != TrialState.WAITING and not is_lost(trial) for trial in self.trials())

    @property
    def is_finished(self) -> bool:
        """Whether no trial is running or left to run."""
        unfinished = (TrialState.WAITING, TrialState.RUNNING)
        return self._has_all_trials() and not any(trial.state in unfinished for trial in self.trials())

    @property
    def best_trial(self) -> FrozenTrial | None:
        """The best complete trial; of equal ones the first."""
        sign = self.plan.metric.sign
        return max(self._complete(), key=lambda trial: sign * (trial.value or 0.0), default=None)

    @property
    def baseline_trial(self) -> FrozenTrial | None:
        """The complete trial of the baseline."""
        return next(filter(is_baseline, self._complete()), None)

    def is_improvement(self, value: float) -> bool:
        """Whether a value is better than those of all complete trials."""
        best = self.best_trial
        return best is None or best.value is None or self.plan.metric.better(value, best.value)

    def ask(self) -> RunningTrial | None:
        """Start the next trial; None if there is none left. A trial whose values cannot be combined fails.

        Raises `UserError` if too many trials failed in a row.
        """
        while (trial := self._start_trial()) is not None and self._has_lost_lock:
            # Others may have counted trials at the same time: this one could be too many.
            del self._running[trial.number]
            fail_lost_trial(self.optuna, self.trials()[trial.number], LOCK_LOST)
        if trial is None:
            return None
        baseline = self.plan.baseline
        settings = flatten(as_tree(baseline))
        values = self.plan.space.pick(settings, lambda dimension: suggest(trial, dimension))
        if "baseline" in trial.user_attrs:
            return RunningTrial(trial.number, values, baseline, is_baseline=True)
        try:
            return RunningTrial(
                trial.number,
                values,
                override(baseline, self.plan.space.settings_of(values)),
                is_baseline=False,
            )
        except UserError as error:
            self.fail(str(error), trial.number)
        return self.ask()

    def _start_trial(self) -> Trial | None:
        with self.lock:
            self.requeue_stale_trials()
            self._check_failures(self.trials())
            if not self._has_trials_left():
                return None
            trial = self.optuna.ask()
            self._running[trial.number] = trial
            self.record_heartbeat()  # before the owner is stored: a trial with an owner has had a heartbeat
            trial.set_user_attr("owner", list(astuple(ProcessIdentity.current())))
        return trial

    @property
    def _has_lost_lock(self) -> bool:
        """Whether the lock was lost while this process held it last."""
        return isinstance(self.lock, DatabaseLock) and self.lock.lost

    def wait_for_other_hosts(self, stop_requested: Callable[[], bool]) -> bool:
        """Wait until each trial on another host has ended, has shown that its worker lives, or was found dead.

        Returns whether trials are left to run after that: who leaves before leaves trials undone.
        """
        if not isinstance(self.storage, DatabaseStorage):
            return False
        before = self.storage.heartbeats(self.optuna._study_id)
        while not stop_requested():
            with self.lock:
                self.requeue_stale_trials()
            if self._has_trials_left():
                return True
            now, trials = self.storage.heartbeats(self.optuna._study_id), self.trials()
            silent = [number for number, heartbeat in now.items() if before.get(number, "") == heartbeat]
            owners = [owner_of(trials[number]) for number in silent]
            if not any(owner is None or owner.host != this_host() for owner in owners):
                return False
            time.sleep(POLL_INTERVAL)
        return False

    def report(self, step: int, value: float, number: int | None = None) -> bool:
        """Store an intermediate value of a running trial. Returns whether the trial should be pruned."""
        trial = self._trial(number)
        try:
            trial.report(value, step)
        except UpdateFinishedTrialError:
            return True  # see `why_dropped`
        return "baseline" not in trial.user_attrs and bool(trial.should_prune())

    def why_dropped(self, number: int) -> str:
        """Why the result of a trial that this process runs is not wanted any more; empty if it is."""
        if not self.trials()[number].state.is_finished():
            return ""
        return (
            f"Trial {number} was given up while this worker was out of reach, and its values are tried again; this"
            " result is dropped."
        )

    def annotate(self, number: int | None = None, **attributes: Any) -> None:
        """Store attributes of a running trial."""
        trial = self._trial(number)
        with suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                trial.set_user_attr(name, redact(value) if isinstance(value, str) else value)

    def complete(self, value: float, number: int | None = None) -> None:
        """End a running trial with its value."""
        self._end(self._trial(number), TrialState.COMPLETE, value)

    def prune(self, reason: str, number: int | None = None) -> None:
        """End a running trial before its end; Optuna takes its last intermediate value as its value."""
        self.annotate(number, reason=reason)
        self._end(self._trial(number), TrialState.PRUNED)

    def fail(self, reason: str, number: int | None = None) -> None:
        """End a running trial because of an error of its own."""
        self.annotate(number, reason=reason)
        self._end(self._trial(number), TrialState.FAIL)

    def interrupt(self, reason: str) -> None:
        """Fail the trials that this process runs because its user stopped it, and queue their values again."""
        # Without the database its heartbeats end, which says the same later.
        with self.outage.limit(STOPPING_PATIENCE), suppress(DatabaseAwayError):
            while self._running:
                number = next(iter(self._running))
                del self._running[number]
                with self.lock:
                    fail_lost_trial(self.optuna, self.trials()[number], reason)

    def record_heartbeat(self) -> None:
        """Tell the storage that this process still runs its trials, if the storage supports that."""
        if (record := getattr(self.storage, "record_heartbeat", None)) is None:
            return
        for trial in list(self._running.values()):
            with suppress(Exception):  # the next heartbeat may get through
                record(trial._trial_id)

    def retried_trials_of(self, pid: int) -> list[int]:
        """Numbers of the trials that were lost with the worker of a process id on this host, and are tried again."""
        trials, host = self.trials(), this_host()
        owners = [
            owner for owner in map(owner_of, trials) if owner and (owner.host, owner.pid) == (host, pid)
        ]
        return [
            trial.number
            for trial in trials
            if "lost" in trial.user_attrs
            and "retry" not in trial.user_attrs
            and owner_of(trial) in owners[-1:]  # process ids are reused: the newest
        ]

    def requeue_stale_trials(self) -> list[int]:
        """Fail trials whose worker is dead, and queue their values again once. Needs the lock.

        Returns the numbers of those that were found by this host. Raises `UserError` as `find_stale_trials`.
        """
        stale = list(find_stale_trials(self.optuna, self.plan.storage, self._running))
        for trial in stale:
            fail_lost_trial(self.optuna, trial)
        if not storages.is_local(self.plan.storage):
            fail_stale_trials(self.optuna)
        requeue_lost_trials(self.optuna)
        return [trial.number for trial in stale]

    def _complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]

    def _trial(self, number: int | None) -> Trial:
        """A trial that this process runs; None: the only one."""
        if number is None:
            (number,) = self._running
        return self._running[number]

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        try:
            self.optuna.tell(trial, value, state)
        except (ValueError, UpdateFinishedTrialError):
            if not self.trials()[trial.number].state.is_finished():
                raise
        finally:
            del self._running[trial.number]

    def _has_all_trials(self) -> bool:
        """Whether no further trial may be started, unless one is queued."""
        sampler = self.optuna.sampler
        exhausted = isinstance(sampler, SeededSampler) and sampler.is_exhausted(self.trials())
        return exhausted or self.count_trials() >= self.plan.trials

    def _has_trials_left(self) -> bool:
        """Whether a trial is queued, or another one may be started."""
        return not self._has_all_trials() or any(trial.state == TrialState.WAITING for trial in self.trials())

    def _check_failures(self, trials: list[FrozenTrial]) -> None:
        ended = [trial for trial in trials if trial.state.is_finished() and not is_lost(trial)]
        last = ended[-MAX_FAILURES:]
        if len(last) == MAX_FAILURES and all(trial.state == TrialState.FAIL for trial in last):
            first = next(trial for trial in ended if trial.state == TrialState.FAIL)
            raise UserError(
                f"The study {self.plan.name!r} stops because its last {MAX_FAILURES} trials failed; the first that"
                f" failed was trial {first.number}: {first.user_attrs.get('reason', 'no reason known')}"
            )

    def _open(self) -> optuna.Study:
        plan = self.plan
        arguments: dict[str, Any] = {
            "storage": self.storage,
            "study_name": plan.name,
            "direction": plan.metric.direction,
            "sampler": SeededSampler(plan.sampler, plan.searched_space, plan.sampler_seed),
            "pruner": PRUNERS[plan.pruner](plan.baseline.train.epochs, plan.trainings),
        }
        try:
            return optuna.create_study(**arguments)
        except DuplicatedStudyError:
            return optuna.create_study(**arguments, load_if_exists=True)

    def _check_identity(self) -> None:
        """Store the plan's identity in a new study; check it in an existing one."""
        wanted = self.plan.identity()
        stored = self.optuna.user_attrs.get("plan")
        if stored is None and self.trials():
            raise UserError(
                f"The study {self.plan.name!r} in {redact(self.plan.storage)} was not created by this runner; choose"
                " another --study."
            )
        if differences := describe_differences(stored, wanted) if stored else []:
            rest = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"The study {self.plan.name!r} exists with other settings or data: {'; '.join(differences[:3])}{rest};"
                " choose another --study, or use what it had."
            )
        if stored != wanted:  # it is new, or earlier versions did not store digests
            self.optuna.set_user_attr("plan", wanted)

    def _check_trials(self) -> None:
        """Raises `UserError` if the stored study is damaged, but can still be read."""
        broken = [trial.number for trial in self.trials() if not is_sound(trial)]
        if broken or len(self.optuna.directions) != 1:
            what = f"trial {broken[0]}" if broken else "its direction"
            raise UserError(
                f"The study {self.plan.name!r} in {redact(self.plan.storage)} is damaged ({what}); restore the storage,"
                " or choose another --study."
            )

    def _queue_baseline(self) -> None:
        """Make the baseline trial 0 of a study that has no trials: it is new, or its creator died."""
        if not self.trials():
            settings = flatten(as_tree(self.plan.baseline))
            values: dict[str, Value] = self.plan.space.pick(
                settings, lambda each: as_value(settings[each.setting])
            )
            self.optuna.set_metric_names([f"validation {self.plan.objective}"])
            self.optuna.enqueue_trial(values, user_attrs={"baseline": True, REQUEST: "baseline"})
