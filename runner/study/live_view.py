"""What a person sees of a study: a live table on a terminal, a line a trial elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runner.study.plan import Plan
from runner.study.study import Study, is_baseline, is_lost, words
from runner.utils.console import Terminal, format_duration

LAST = 5
"""Ended trials that the table shows."""


class View:
    """Looks at a study again and again, and shows what is new.

    Args:
        plan: The study's.
        study: In its storage.
        terminal: Where it is shown.
    """

    def __init__(self, plan: Plan, study: Study, terminal: Terminal) -> None:
        self.plan = plan
        self.study = study
        self.terminal = terminal
        self.began = time.monotonic()
        self.known = {each.number for each in study.trials() if each.state.is_finished()}
        self.done_before = len(self.known)
        self.live: Live | None = None

    def __enter__(self) -> View:
        done = study_words(self.study)
        self.terminal.line(f"study {self.plan.name}: {done}; {self.plan.trials} trials wanted")
        if self.terminal.console.is_terminal and not self.terminal.console.quiet:
            self.live = Live(console=self.terminal.console, transient=True, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self) -> None:
        """Show what has happened since the last look."""
        trials = self.study.trials()
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.known:
                self.known.add(trial.number)
                if self.live is None:
                    self.terminal.line(self._line(trial))
        if self.live is not None:
            self.live.update(self._table(trials), refresh=True)

    def _line(self, trial: FrozenTrial) -> str:
        best = self.study.best
        behind = (
            f"  (best {best.value:.4f}, trial {best.number})"
            if best is not None and best.value is not None
            else ""
        )
        return f"trial {trial.number:3}  {self._state(trial)}{behind}  {self._what(trial)}  {self._pace()}"

    def _state(self, trial: FrozenTrial) -> str:
        if trial.state == TrialState.COMPLETE:
            return f"{trial.value:.4f}"
        if trial.state == TrialState.RUNNING:
            steps = trial.intermediate_values
            return f"epoch {max(steps)}: {steps[max(steps)]:.4f}" if steps else "begins"
        if is_lost(trial):
            return f"lost ({trial.user_attrs.get('lost', 'its host went silent')})"
        reason = trial.user_attrs.get("reason", "")
        return reason if trial.state == TrialState.PRUNED else f"failed: {reason}"

    def _what(self, trial: FrozenTrial) -> str:
        return ("baseline: " if is_baseline(trial) else "") + words(trial.params)

    def _pace(self) -> str:
        """Rate and time left, by what was done since this command began."""
        ended = len(self.known) - self.done_before
        elapsed = time.monotonic() - self.began
        if not ended:
            return ""
        left = max(0, self.plan.trials - self.study.counted())
        return f"{60 * ended / elapsed:.1f} trials/min, {format_duration(left * elapsed / ended)} left"

    def _table(self, trials: list[FrozenTrial]) -> Group:
        table = Table(
            title=Text(f"study {self.plan.name}"), title_justify="left", title_style="bold", expand=True
        )
        table.add_column("trial", justify="right")
        table.add_column(f"validation {self.plan.objective}", no_wrap=True)
        table.add_column("settings", overflow="ellipsis", no_wrap=True, ratio=1)
        ended = [each for each in trials if each.state.is_finished()][-LAST:]
        for each in ended:
            table.add_row(str(each.number), self._state(each), self._what(each), style="dim")
        table.add_section()
        for each in trials:
            if each.state == TrialState.RUNNING:
                table.add_row(str(each.number), self._state(each), self._what(each))
        table.add_section()
        if (best := self.study.best) is not None:
            table.add_row(f"best {best.number}", self._state(best), self._what(best), style="green")
        done = sum(each.state.is_finished() and not is_lost(each) for each in trials)
        bar = ProgressBar(total=self.plan.trials, completed=min(done, self.plan.trials), width=40)
        return Group(table, bar, Text(f"{done}/{self.plan.trials} trials  {self._pace()}"))


def study_words(study: Study) -> str:
    """How far a study is: `12 complete, 3 pruned`."""
    states = ["lost" if is_lost(each) else each.state.name.lower() for each in study.trials()]
    return ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states)) or "new"
