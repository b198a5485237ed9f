"""From a command line to an experiment: YAML file, dotted overrides, and one sentence for each mistake."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import jsonargparse
import yaml
from jsonargparse.typing import PositiveInt

from runner.config.schema import Data, Experiment, as_tree, dump, flatten
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.safe_yaml import read_yaml
from runner.utils.text import brief, nearest

QUICKSTART = EXPERIMENTS / "quickstart.yaml"
KINDS = {
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, 0 or more",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number, 0 or more",
    "ClosedUnitInterval": "a number from 0 to 1",
    "DropProbability": "a number from 0 to below 1",
    "ReductionFactor": "a number above 1",
    "Degrees": "a number from 0 to 180",
    "HueShift": "a number from 0 to 0.5",
}
"""What the parser's types are to a user."""
DEFAULTS = as_tree(Experiment(data=Data(root=".")))
"""The tree of all settings, for their names."""

jsonargparse.set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],  # the parser would import what a file calls a class_path
    import_path_allowlist=["runner.config.schema.Normalisation"],  # which is an alternative to a word
)


@dataclass(frozen=True)
class Options:
    """What is asked of a training command beside the experiment itself."""

    repeat: PositiveInt = 1
    """Train so many fit seeds, counted up from seed.train, as child runs, and report mean ± sd"""
    dry_run: bool = False
    """Say what would happen (images, store size, estimated time, disk) and stop; also --dry-run"""
    resume: str | None = None
    """Go on with an interrupted run: its id, the first characters of it, or its name; auto: the newest one of this
    very experiment, or a new run where there is none"""
    branch: bool = False
    """Go on from that run's state as a new run, with changed settings; an epoch that was interrupted begins again"""


