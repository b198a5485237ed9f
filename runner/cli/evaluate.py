"""`runner evaluate`: evaluate a run's checkpoints on the images they were trained with, and write a report.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.cli.options import JSON_HELP, RUN_HELP, add_tracking_root
from runner.evaluation.metrics import METRICS
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main
from runner.utils.processes import exit_with_launcher
from runner.utils.signals import interrupt_on_signals

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from runner.config.schema import Experiment
    from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
    from runner.evaluation.predictions import Predictions
    from runner.evaluation.report import ReportDestination
    from runner.tracking.run_lookup import RunInfo
    from runner.training.restore import LoadedCheckpoint
    from runner.utils.console import Terminal

CHECKPOINTS = ("best", "last")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner evaluate", description="Evaluate a run's checkpoints and write a report."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=RUN_HELP)
    add("--split", default="test", choices=("train", "val", "test"), help="default: test")
    add("--json", action="store_true", help=JSON_HELP)
    add("--no-report", dest="report", action="store_false", help="only compute the metrics")
    add("--out", metavar="DIR", help="also write the report to this folder")
    add(
        "--faithfulness",
        type=int,
        default=0,
        metavar="N",
        help="measure the faithfulness of Grad-CAM (ROAD) on N images; takes some seconds per image",
    )
    add("--boxes", type=Path, metavar="CSV", help="bounding boxes: path,left,top,right,bottom in pixels")
    add("--data.root", dest="root", help="folder of the images, if they have moved")
    add_tracking_root(parser)
    args = parser.parse_args(argv)
    if args.faithfulness == 1 or args.faithfulness < 0:
        raise UserError(f"--faithfulness is {args.faithfulness}; it needs 2 images or more for an interval.")
    if not args.report and (args.out or args.faithfulness or args.boxes):
        raise UserError("--out, --faithfulness and --boxes need the report; remove --no-report.")
    if args.boxes and not args.boxes.is_file():
        raise UserError(
            f"There is no file {args.boxes}; --boxes needs a CSV file: path,left,top,right,bottom."
        )
    if args.out:
        args.out = output_folder(args.out)
    return args


def launch_evaluation(argv: Sequence[str]) -> int:
    """`runner evaluate`: check the command line, then hand over to `accelerate launch` on this file."""
    from runner.cli.launcher import launch, take_processes

    processes, rest = take_processes(argv)
    parse(rest)
    return launch("cli/evaluate.py", rest, processes)


def main(argv: Sequence[str]) -> int:
    """Evaluate on every process of a launch; returns the exit status. Raises `UserError`."""
    exit_with_launcher()
    args = parse(argv)

    from accelerate.utils import broadcast_object_list

    from runner.tracking.mlflow_server import tracking_server
    from runner.tracking.run_lookup import find_run
    from runner.training import devices
    from runner.utils.console import Terminal

    state = devices.init_processes()
    server = tracking_server(args.tracking)
    server.check_exists()
    client = server.connect()
    # A new run may begin at the same time, so one process looks up `latest` for all.
    run = broadcast_object_list([find_run(client, args.run) if state.is_main_process else None])[0]
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        files = _download(client, run, args.root, Path(temporary))
        accelerator = devices.create_accelerator(files.experiment)
        terminal = Terminal(enabled=accelerator.is_main_process, stderr=args.json)
        checkpoints = _load(files, accelerator, terminal)
        evaluations = {loaded.name: loaded.evaluate(args.split) for loaded in checkpoints}
        if accelerator.is_main_process:
            _print_scores(run, args, evaluations, accelerator.num_processes, terminal)
        if args.report and evaluations:
            loaded = checkpoints[0]  # best, if there is one
            reported = evaluations[loaded.name]
            val = reported.predictions if args.split == "val" else loaded.predict("val")
            if accelerator.is_main_process:
                from runner.evaluation.report import ReportDestination

                fallback = server.root / "reports" / f"{run.run_id}-{args.split}"
                destination = ReportDestination(client, run, args.out, fallback)
                _write_report(reported, val, args, destination, terminal)
    accelerator.end_training()
    return 0


@dataclass(frozen=True)
class _RunFiles:
    """What a run logged."""

    experiment: "Experiment"
    manifest: str
    """The content of manifest.csv."""
    checkpoints: Path


def _download(client: "MlflowClient", run: "RunInfo", root: str | None, folder: Path) -> _RunFiles:
    """Download a run's experiment, manifest and checkpoints to `folder`; `root`: another folder of the images."""
    from runner.config.parser import read
    from runner.tracking.run_lookup import download_artifact
    from runner.training import devices

    experiment = read(download_artifact(client, run, "experiment.yaml", folder))
    if root:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, root=root))
    # Bytes, because a path may contain a line break.
    table = download_artifact(client, run, "manifest.csv", folder).read_bytes()
    return _RunFiles(
        devices.adapt_to_device(experiment),
        table.decode("utf-8", "surrogateescape"),
        download_artifact(client, run, "checkpoints", folder),
    )


def _load(files: _RunFiles, accelerator: Any, terminal: "Terminal") -> list["LoadedCheckpoint"]:
    """Load the run's checkpoints, best first."""
    from runner.training.restore import load_checkpoint, restore_manifest

    with accelerator.local_main_process_first():
        manifest = restore_manifest(files.experiment, files.manifest, terminal)
    in_memory: OrderedDict[Any, Any] = OrderedDict()  # both checkpoints read the same features
    paths = (files.checkpoints / f"{name}.safetensors" for name in CHECKPOINTS)
    return [
        load_checkpoint(path, files.experiment, manifest, accelerator, terminal, in_memory)
        for path in paths
        if path.exists()
    ]


def _print_scores(
    run: "RunInfo",
    args: argparse.Namespace,
    evaluations: Mapping[str, "CheckpointEvaluation"],
    processes: int,
    terminal: "Terminal",
) -> None:
    if args.json:
        images = max((len(evaluation.entries) for evaluation in evaluations.values()), default=0)
        result = {
            "run": run.run_id,
            "name": run.name,
            "split": args.split,
            "images": images,
            "processes": processes,
            "checkpoints": {name: evaluation.to_dict() for name, evaluation in evaluations.items()},
        }
        print(json.dumps(result))
        return
    labels = [metric.label for metric in METRICS.values()]
    rows = []
    for name, evaluation in evaluations.items():
        scores = evaluation.predictions.scores
        counts = (evaluation.epoch, scores.images, scores.hits1, scores.hits5)
        values = (f"{value:.4f}" for value in scores.values.values())
        rows.append((name, *(f"{count:,}" for count in counts), *values))
    terminal.table(
        f"Run {run.run_id[:8]} ({run.name}) on its {args.split} split",
        ("checkpoint", "epoch", "images", "correct", "in top 5", *labels),
        rows,
    )


def _write_report(
    evaluation: "CheckpointEvaluation",
    val: "Predictions",
    args: argparse.Namespace,
    destination: "ReportDestination",
    terminal: "Terminal",
) -> None:
    from runner.evaluation.report import ReportOptions, write_report

    options = ReportOptions(args.faithfulness, args.boxes)
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        folder = Path(temporary) / "report"
        metrics = write_report(evaluation, val, options, destination.run, folder, terminal)
        where = destination.store(folder, args.split, metrics, terminal)
    terminal.line(f"The report is {where}.")


if __name__ == "__main__":
    interrupt_on_signals()
    sys.exit(run_main(lambda: main(sys.argv[1:]), lambda: os.environ.get("RANK", "0") == "0"))
