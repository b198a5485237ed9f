"""The console script: `runner VERB …`. A verb's module is imported when the verb is called, so that help is quick."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from runner.utils.cluster import this_task
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main
from runner.utils.launch_environment import forget_other_launches, ignored_settings
from runner.utils.text import did_you_mean


@dataclass(frozen=True)
class Verb:
    """What `runner VERB` runs.

    Args:
        target: `module:function`. The function takes the words after the verb and returns an exit status.
        summary: What the verb does, for the usage.
        usage: Its words, for the usage.
        launches: Whether it starts processes that compute together.
        tasks: What several tasks of a scheduler do that run it: compute "together", work "apart", or nothing (refused).
    """

    target: str
    summary: str
    usage: str
    launches: bool = False
    tasks: Literal["together", "apart", ""] = ""


VERBS = {
    "train": Verb(
        "runner.cli.train:main", "train a model", "IMAGES [--config NAME] [--resume auto]", True, "together"
    ),
    "search": Verb(
        "runner.study.coordinator:search",
        "search settings",
        "IMAGES --study NAME [--space NAME]",
        True,
        "apart",
    ),
    "lr-find": Verb(
        "runner.cli.lr_find:main", "suggest a learning rate", "IMAGES [--config NAME] [--steps 100]"
    ),
    "augment": Verb(
        "runner.cli.augment:main", "show augmented views", "IMAGES [--config NAME] [--show FILE]"
    ),
    "slurm": Verb("runner.cli.slurm:main", "submit a job to SLURM", "train|search … [--nodes N]"),
    "evaluate": Verb(
        "runner.cli.evaluate:launch_evaluation",
        "evaluate a run",
        "RUN [--split test] [--json]",
        True,
        "together",
    ),
    "predict": Verb("runner.cli.predict:main", "classify images", "IMAGE|DIR|GLOB… [--model MODEL]"),
    "explain": Verb(
        "runner.cli.explain:main", "draw Grad-CAM maps", "IMAGE… [--method gradcam] [--target CLASS]"
    ),
    "compare": Verb("runner.cli.compare:main", "compare runs", "RUN RUN… | --study NAME [--json]"),
    "export": Verb("runner.cli.export:main", "export a model to ONNX", "[--model MODEL] --onnx FILE"),
    "export-run": Verb("runner.cli.export_run:main", "write a run to a file", "RUN FILE.zip"),
    "import-run": Verb("runner.cli.import_run:main", "add the run of such a file", "FILE.zip"),
    "reproduce": Verb("runner.cli.reproduce:main", "repeat a run and compare", "RUN [--json]", True),
    "runs": Verb("runner.cli.runs:main", "list or delete runs", "[--name NAME] | delete RUN… | champion RUN"),
    "ui": Verb("runner.cli.ui:main", "open the MLflow UI", "[--port 5000]"),
    "sync": Verb("runner.cli.sync:main", "upload pending run records", ""),
    "doctor": Verb("runner.cli.doctor.command:main", "check and repair run records", "[--check]"),
    "store": Verb("runner.cli.store:main", "manage cached features", "list | remove NAME…"),
    "models": Verb("runner.cli.models:main", "list architectures", "[--filter PATTERN] [--json]"),
    "bench": Verb("runner.cli.bench:main", "run a benchmark", "NAME [settings]"),
}
"""All verbs. A new one is a line here and a module with its function."""


def usage() -> str:
    """What `runner --help` prints."""
    lines = [
        "usage: runner VERB …",
        "",
        *(f"  {name:<11}{verb.summary:<30}{verb.usage}" for name, verb in VERBS.items()),
        "",
        "train and evaluate take -n N: the number of processes. Default: one per GPU, or one on the CPU.",
        "runner VERB --help explains a verb; runner --version prints the version.",
    ]
    width = shutil.get_terminal_size().columns - 1
    indents = [" " * 43 if line.startswith(" ") else "" for line in lines]
    wrapped = [
        textwrap.fill(line, width, subsequent_indent=indent)
        for line, indent in zip(lines, indents, strict=True)
    ]
    return "\n".join([*wrapped, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names.

    Returns its exit status; 2, after one sentence on standard error, for a failure that the user can fix.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run_main(lambda: _run(words))


def _run(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        import runner

        print(runner.__version__)
        return 0
    if name not in VERBS:
        if Path(name).is_dir():
            raise UserError(f"{name!r} is no verb; to train on the images in it, write train {name}.")
        raise UserError(
            f"There is no verb {name!r}{did_you_mean(name, list(VERBS))}; runner --help lists them."
        )
    verb = VERBS[name]
    task = this_task() if verb.launches else None
    if task is not None and not verb.tasks:
        raise UserError(
            f"{name} works on one host, but {task.scheduler} has started {task.count} of it; start it once."
        )
    ignored = forget_other_launches(task is not None and verb.tasks == "together")
    if ignored and verb.launches and task is None:
        print(
            f"note: the environment has the ranks or plugins of another launch ({', '.join(ignored)}); they are"
            " ignored, because this command starts its own processes (several hosts: see docs/distributed.md)",
            file=sys.stderr,
        )
    if verb.tasks == "together" and task is None:
        for note in ignored_settings():
            print(f"note: {note}", file=sys.stderr)
    module, _, function = verb.target.partition(":")
    status: int = getattr(import_module(module), function)(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