class Parser(jsonargparse.ArgumentParser):
    """Reports a mistake as a `UserError`, with the nearest setting where a name is unknown."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(brief(explain(message)))  # it may hold a value as it stands in a file


def explain(message: str) -> str:
    """The parser's report, in one sentence for a user."""
    known = ["config", "print_config", *Options.__dataclass_fields__, *flatten(DEFAULTS)]
    if denied := re.search(r"Importing '(.+?)' is not allowed", message):
        return f"{denied[1]!r} names code, which no setting takes; --help shows what each takes."
    if unknown := re.match(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        name = unknown[1]
        return f"There is no setting {name!r}{nearest(name, known)}; --help lists them all."
    if unknown := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
        name = f"{unknown[1]}.{unknown[2]}"
        return f"There is no setting {name!r}{nearest(name, known)}; --help lists them all."
    if unknown := re.match(r"(?:Option|Key) '(.+)' is not (?:accepted|expected)", message):
        return f"There is no setting {unknown[1]!r}{nearest(unknown[1], known)}; --help lists them all."
    if "Literal" in message and message.rstrip().endswith("Got value: False"):
        message = message.rstrip() + " (YAML reads no and off as false: put the word in quotes)"
    if wrong := re.match(r'Parser key "(.+?)":\s*(.+)', message, re.DOTALL):
        reason = " ".join(wrong[2].split()).replace("typing.", "")
        reason = re.sub(
            r"(Expected a |Not of type )(?:<class ')?(.+?)(?:'>)?([.:])", r"\1\2\3", reason, count=1
        )
        for name, words in KINDS.items():
            reason = re.sub(rf"Not of type {name}|<class '[\w.]*{name}'>", f"it takes {words}", reason)
        if union := re.search(r"Subtypes: \[(.*?)\] Errors:.*Given value: (.*)", reason):
            kinds = union[1].replace("it takes ", "").replace(", a ", " or a ").replace("Literal", "one of ")
            reason = f"it takes {kinds}, not {union[2]}"
        return f"The setting {wrong[1]} cannot have that value: {reason.rstrip('.')}; --help shows what it takes."
    return " ".join(message.split())


def build_parser(prog: str = "runner train", description: str | None = None) -> Parser:
    """The one parser of experiments: `--config`, `--print_config`, every setting, and the options."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="Experiment file; a name finds it in experiments/")
    parser.add_class_arguments(Experiment, None)
    parser.add_class_arguments(Options, None)
    return parser


def find_experiment(name: str) -> Path:
    """The experiment file called `name`: a path, or the name of one in experiments/.

    Raises `UserError` with the known names where there is none.
    """
    for path in (Path(name), EXPERIMENTS / name, EXPERIMENTS / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    raise UserError(
        f"There is no experiment file {name!r}{nearest(Path(name).stem, shipped)};"
        f" give a path, or one of {', '.join(shipped)}."
    )


def _normalised(argv: Sequence[str]) -> list[str]:
    """Resolve `--config`, put the quickstart in its place where it is absent, and mend two spellings."""
    words: list[str] = []
    configured = False
    rest: Iterator[str] = iter(argv)
    while (word := next(rest, None)) is not None:
        if word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] or next(rest, None)
            if not name:
                raise UserError("--config needs the path or name of an experiment file.")
            words[:0] = [
                "--config",
                str(_checked_yaml(find_experiment(name))),
            ]  # overrides count wherever they stand
            configured = True
        elif word == "--print_config":
            words.append("--print_config=comments")
        elif word == "--resume":  # without a run it is the newest one
            rest, after = _with_next(rest)
            words.append("--resume=auto" if after.startswith("-") or not after else f"--resume={next(rest)}")
        elif word == "--resume=":
            words.append("--resume=auto")
        elif word == "--branch":
            rest, after = _with_next(rest)
            words.append(f"--branch={next(rest) if after in ('true', 'false') else 'true'}")
        elif word in ("--dry-run", "--dry_run") or word.startswith("--dry-run="):
            words.append(f"--dry_run={word.partition('=')[2] or 'true'}")
        elif word.startswith("-") or (words and words[-1].startswith("--") and "=" not in words[-1]):
            words.append(word)
        else:
            raise UserError(f"{word!r} stands alone; settings are given as --name value (--help lists them).")
    return words if configured else ["--config", str(QUICKSTART), *words]


def _with_next(words: Iterator[str]) -> tuple[Iterator[str], str]:
    """Words, and the first of them, which stays among them; empty: there are none."""
    first = list(islice(words, 1))
    return chain(first, words), "".join(first)


def _checked_yaml(path: Path) -> Path:
    try:
        tree = yaml.safe_load(read_yaml(path))
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
    ) as error:  # ValueError: of a value that is said to be a date
        raise UserError(f"{path} is not a YAML file: {brief(str(error), 300)}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings; see experiments/quickstart.yaml for the form.")
    for name, value in tree.items():
        if isinstance(DEFAULTS.get(name), dict) and not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a group of settings, not {brief(repr(value), 200)}.")
    return path


def parse(
    argv: Sequence[str], prog: str = "runner train", description: str | None = None
) -> tuple[Experiment, Options]:
    """The experiment and the options that a command line means.

    Args:
        argv: `--config FILE` (without: the quickstart), dotted overrides, `--repeat`, `--dry-run`.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, a combination that cannot
            work, no such file.
    """
    parser = build_parser(prog, description)
    try:
        values = parser.parse_args(_normalised(argv))
        tree = parser.instantiate(values)
    except ImportError as error:
        raise UserError(brief(explain(str(error)))) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{brief(str(error))}.") from None
    names = Experiment.__dataclass_fields__
    try:
        experiment = Experiment(**{name: tree[name] for name in names})
    except ValueError as error:
        raise UserError(f"{brief(str(error))}.") from None
    options = Options(**{name: tree[name] for name in Options.__dataclass_fields__})
    if options.branch and options.resume is None:
        raise UserError("--branch needs the run to go on from: --resume RUN.")
    return experiment, options


def read(path: Path) -> Experiment:
    """The experiment in a file, without overrides. Raises `UserError` as `parse` does."""
    return parse(["--config", str(path)])[0]


def check_setting(where: str, experiment: Experiment, name: str, value: object) -> None:
    """See that a setting takes a value. Raises `UserError`, beginning with `where`, if it does not."""
    tree = as_tree(experiment)
    *groups, last = name.split(".")
    node = tree
    for group in groups:
        node = node[group]
    node[last] = value
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(dump(tree))
        file.flush()
        try:
            taken = flatten(as_tree(read(Path(file.name))))[name]
        except UserError as error:
            raise UserError(f"{where} cannot be {value!r}: {error}") from None
    if taken != value:
        raise UserError(f"{where} cannot be {value!r}: the setting would read it as {taken!r}.")
