"""Judge a run's checkpoints again: the same images, the same counts, on any number of processes; write a report.

./launch.sh evaluate RUN [--split test] [--json] [--no-report] [--faithfulness 100]
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import argparse
import dataclasses
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.evaluation.checkpoint_predictions import Judged
from runner.utils.atomic_files import writable
from runner.utils.errors import Parser, UserError, guarded, interrupt_on_signals
from runner.utils.processes import follow_launcher

if TYPE_CHECKING:
    from runner.config.schema import Experiment
    from runner.data.manifest import Manifest
    from runner.features.cache import Held
    from runner.utils.console import Terminal

CHECKPOINTS = ("best", "last")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = Parser(prog="runner evaluate", description="Judge a run's checkpoints again.")
    parser.add_argument("run", metavar="RUN", help="id, beginning of an id, name, or latest")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: test")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, and nothing else"
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="only the scores")
    parser.add_argument("--out", metavar="DIR", help="folder for the report, besides MLflow")
    parser.add_argument(
        "--faithfulness",
        type=int,
        default=0,
        metavar="N",
        help="judge the Grad-CAM of N images by ROAD; some seconds each",
    )
    parser.add_argument(
        "--boxes", type=Path, metavar="CSV", help="where objects are: path,left,top,right,bottom in pixels"
    )
    parser.add_argument("--data.root", dest="root", help="where the images are now, if they have moved")
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    asked = parser.parse_args(argv)
    if asked.faithfulness == 1 or asked.faithfulness < 0:
        raise UserError("--faithfulness takes 2 images or more, which an interval needs.")
    if not asked.report and (asked.out or asked.faithfulness or asked.boxes):
        raise UserError("--out, --faithfulness and --boxes are of the report; leave --no-report out.")
    if asked.boxes and not asked.boxes.is_file():
        raise UserError(
            f"There is no file {asked.boxes}; --boxes takes a CSV file: path,left,top,right,bottom."
        )
    if asked.out:
        writable(asked.out)
    return asked


def launch_evaluation(argv: Sequence[str]) -> int:
    """`runner evaluate`: check the command line, then hand over to `accelerate launch` on this file."""
    from runner.cli.launcher import launch, take_processes

    processes, rest = take_processes(argv)
    parse(rest)
    return launch("cli/evaluate.py", rest, processes)


def main(argv: Sequence[str]) -> int:
    """Evaluate as the command line says. Raises `UserError` for what its user can mend."""
    follow_launcher()
    asked = parse(argv)

    from accelerate.utils import broadcast_object_list

    from runner.config.parser import read
    from runner.tracking import run_lookup
    from runner.tracking.mlflow_server import server
    from runner.training import devices
    from runner.utils.console import Terminal

    state = devices.join()
    store = server(asked.tracking)
    store.check_exists()
    client = store.connect()
    # A new run may begin meanwhile: one process says which is meant.
    run = broadcast_object_list([run_lookup.find(client, asked.run) if state.is_main_process else None])[0]
    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        folder = Path(name)
        experiment = read(run_lookup.artifact(client, run, "experiment.yaml", folder))
        table = (
            run_lookup.artifact(client, run, "manifest.csv", folder)
            .read_bytes()  # as it is: a name may hold a line end
            .decode("utf-8", "surrogateescape")
        )
        checkpoints = run_lookup.artifact(client, run, "checkpoints", folder)
        if asked.root:
            experiment = dataclasses.replace(
                experiment, data=dataclasses.replace(experiment.data, root=asked.root)
            )
        experiment = devices.at_hand(experiment)
        accelerator = devices.start(experiment)
        terminal = Terminal(speaks=accelerator.is_main_process, errors=asked.json)
        with accelerator.local_main_process_first():
            manifest = restore_manifest(experiment, table, terminal)
        held: Held = OrderedDict()  # both checkpoints read the same rows
        judged = {
            path.stem: Judged.of(experiment, manifest, path, asked.split, accelerator, terminal, held)
            for path in (checkpoints / f"{which}.safetensors" for which in CHECKPOINTS)
            if path.exists()
        }
        said = {
            "run": run.run_id,
            "name": run.name,
            "split": asked.split,
            "images": len(manifest.select(asked.split)),
            "processes": accelerator.num_processes,
            "checkpoints": {which: each.scores() for which, each in judged.items()},
        }
        if accelerator.is_main_process:
            _say(said, asked.json, terminal)
        if asked.report and judged:
            best = judged.get("best") or judged["last"]
            val = best.outcomes if asked.split == "val" else best.on("val", accelerator)
            if accelerator.is_main_process:
                from runner.evaluation.report import write

                where = write(run, best, val, asked, client, folder / "report", terminal)
                terminal.line(f"The report is {where}.")
    accelerator.end_training()
    return 0


def restore_manifest(experiment: "Experiment", table: str, terminal: "Terminal") -> "Manifest":
    """The manifest that a run was trained with, after checking that its images are still what they were.

    Raises `UserError` naming an image that is gone or has changed.
    """
    from runner.data.datasets import locate
    from runner.data.manifest import read_csv
    from runner.data.scan import scan

    cache = Path(experiment.cache).expanduser()
    source = locate(experiment.data, cache, terminal)
    manifest = read_csv(table, source.root)
    present = {file.path: file.digest for file in scan(source, cache, experiment.data.follow_links, terminal)}
    for entry in manifest.entries:
        if present.get(entry.path) != entry.digest:
            what = "has changed" if entry.path in present else "is gone"
            raise UserError(
                f"{source.root / entry.path} {what} since the run; restore it, or say with --data.root where it is."
            )
    return manifest


def _say(report: dict[str, Any], as_json: bool, terminal: "Terminal") -> None:
    if as_json:
        print(json.dumps(report))
        return
    terminal.table(
        f"Run {report['run'][:8]} ({report['name']}) on its {report['split']} split",
        ("checkpoint", "epoch", "images", "right", "in top 5", "top-1", "top-5", "balanced accuracy", "loss"),
        [
            (
                which,
                str(s["epoch"]),
                f"{s['images']:,}",
                f"{s['hits1']:,}",
                f"{s['hits5']:,}",
                *(f"{s[name]:.4f}" for name in ("top1", "top5", "balanced_accuracy", "loss")),
            )
            for which, s in report["checkpoints"].items()
        ],
    )


if __name__ == "__main__":
    interrupt_on_signals()
    sys.exit(guarded(lambda: main(sys.argv[1:]), lambda: os.environ.get("RANK", "0") == "0"))
