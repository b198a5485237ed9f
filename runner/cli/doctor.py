"""`runner doctor`: is what lies on disk, in MLflow and in the studies true? What is not is mended, and told.

./launch.sh doctor [--tracking.root FOLDER] [--cache FOLDER] [--check] [--json]
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from runner.config.schema import Experiment
from runner.features.eviction import REMOVED, root_of
from runner.features.eviction import stores as feature_stores
from runner.tracking.journal import GONE, LOCK, Journal, this_host
from runner.tracking.mlflow_server import Server, server
from runner.utils.console import Terminal
from runner.utils.errors import Parser, UserError
from runner.utils.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOUR = 3600.0
"""Seconds after which a file that is being written counts as left behind, where its writer cannot be told."""


@dataclass(frozen=True)
class Finding:
    """Something that was not as it should be."""

    where: str
    what: str
    done: str
    """What was done about it; empty: nothing could be, or was to be."""


@dataclass(frozen=True)
class Patient:
    """What is looked at.

    Args:
        place: The tracking store and the folder of its journals.
        client: Of it; None: it does not answer.
        cache: Of what is computed once.
        mend: Do what can be done, rather than tell only.
        terminal: Shows progress.
    """

    place: Server
    client: MlflowClient | None
    cache: Path
    mend: bool
    terminal: Terminal

    def found(self, where: str | Path, what: str, act: Callable[[], object] | None, done: str) -> Finding:
        """A finding, mended by `act` if it may be; `act` may find that it cannot."""
        if not self.mend or act is None:
            return Finding(str(where), what, "")
        try:
            act()
        except Exception as error:  # whatever refuses: the user is to hear of it
            return Finding(str(where), f"{what}; mending failed: {' '.join(str(error).split())}", "")
        return Finding(str(where), what, done)


def main(argv: Sequence[str]) -> int:
    """Look, mend and tell: 0 where nothing is left to do, 1 where something is. Raises `UserError`."""
    parser = Parser(
        prog="runner doctor",
        description="Look for runs and trials that say RUNNING and do not run, records that wait, files that are half"
        " written, damaged or belong to nothing; mend what can be mended and say what was done. Exit status 0: all is"
        " well now; 1: something is left.",
    )
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    parser.add_argument("--cache", default=Experiment.cache, help=f"default: {Experiment.cache}")
    parser.add_argument("--check", action="store_true", help="only look: change nothing")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, and nothing else"
    )
    asked = parser.parse_args(argv)
    terminal = Terminal(errors=asked.json)
    findings = examine(server(asked.tracking), Path(asked.cache).expanduser(), not asked.check, terminal)
    left = sum(not each.done for each in findings)
    if asked.json:
        print(json.dumps({"findings": [asdict(each) for each in findings], "left": left}))
        return 1 if left else 0
    for each in findings:
        terminal.line(f"{each.where}: {each.what}" + (f" – {each.done}" if each.done else ""))
    mended = len(findings) - left
    said = [f"{mended} mended"] * bool(mended) + [f"{left} left to do"] * bool(left)
    terminal.line(", ".join(said) + "." if said else "All is well.", style="bold")
    return 1 if left else 0


def examine(place: Server, cache: Path, mend: bool, terminal: Terminal) -> list[Finding]:
    """All that is not as it should be in a tracking store, its journals and studies, and a cache."""
    client, findings = None, []
    if place.embedded and not (place.root / "mlflow.db").exists():
        terminal.line(f"There are no records in {place.root}.")
    else:
        try:
            client = place.connect()
        except UserError as error:
            findings.append(Finding(redacted(place.uri), str(error), ""))
        except Exception as error:  # a damaged database, in the words of whichever library met it
            findings.append(Finding(redacted(place.uri), f"cannot be opened: {_words(error)}", ""))
    patient = Patient(place, client, cache, mend, terminal)
    # Runs before journals: delivering one closes the others' runs, too, without a word.
    for look in (database, runs, journals, states, studies, leftovers, stores):
        findings += look(patient)
    return findings


def _words(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))[:300]


def database(patient: Patient) -> Iterator[Finding]:
    """The embedded database, as sqlite sees it."""
    path = patient.place.root / "mlflow.db"
    if patient.place.embedded and path.exists():
        try:
            with closing(sqlite3.connect(path)) as connection:
                said = connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            yield Finding(str(path), f"the database is damaged ({said}); restore it from a copy", "")


def journals(patient: Patient) -> Iterator[Finding]:
    """Records that wait for delivery, and journals of other hosts that have fallen silent."""
    # All are looked at before the first is mended: delivering one delivers the others, too.
    known = Journal.find(patient.place.root / "journals")
    dead = [(each, len(each.pending()), each.ended) for each in known if not each.alive]
    for journal, waiting, ended in dead:
        if not waiting and ended:
            if journal.stays and _is_stranded(journal, patient.place):
                yield Finding(str(journal.folder), "can go on, but its database is not at"
                              f" {redacted(journal.owner.uri)} any more: move it back", "")  # fmt: skip
            if not journal.stays:
                yield patient.found(
                    journal.folder,
                    "holds nothing that was not delivered",
                    partial(_remove, journal),
                    "removed",
                )
            continue
        what = f"{waiting} records of run {journal.owner.run_id[:8]} wait"
        here = journal.owner.host == this_host()
        fate = "is dead" if here else f"on {journal.owner.host} gives no sign of life"
        if redacted(journal.owner.uri) != redacted(patient.place.uri):
            where = redacted(journal.owner.uri)
            yield Finding(str(journal.folder), f"{what} for {where}; ./launch.sh sync delivers them", "")
        elif patient.client is None:
            yield Finding(str(journal.folder), f"{what} for a store that does not answer", "")
        else:
            yield patient.found(
                journal.folder,
                what if ended else f"run {journal.owner.run_id[:8]} says RUNNING, and its process {fate}",
                partial(_deliver, patient, journal),
                "delivered" if ended else "closed as KILLED, its records delivered",
            )


def _is_stranded(journal: Journal, place: Server) -> bool:
    """Whether an interrupted run's database is a file that is gone, as after its folder was moved."""
    kind, found, path = journal.owner.uri.partition("sqlite:///")
    return bool(found) and not kind and journal.owner.uri != place.uri and not Path(path).exists()


