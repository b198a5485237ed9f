"""The progress of a study: a live table on a terminal, a line per trial in logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runner.study.outages import DatabaseAwayError
from runner.study.study import Study
from runner.study.trials import count_states, is_baseline, is_lost, short_values
from runner.utils.console import Terminal, format_duration, recent_rate
from runner.utils.text import counted

LAST_TRIALS = 5
"""Finished trials in the table."""
RATE_UPDATES = 20
"""Refreshes with finished trials that the rate is averaged over."""
MAX_PROGRESS = 30
"""Columns for a trial's value, or why it has none: a long reason is cut, so that the settings have room."""


class LiveView:
    """Shows what is new in a study whenever it is refreshed.

    Args:
        study: The study.
        terminal: Where to show it.
    """

    def __init__(self, study: Study, terminal: Terminal) -> None:
        self.study = study
        self.terminal = terminal
        self._shown = {trial.number for trial in study.trials() if trial.state.is_finished()}
        self._recent: deque[tuple[float, int]] = deque(maxlen=RATE_UPDATES)
        """Times at which trials were found finished, and how many were so by then."""
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        plan, trials = self.study.plan, self.study.trials()
        if all(trial.state == TrialState.WAITING for trial in trials):
            progress = f"{counted(plan.trials, 'trial')}, the baseline first"
        else:
            progress = f"{count_states(trials)}; {counted(plan.trials, 'trial')} in total"
        self.terminal.line(f"study {plan.name}: {progress}")
        if self.terminal.console.is_terminal and not self.terminal.console.quiet:
            self._live = Live(console=self.terminal.console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Show what has happened since the last refresh. A database that is away is not waited for."""
        with self.study.outage.limit(0), suppress(DatabaseAwayError):
            self._refresh()

    def _refresh(self) -> None:
        trials = self.study.trials()
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._shown]
        self._shown.update(trial.number for trial in new)
        if new:
            self._recent.append((time.monotonic(), len(self._shown)))
        if self._live is None:
            for trial in new:
                self.terminal.line(self._line(trial, trials))
        if self._live is not None:
            self._live.update(self._table(trials), refresh=True)

    def _line(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
        best = self.study.best_trial
        so_far = f"  (best {best.value:.4f}, trial {best.number})" if best is not None else ""
        words = f"trial {trial.number:3}  {self._progress(trial)}{so_far}  {_values(trial)}"
        return f"{words}  {self._pace(trials)}".rstrip()

    def _progress(self, trial: FrozenTrial) -> str:
        """How far a trial is, or how it ended."""
        if trial.state == TrialState.COMPLETE:
            return f"{trial.value:.4f}"
        if trial.state == TrialState.RUNNING:
            if not trial.intermediate_values:
                return "starting"
            step, value = max(trial.intermediate_values.items())
            when = self.study.plan.training_name(step) if self.study.plan.trainings > 1 else f"epoch {step}"
            return f"{when}: {value:.4f}"
        if is_lost(trial):
            return f"lost ({trial.user_attrs.get('lost', 'its host stopped responding')})"
        reason = str(trial.user_attrs.get("reason", ""))
        return reason if trial.state == TrialState.PRUNED else f"failed: {reason}"

    def _pace(self, trials: Sequence[FrozenTrial]) -> str:
        """Rate of the last trials, and the time left at that rate; empty while it is not known.

        Trials that are running are left. The first ones do not count: features may be computed in them.
        """
        rate = recent_rate(self._recent)
        left = self.study.plan.trials - _count_done(trials)
        if rate is None or left <= 0:
            return ""
        return f"{60 * rate:.1f} trials/min, {format_duration(left / rate)} left"

    def _table(self, trials: list[FrozenTrial]) -> Group:
        plan = self.study.plan
        table = Table(title=Text(f"study {plan.name}"), title_justify="left", title_style="bold", expand=True)
        table.add_column("trial", justify="right")
        table.add_column(f"validation {plan.metric.label}", no_wrap=True, max_width=MAX_PROGRESS)
        table.add_column("settings", overflow="ellipsis", no_wrap=True, ratio=1)
        for trial in [trial for trial in trials if trial.state.is_finished()][-LAST_TRIALS:]:
            table.add_row(str(trial.number), self._progress(trial), _values(trial), style="dim")
        table.add_section()
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                table.add_row(str(trial.number), self._progress(trial), _values(trial))
        table.add_section()
        if (best := self.study.best_trial) is not None:
            table.add_row(f"best {best.number}", self._progress(best), _values(best), style="green")
        done = _count_done(trials)
        bar = ProgressBar(total=plan.trials, completed=min(done, plan.trials), width=40)
        return Group(table, bar, Text(f"{done}/{plan.trials} trials  {self._pace(trials)}"))


def _count_done(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state.is_finished() and not is_lost(trial) for trial in trials)


def _values(trial: FrozenTrial) -> str:
    return ("baseline: " if is_baseline(trial) else "") + short_values(trial.params)
