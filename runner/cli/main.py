"""The console script: `runner VERB …`. What a verb needs is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

from runner.utils.errors import UserError, guarded

USAGE = """\
usage: runner VERB [-n PROCESSES] …

  train       train an experiment         runner train --config caltech101-pooled --data.root DATA [--resume auto]
  search      search its settings         runner search --config caltech101-pooled --space around-baseline --study NAME
  evaluate    judge a run, with a report  runner evaluate RUN [--split test] [--json]
  predict     what is in images           runner predict IMAGE|FOLDER|GLOB… [--model RUN|NAME@ALIAS|CHECKPOINT]
  explain     where a class is found      runner explain IMAGE… [--method gradcam] [--target predicted]
  compare     runs side by side           runner compare RUN RUN… | --study NAME [--json]
  export      a model as ONNX             runner export [--model MODEL] --onnx FILE
  reproduce   run it again, and compare   runner reproduce RUN
  ui          MLflow's pages over mlruns/ runner ui [--port 5000]
  sync        deliver what waits          runner sync
  doctor      is all true? mend it        runner doctor [--check]
  store       kept features               runner store list | remove NAME…
  bench       measure                     runner bench features [experiment settings]

-n runs train and evaluate on so many processes; without, on every GPU there is, or on one process.
runner VERB --help tells more; runner --version the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit status 2 after one sentence for a failure that the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be text
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        import runner

        print(runner.__version__)
        return 0
    if verb not in VERBS:
        from runner.utils.text import nearest

        raise UserError(f"There is no verb {verb!r}{nearest(verb, list(VERBS))}; runner --help lists them.")
    return VERBS[verb](rest)


def _train(argv: list[str]) -> int:
    from runner.cli.launcher import launch, take_processes
    from runner.config.parser import parse
    from runner.tracking.interrupted_runs import asked_for, words
    from runner.tracking.mlflow_server import ask, server
    from runner.training.preflight import check
    from runner.utils.console import Terminal

    processes, rest = take_processes(argv)
    experiment, options = parse(words(rest))
    place = server(experiment.tracking.root)
    if not options.dry_run:
        ask(place.uri)
    if options.resume is not None:
        asked_for(place, experiment, options.resume, options.repeat, options.branch)
    check(experiment, Terminal())
    status = launch("train.py", rest, processes)
    if status:
        from runner.cli.sync import close_the_dead

        close_the_dead(place, Terminal())
    return status


def _evaluate(argv: list[str]) -> int:
    from runner.cli.evaluate import parse
    from runner.cli.launcher import launch, take_processes

    processes, rest = take_processes(argv)
    parse(rest)
    return launch("cli/evaluate.py", rest, processes)


def _search(argv: list[str]) -> int:
    from runner.study.coordinator import search

    return search(argv)


def _predict(argv: list[str]) -> int:
    from runner.cli.predict import main

    return main(argv)


def _explain(argv: list[str]) -> int:
    from runner.cli.explain import main

    return main(argv)


def _compare(argv: list[str]) -> int:
    from runner.cli.compare import main

    return main(argv)


def _export(argv: list[str]) -> int:
    from runner.cli.export import main

    return main(argv)


def _reproduce(argv: list[str]) -> int:
    from runner.cli.reproduce import main

    return main(argv)


def _ui(argv: list[str]) -> int:
    from runner.cli.ui import main

    return main(argv)


def _sync(argv: list[str]) -> int:
    from runner.cli.sync import main

    return main(argv)


def _doctor(argv: list[str]) -> int:
    from runner.cli.doctor import main

    return main(argv)


def _store(argv: list[str]) -> int:
    from runner.cli.store import main

    return main(argv)


def _bench(argv: list[str]) -> int:
    from runner.cli.bench import main

    return main(argv)


VERBS = {
    "train": _train,
    "search": _search,
    "evaluate": _evaluate,
    "predict": _predict,
    "explain": _explain,
    "compare": _compare,
    "export": _export,
    "reproduce": _reproduce,
    "ui": _ui,
    "sync": _sync,
    "doctor": _doctor,
    "store": _store,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