def _remove(journal: Journal) -> None:
    with Journal.gripped(journal.folder) as now:
        if now is not None and not now.alive:
            now.remove()


def _deliver(patient: Patient, journal: Journal) -> None:
    from runner.tracking.uploader import recover

    assert patient.client is not None  # noqa: S101 (for types: asked for before)
    recover(patient.place, patient.client, Terminal(speaks=False))
    if journal.folder.exists() and (journal.pending() or not journal.ended):
        raise UserError("the store did not take them; try again")


def runs(patient: Patient) -> Iterator[Finding]:
    """Runs that are RUNNING in MLflow, of processes of this host that do not."""
    if patient.client is None:
        return
    from mlflow.exceptions import MlflowException

    from runner.tracking.uploader import end_as_killed, is_dead

    client = patient.client
    journals = {journal.owner.run_id for journal in Journal.find(patient.place.root / "journals")}
    try:
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    except MlflowException as error:  # it answered at first: a table is damaged, or the server went away
        yield Finding(redacted(patient.place.uri), f"cannot be read: {_words(error)}", "")
        return
    for run in found:
        tags, run_id = run.data.tags, run.info.run_id
        if run_id in journals or tags.get("runner.host") != this_host():
            continue
        if is_dead(tags):
            yield patient.found(
                f"run {run_id[:8]}",
                "says RUNNING, and its process is dead",
                partial(end_as_killed, client, run_id),
                "closed as KILLED",
            )


