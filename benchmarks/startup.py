"""Measures how long commands take from start to prompt when there is little to compute.

    ./launch.sh bench startup [--rounds 5] [--only help,train]

`help`: `runner --help`. `train`: three epochs of the quickstart, whose features are cached. `predict`: of one image.
`evaluate`: a run, without a report. `libraries`: Python imports torch, torchvision, accelerate and mlflow, which says
how fast the machine is. Each is a new process; seconds are medians of rounds in turns, and `…_ratio` are medians of
the ratios to `libraries` of the same round. Records and cache are in a folder of their own that is deleted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from operator import truediv
from pathlib import Path

from PIL import Image

from benchmarks.support.processes import user_environment
from benchmarks.support.timing import seconds
from runner.cli.options import positive_integer
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

LIBRARIES = "libraries"
EPOCHS = 3


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench startup",
        description="Measure how long commands take when there is little to compute.",
    )
    parser.add_argument("--rounds", type=positive_integer, default=5, help="default: 5")
    parser.add_argument("--only", metavar="NAMES", default="", help="commands to measure; default: all")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        commands = _commands(Path(name))
        chosen = options.only.split(",") if options.only else list(commands)
        for unknown in set(chosen) - set(commands):
            raise UserError(
                f"bench startup does not measure {unknown!r}{did_you_mean(unknown, commands)};"
                f" it measures {', '.join(commands)}."
            )
        terminal = Terminal()
        terminal.line("training once: features are computed")
        _run(commands["train"])
        measured = {each: commands[each] for each in dict.fromkeys([*chosen, LIBRARIES])}
        print(json.dumps(_measure(measured, options.rounds, terminal)))
    return 0


def _commands(folder: Path) -> dict[str, list[str]]:
    image = folder / "image.png"
    Image.new("RGB", (64, 48), "orange").save(image)
    tracking = ["--tracking.root", str(folder / "mlruns")]
    runner = [sys.executable, "-m", "runner.cli.main"]
    schedule = ["--schedule.kind", "constant", "--train.epochs", str(EPOCHS)]
    cache = ["--cache", str(folder / "cache")]
    return {
        "help": [*runner, "--help"],
        "train": [*runner, "train", "--config", "quickstart", *schedule, *cache, *tracking],
        "predict": [*runner, "predict", str(image), *tracking],
        "evaluate": [*runner, "evaluate", "latest", "--no-report", *tracking],
        LIBRARIES: [sys.executable, "-c", "import torch, torchvision, accelerate, mlflow"],
    }


def _measure(commands: Mapping[str, Sequence[str]], rounds: int, terminal: Terminal) -> dict[str, object]:
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            taken[name].append(seconds(partial(_run, command)))
        shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in taken.items())
        terminal.line(f"round {number + 1} of {rounds}: {shown}")
    medians = {f"{name}_seconds": statistics.median(values) for name, values in taken.items()}
    libraries = taken.pop(LIBRARIES)
    ratios = {
        f"{name}_ratio": statistics.median(map(truediv, values, libraries)) for name, values in taken.items()
    }
    return {**{name: round(value, 3) for name, value in (medians | ratios).items()}, "rounds": rounds}


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, env=user_environment())
