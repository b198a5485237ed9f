"""The progress of a study: a live table on a terminal, a line per trial in logs."""

from __future__ import annotations

import time

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runner.study.study import Study
from runner.study.trials import count_states, is_baseline, is_lost, short_values
from runner.utils.console import Terminal, format_duration
from runner.utils.text import counted

LAST_TRIALS = 5
"""Finished trials in the table."""
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
        self._start = time.monotonic()
        self._shown = {trial.number for trial in study.trials() if trial.state.is_finished()}
        self._finished_before = len(self._shown)
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
        """Show what has happened since the last refresh."""
        trials = self.study.trials()
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._shown:
                self._shown.add(trial.number)
                if self._live is None:
                    self.terminal.line(self._line(trial))
        if self._live is not None:
            self._live.update(self._table(trials), refresh=True)

    def _line(self, trial: FrozenTrial) -> str:
        best = self.study.best_trial
        so_far = f"  (best {best.value:.4f}, trial {best.number})" if best is not None else ""
        return f"trial {trial.number:3}  {self._progress(trial)}{so_far}  {_values(trial)}  {self._pace()}"

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

    def _pace(self) -> str:
        """Rate since this command began, and the time left at that rate."""
        finished = len(self._shown) - self._finished_before
        if not finished:
            return ""
        elapsed = time.monotonic() - self._start
        left = max(0, self.study.plan.trials - self.study.count_trials())
        return f"{60 * finished / elapsed:.1f} trials/min, {format_duration(left * elapsed / finished)} left"

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
        done = sum(trial.state.is_finished() and not is_lost(trial) for trial in trials)
        bar = ProgressBar(total=plan.trials, completed=min(done, plan.trials), width=40)
        return Group(table, bar, Text(f"{done}/{plan.trials} trials  {self._pace()}"))


def _values(trial: FrozenTrial) -> str:
    return ("baseline: " if is_baseline(trial) else "") + short_values(trial.params)
