"""Checks of what interrupted work is resumed from: saved states of runs, and trials of studies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from runner.cli.doctor.findings import Examination, Finding
from runner.cli.doctor.record_checks import remove_journal
from runner.tracking.interrupted_runs import STATE_FOLDER, read_interrupted_run, why_not_resumable
from runner.tracking.journal import Journal
from runner.utils.errors import UserError
from runner.utils.redaction import redact


def check_saved_states(examination: Examination) -> Iterator[Finding]:
    """Snapshots or records of interrupted runs are damaged, or their run is gone from MLflow."""
    from runner.training import snapshot

    server, client = examination.server, examination.client
    for journal in Journal.find_all(server.journals):
        if journal.alive or not journal.resumable:
            continue
        state = journal.folder / STATE_FOLDER
        for path in snapshot.paths(state):
            try:
                snapshot.load(path)
            except ValueError as error:
                yield examination.resolve(path, f"is damaged ({error})", path.unlink, "removed")
        same_store = redact(journal.owner.uri) == redact(server.uri)
        if client is not None and same_store and (gone := why_not_resumable(client, journal.owner.run_id)):
            remove = partial(remove_journal, journal)
            what = f"is the state of a run that {gone}"
            yield examination.resolve(journal.folder, what, remove, "removed")
            continue
        if read_interrupted_run(journal) is None:
            yield Finding(str(state / "run.json"), "is damaged: its run cannot be resumed; start it again")


def check_trials(examination: Examination) -> Iterator[Finding]:
    """Trials in the default study storage are RUNNING, but their worker is dead."""
    from runner.study.storage import default_storage

    root = examination.server.root
    path = Path(default_storage(root))
    if not path.exists():
        return
    from runner.study.stale_trials import requeue_stale_trial, stale_trials_in_journal

    try:
        stale = stale_trials_in_journal(str(path))
    except UserError as error:
        yield Finding(str(path), str(error))
        return
    for study, trial in stale:
        yield examination.resolve(
            f"study {study.study_name}",
            f"trial {trial.number} is RUNNING, but its worker is dead",
            partial(requeue_stale_trial, root, str(path), study, trial),
            "marked as failed, to be tried again",
        )
