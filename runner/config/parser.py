"""From a command line to an experiment: a YAML file, and flags that override its settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.architecture import for_network
from runner.config.data_schema import DataConfig
from runner.config.fields import VALIDATION, PositiveInt
from runner.config.images_argument import dataset_name, looks_like_path, take_images
from runner.config.metadata import Setting, groups, table
from runner.config.protocols import without_decided
from runner.config.reference import commented_yaml, help_text
from runner.config.repeat import Over, Repeat
from runner.config.schema import Experiment
from runner.config.stages import follow_stages
from runner.config.tree import from_tree, put, setting_in, unknown, validated
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.safe_yaml import dump_yaml, parse_yaml, read_yaml
from runner.utils.text import did_you_mean

QUICKSTART = EXPERIMENTS / "quickstart.yaml"
"""The experiment without --config. Its images come with scikit-learn, its weights are random."""
OWN_IMAGES = EXPERIMENTS / "folder.yaml"
"""The experiment without --config where the command line names images: pretrained weights, photographs of 224 px."""
IMAGES = ("data.root", "data.test", "data.table")
"""Flags that name images."""
SHORT = {
    "lr": "optim.lr",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "seed.train",
}
"""Short flags, and the settings that they stand for."""


@dataclass(frozen=True)
class Options:
    """What a training command does with the experiment."""

    __pydantic_config__ = VALIDATION
    repeat: PositiveInt = 1
    """Train this number of times, with seeds that count up, as child runs, and report mean ± standard deviation."""
    repeat_over: Over = "seed"
    """With --repeat: seed: other training seeds on one split; split: other splits with one training seed; both: another
    split and training seed each time. The spread over splits also holds what the choice of test images does."""
    workers: PositiveInt = 1
    """Of several runs (--repeat, --split.folds), train this number at a time, each on its share of the CPU's cores."""
    dry_run: bool = False
    """Print what would happen (images, size of the store, estimated time, disk space), and stop."""
    resume: str | None = None
    """Resume an interrupted run, given by id, first characters of the id, or name. auto, or no value: the newest
    interrupted run of this experiment; a new run if there is none."""
    branch: bool = False
    """With --resume RUN: start a new run from the state of that run, with changed settings. An interrupted epoch
    starts again."""

    smoke: bool = False
    """Do not register the model: the run only tries something. The same as --tracking.register false."""

    def __post_init__(self) -> None:
        if self.branch and self.resume is None:
            raise ValueError("--branch needs the run to start from: --resume RUN")
        if self.repeat_over != "seed" and self.repeat == 1:
            raise ValueError(f"--repeat-over {self.repeat_over} needs --repeat K, the number of runs")

    @property
    def repeated(self) -> Repeat:
        """How often the experiment is trained, and over what."""
        return Repeat(self.repeat, self.repeat_over)


BARE = {"dry_run": "true", "resume": "auto", "branch": "true", "smoke": "true"}
"""Values of options that are given without one."""


def parse(
    argv: Sequence[str], prog: str = "runner train", description: str | None = None
) -> tuple[Experiment, Options]:
    """The experiment and the options of a command line.

    Args:
        argv: A path of images, which stands for data.root with data.kind=folder; `--config FILE|NAME`; flags of
            settings and options. Without a file it is `OWN_IMAGES` if images or another data.kind than digits are
            given, else `QUICKSTART`. A flag may be written with `-` or `_`, and overrides the file wherever it stands.
        prog: The command, for help and messages.
        description: Text of the help before the list of settings.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, settings that cannot work
            together, no such file.
        SystemExit: after `--help` and `--print_config`.
    """
    parser = _build_parser(prog, description)
    given, rest = parser.parse_known_args(_switches_with_values([_canonical(word) for word in argv]))
    flags = [word for word in rest if word.startswith("-")]
    words = vars(given)
    if not flags:  # else the other words may be their values
        take_images(rest, words)
    name, wants_help, print_config = (words.pop(each) for each in ("config", "help", "print_config"))
    path = _default_experiment(words) if name is None else find_experiment(name)
    tree = _read_tree(path)
    if path.resolve().parent == EXPERIMENTS or "name" not in tree:
        _name_after_folder(tree, words)
    if wants_help:
        _build_parser(
            prog, f"{description or ''}\nThe defaults below are those of {path.name}.", tree
        ).print_help()
        raise SystemExit(0)
    if flags:
        raise UserError(_stray(flags[0]))
    tree = without_decided(tree, words.get("split.protocol", ""))  # a flag overrides what the file says
    values = {name: _value(table()[name], word) for name, word in words.items() if name in table()}
    options = {
        name: _value(table(Options)[name], word or BARE.get(name, ""))
        for name, word in words.items()
        if name not in table()
    }
    tree = for_network(tree, values)
    for name, value in values.items():
        put(tree, name, value)
    if "train.stages" in values:
        tree = follow_stages(tree, values)
    if options.get("smoke"):
        put(tree, "tracking.register", False)
    experiment = from_tree(tree)
    if print_config:
        sys.stdout.write(commented_yaml(experiment))
        raise SystemExit
    return experiment, validated(Options, options)


