"""The options of `runner slurm`, and what is wrong with them."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from runner.cli.options import positive_integer
from runner.cli.slurm_script import StopSignal
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.redaction import redact

CPUS_PER_PROCESS = 4
"""CPUs that a job asks for unless the user says how many: a process of training, and what decodes its images."""
MIN_PREFIX = len("--gpu")
"""Shorter words are not taken for the beginning of an option."""
SIMILAR = 0.85
"""How similar a misspelled option is to the one that was meant, as difflib counts."""
SIGNALS = {"USR1": signal.SIGUSR1, "USR2": signal.SIGUSR2}
OWN_SBATCH_OPTIONS = {
    *(
        "nodes",
        "N",
        "ntasks",
        "n",
        "ntasks-per-node",
        "array",
        "a",
        "time",
        "t",
        "partition",
        "p",
        "job-name",
        "J",
    ),
    *("signal", "requeue", "no-requeue", "output", "o", "open-mode", "gpus-per-node", "cpus-per-task", "c"),
}
"""Options of sbatch that the script has already, or relies on."""
FLAGS = ("--dry-run", "--skip-checks")
"""They end in no value, and are none of `--sbatch`."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
DESCRIPTION = """\
Write a batch script for SLURM, and submit it. VERB is train or search; its words are passed on as they are. On each
node the command starts one process per GPU, or as many as -n says. The job is queued again when it is preempted, when
a node fails and when its time is over, until the training has finished. docs/distributed.md explains it.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the job, and the words of its verb. Raises `UserError`."""
    parser = CommandLineParser(prog="runner slurm", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("verb", metavar="VERB", choices=("train", "search"), help="train or search")
    add("--nodes", type=positive_integer, default=1, metavar="N", help="nodes of a training (default: 1)")
    add("--gpus-per-node", type=positive_integer, default=0, metavar="N", help="default: none (CPU)")
    text = f"default: {CPUS_PER_PROCESS} per process, which is one per GPU"
    add("--cpus-per-node", type=positive_integer, metavar="N", help=text)
    text = "time limit, as 4:00:00 or 1-12:00:00 (default: the partition's)"
    add("--time", type=_time, metavar="TIME", help=text)
    text = "signal that lets the run save and stop, and when before the time limit (default: USR1@180)"
    add("--signal", type=_signal, default=StopSignal(), metavar="NAME@SECONDS", help=text)
    add("--partition", type=_one_line, metavar="NAME", help="default: that of the cluster")
    text = "workers of a study, each a job of its own; 50%%8: 8 of them at once"
    add("--array", type=_array, metavar="N", help=text)
    add("--job-name", type=_one_line, metavar="NAME", help="default: the name of the experiment or the study")
    text = "another option of sbatch, as --sbatch --account=x; may be given several times"
    add("--sbatch", type=_sbatch_option, action="append", default=[], metavar="OPTION", help=text)
    text = "do not look for images and weights here: they are on the nodes only"
    add("--skip-checks", action="store_true", help=text)
    add("--dry-run", action="store_true", help="print the script, and stop")
    options, words = parser.parse_known_args(_join_sbatch_options(argv))
    _check_spelling(words, parser)
    if options.dry_run or options.skip_checks:
        words = _name_missing_images(words)
    if options.time and seconds_in(options.time) <= options.signal.seconds:
        raise UserError(
            f"--time {options.time} is no longer than the {options.signal.seconds} seconds before it at which the job"
            " gets the signal to stop; give it more time, or write --signal USR1@SECONDS with fewer."
        )
    for word in (*words, *options.sbatch):
        if redact(word) != word:
            raise UserError(
                f"{redact(word)} holds a password, which the stored script would show; leave it out and put it into"
                " ~/.pgpass, or into the variable PGPASSWORD, which the job gets, too."
            )
    return options, words


def _check_spelling(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raise `UserError` for a word that is like an option of the job: other words would be looked up as settings."""
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    for word in words:
        name = word.partition("=")[0]
        if not name.startswith("--") or "." in name:
            continue
        longer = [option for option in known if option.startswith(name) and len(name) >= MIN_PREFIX]
        if meant := [*longer, *get_close_matches(name, known, 1, SIMILAR)]:
            raise UserError(f"There is no option {name}; did you mean {meant[0]}?")


def _name_missing_images(words: Sequence[str]) -> list[str]:
    """The words with `--data.root` before a path that only nodes have, which would be refused without it."""
    if not words or words[0].startswith("-") or "/" not in words[0] or Path(words[0]).expanduser().exists():
        return list(words)
    kind = [] if any(word.startswith("--data.kind") for word in words) else ["--data.kind", "folder"]
    return [*kind, "--data.root", *words]


def _join_sbatch_options(argv: Sequence[str]) -> list[str]:
    """The words, with `--sbatch=--x` for `--sbatch --x`, which argparse takes for two options."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sbatch" and word not in FLAGS:
            words[-1] = f"--sbatch={word}"
        else:
            words.append(word)
    return words


def _one_line(word: str) -> str:
    if not word.strip() or not word.isprintable():
        raise argparse.ArgumentTypeError(f"{word!r} must be one line of text")
    return word


def _sbatch_option(word: str) -> str:
    name = re.split(r"[= ]", _one_line(word).lstrip("-"), maxsplit=1)[0]
    if name in OWN_SBATCH_OPTIONS:
        raise argparse.ArgumentTypeError(
            f"{word!r} would contradict the script, which runner slurm makes from options of its own"
        )
    return word if word.startswith("-") else f"--{word}"


def _time(word: str) -> str:
    if not seconds_in(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no time as 90 (minutes), 4:00:00 or 1-12:00:00")
    return word


def seconds_in(word: str) -> int:
    """The seconds of a time in SLURM's notation; 0 if it is none."""
    if (match := _TIME.fullmatch(word)) is None:
        return 0
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1]:  # days-hours:minutes:seconds
        return ((days * 24 + first) * 60 + second) * 60 + third
    if match[4]:  # hours:minutes:seconds
        return (first * 60 + second) * 60 + third
    return first * 60 + second  # minutes:seconds


def _signal(word: str) -> StopSignal:
    name, _, seconds = word.removeprefix("SIG").partition("@")
    if name not in SIGNALS or not seconds.isdecimal() or not 0 < int(seconds) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not as USR1@180 or USR2@180, seconds before the time limit"
        )
    return StopSignal(SIGNALS[name], int(seconds))


def _array(word: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(%[1-9]\d*)?", word, re.ASCII):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of workers, as 50, or 50%8 for 8 at once")
    return word
