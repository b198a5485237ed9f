"""`runner doctor`: check and repair run records.

./launch.sh doctor [--tracking.root FOLDER] [--cache FOLDER] [--check] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from runner.cli.doctor.file_checks import check_feature_stores, check_journal_folder, check_partial_files
from runner.cli.doctor.findings import Check, Examination, Finding
from runner.cli.doctor.record_checks import (
    check_database,
    check_journals,
    check_refused,
    check_runs,
    check_runs_of_other_hosts,
)
from runner.cli.doctor.state_checks import check_saved_states, check_trials
from runner.cli.options import JSON_HELP, add_tracking_root
from runner.config.schema import Experiment
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.moved_records import is_read_only
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.paths import cache_folder
from runner.utils.redaction import error_line, redact

CHECKS: tuple[Check, ...] = (
    check_database,
    check_runs,  # before the journals, whose delivery closes these runs without reporting them
    check_runs_of_other_hosts,
    check_journals,
    check_refused,
    check_saved_states,
    check_trials,
    check_partial_files,
    check_journal_folder,
    check_feature_stores,
)
"""All checks, in order. A new one is a function of an `Examination` that yields findings."""


def main(argv: Sequence[str]) -> int:
    """Run all checks. Returns 0 if no problem is left, otherwise 1. Raises `UserError` for a bad command line."""
    parser = CommandLineParser(
        prog="runner doctor",
        description="Check and repair run records: runs and trials that are marked as running but are not, records that"
        " were not delivered, and files that are incomplete, damaged or left over. Exit status 0: no problem is left;"
        " 1: some are.",
    )
    add_tracking_root(parser)
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=Experiment.cache,
        help="folder of cached features; default: as the setting `cache`",
    )
    parser.add_argument("--check", action="store_true", help="only report; change nothing")
    parser.add_argument(
        "--lost-host",
        metavar="HOST",
        action="append",
        default=[],
        help="a host that is gone for good: its runs that are RUNNING are closed as KILLED",
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    options = parser.parse_args(argv)
    terminal = Terminal(stderr=options.json)
    server, cache = tracking_server(options.tracking), cache_folder(options.cache)
    if server.embedded and is_read_only(server.root):
        raise UserError(
            f"The records in {server.root} are read-only, and doctor needs to lock them, also for --check: make the"
            " folder writable, or check a copy of it."
        )
    findings = examine(server, cache, not options.check, terminal, options.lost_host)
    left = sum(not finding.done for finding in findings)
    if options.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "left": left}))
        return 1 if left else 0
    for finding in findings:
        terminal.line(f"{finding.where}: {finding.what}" + (f" – {finding.done}" if finding.done else ""))
    repaired = len(findings) - left
    summary = [f"{repaired} repaired"] * bool(repaired) + [f"{left} left to fix"] * bool(left)
    terminal.line(", ".join(summary) + "." if summary else "No problems found.", style="bold")
    return 1 if left else 0


def examine(
    server: TrackingServer, cache: Path, repair: bool, terminal: Terminal, lost_hosts: Collection[str] = ()
) -> list[Finding]:
    """Run all checks on a tracking store, its journals and studies, and a cache; see `Examination`."""
    client, findings = None, []
    if server.embedded and not (server.root / "mlflow.db").exists():
        terminal.line(f"There are no records in {server.root}.")
    else:
        try:
            client = server.connect()
        except UserError as error:
            findings.append(Finding(redact(server.uri), str(error)))
        except Exception as error:  # a damaged database: each library involved raises its own
            findings.append(Finding(redact(server.uri), f"cannot be opened: {error_line(error)}"))
    examination = Examination(server, client, cache, repair, terminal, lost_hosts)
    for check in CHECKS:
        findings += check(examination)
    return findings