def given_settings(argv: Sequence[str]) -> list[str]:
    """Names of the settings that flags of a command line give."""
    flags = (_canonical(word).removeprefix("--").partition("=")[0] for word in argv if word.startswith("--"))
    names = (SHORT.get(flag, flag) for flag in flags)
    return [name for name in names if name in table()]


def _default_experiment(words: Mapping[str, str]) -> Path:
    """The experiment file of a command line without --config, given its flags by setting."""
    kind = words.get("data.kind", "digits" if words.keys().isdisjoint(IMAGES) else "folder")
    return QUICKSTART if kind == "digits" else OWN_IMAGES


def _name_after_folder(tree: dict[str, Any], words: Mapping[str, str]) -> None:
    """Name an experiment after its folder of images, or its table: a shipped file's name is that of other images."""
    root = words.get("data.root") or setting_in(tree, "data.root", None) or words.get("data.table")
    kind = words.get("data.kind") or setting_in(tree, "data.kind", DataConfig.kind)
    if kind == "folder" and isinstance(root, str):
        tree["name"] = dataset_name(root) or OWN_IMAGES.stem


def read(path: Path) -> Experiment:
    """The experiment in a file. Raises `UserError` as `parse`."""
    return from_tree(_read_tree(path))


def find_experiment(name: str) -> Path:
    """The experiment file `name`: a path, or the name of a file in experiments/.

    Raises `UserError` with the known names if there is none.
    """
    for path in (Path(name), EXPERIMENTS / name, EXPERIMENTS / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    raise UserError(
        f"There is no experiment file {name!r}{did_you_mean(Path(name).stem, shipped)};"
        f" give a path, or one of {', '.join(shipped)}."
    )


def _read_tree(path: Path) -> dict[str, Any]:
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings; see experiments/quickstart.yaml for the form.")
    for name in groups():
        if not isinstance(tree.get(name, {}), dict):
            raise UserError(f"{path}: {name} must be a group of settings, as {name}: {{…}}.")
    return tree


def _value(setting: Setting, word: str) -> Any:
    """The value that a word of the command line stands for: text where the setting takes text, else YAML."""
    if setting.admits(str) and not word.startswith("{"):
        return None if word == "null" and setting.admits(type(None)) else word
    try:
        return parse_yaml(word)
    except UserError as error:
        raise UserError(f"The value of --{setting.name} {error}") from None


def _canonical(word: str) -> str:
    """A flag with `_` for `-`."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def _switches_with_values(argv: Sequence[str]) -> list[str]:
    """The words, with `=true` at a switch that a path of images follows: it would be taken for the switch's value."""
    switches = {f"--{name}" for name, value in BARE.items() if value == "true"}
    return [
        f"{word}=true" if word in switches and looks_like_path(after) else word
        for word, after in zip(argv, [*argv[1:], ""], strict=False)
    ]


def _stray(word: str) -> str:
    """The sentence for a flag that the parser does not know."""
    names = ["config", "print_config", *table(Options), *table()]
    return f"{unknown(word.lstrip('-').partition('=')[0], names)}."


def _build_parser(
    prog: str, description: str | None, tree: Mapping[str, Any] | None = None
) -> CommandLineParser:
    """The parser of a training command. Only with the settings of a file it has help, which takes time to write."""
    parser = CommandLineParser(
        prog=prog,
        usage=f"{prog} [IMAGES] [--config FILE|NAME] [--SETTING VALUE …]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="IMAGES is the path of your images: the same as --data.root IMAGES --data.kind folder. In flags, - and _"
        " are the same. Values are YAML, as --augment.scale '[0.8, 1]'.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        default=False,
        help="Show this help. With --config, the defaults are those of that file.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        default=None,
        help="Experiment file, or the name of one in experiments/ (default: folder if IMAGES, --data.root"
        " or --data.kind names images, else quickstart).",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=False,
        help="Print all settings of the experiment as a commented file, and exit.",
    )

    sections: dict[str, argparse._ActionsContainer] = {"": parser}
    for name, title in groups().items():
        sections[name] = parser.add_argument_group(name, f"{title}.")
    for each in (*table(Options).values(), *table().values()):
        sections[each.name.rpartition(".")[0]].add_argument(
            f"--{each.name}",
            *(f"--{flag}" for flag, name in SHORT.items() if name == each.name),
            dest=each.name,
            metavar="VALUE",
            nargs="?" if each.name in BARE else None,
            help=None if tree is None else _help(each, tree).replace("%", "%%"),
        )
    return parser


def _help(setting: Setting, tree: Mapping[str, Any]) -> str:
    """The help of a flag; `tree` are the settings of the file that it overrides."""
    default = dump_yaml(setting_in(tree, setting.name, setting.default), flow=True)
    return help_text(setting, f"default: {default}")