def states(patient: Patient) -> Iterator[Finding]:
    """What interrupted runs would go on from: damaged snapshots, and states of runs that are gone from MLflow."""
    from runner.tracking.interrupted_runs import STATE, fate, read
    from runner.training import snapshot

    for journal in Journal.find(patient.place.root / "journals"):
        state = journal.folder / STATE
        if journal.alive or not journal.stays:
            continue
        for path in snapshot.paths(state):
            try:
                snapshot.load(path)
            except ValueError as error:
                yield patient.found(path, f"is damaged ({error})", path.unlink, "removed")
        if patient.client is not None and redacted(journal.owner.uri) == redacted(patient.place.uri):
            gone = fate(patient.client, journal.owner.run_id)
            if gone:
                yield patient.found(
                    journal.folder, f"is the state of a run that {gone}", partial(_remove, journal), "removed"
                )
                continue
        if read(journal) is None:
            yield Finding(str(state / "run.json"), "is damaged: its run cannot go on; begin it anew", "")


def studies(patient: Patient) -> Iterator[Finding]:
    """Trials of the default storage that are RUNNING, and whose worker is dead."""
    from runner.study.storage import default

    path = Path(default(patient.place.root))
    if not path.exists():
        return
    from runner.study.study import abandoned, give_back

    try:
        found = abandoned(str(path))
    except UserError as error:
        yield Finding(str(path), str(error), "")
        return
    for study, trial in found:
        yield patient.found(
            f"study {study.study_name}",
            f"trial {trial.number} says RUNNING, and its worker is dead",
            partial(give_back, patient.place.root, str(path), study, trial),
            "marked as failed, to be tried again",
        )


def leftovers(patient: Patient) -> Iterator[Finding]:
    """Files that a killed process was writing, journals that hold nothing, locks that nobody holds."""
    root = patient.place.root
    owned = {journal.folder: journal for journal in Journal.find(root / "journals")}
    for folder in (root, patient.cache):
        if not folder.is_dir():
            continue
        for path in sorted(folder.rglob(".*.partial")):
            journal = next((each for at, each in owned.items() if path.is_relative_to(at)), None)
            if (journal is not None and not journal.alive) or _age(path) > HOUR:
                yield patient.found(path, "was left half written", path.unlink, "removed")
    if not (root / "journals").is_dir():
        return
    for path in sorted((root / "journals").iterdir()):
        if path.is_dir() and path not in owned:
            if not path.name.endswith(GONE) and _holds_records(path):
                yield Finding(str(path), "holds records, and its owner.json cannot be read: restore that", "")
            elif _age(path) > HOUR:
                yield patient.found(path, "is no journal", partial(shutil.rmtree, path), "removed")
        elif (
            path.name.endswith(".lock")
            and path.name != ".champion.lock"
            and _is_free(path)
            and _age(path) > HOUR
        ):
            yield patient.found(path, "is a lock that nobody holds", path.unlink, "removed")


def _holds_records(folder: Path) -> bool:
    """Whether somebody might miss what is in a folder of journals' folder."""
    try:
        return any(path.is_file() and path.name != LOCK for path in folder.rglob("*"))
    except OSError:  # it is another user's
        return True


def stores(patient: Patient) -> Iterator[Finding]:
    """Feature stores: every file's checksum; what a killed removal left."""
    root = root_of(patient.cache)
    if not root.is_dir():
        return
    for path in sorted(root.glob(f"{REMOVED}*")):
        yield patient.found(path, "was being removed", partial(shutil.rmtree, path), "removed")
    found = feature_stores(root, tidy=patient.mend)
    if not found:
        return
    from runner.features.shard_store import is_whole

    with patient.terminal.progress(
        "check feature stores", sum(each.bytes for each in found) >> 20, "MiB"
    ) as advance:
        for store in found:
            for path in sorted(store.folder.glob("*.safetensors")):
                try:
                    size, whole = path.stat().st_size, is_whole(path)
                except FileNotFoundError:  # taken away meanwhile, for its room
                    continue
                if not whole:
                    done = "removed: its rows are computed again when needed"
                    yield patient.found(path, "is damaged", path.unlink, done)
                advance(size >> 20)


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return True
    except (Timeout, OSError):
        return False


def _age(path: Path) -> float:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0
