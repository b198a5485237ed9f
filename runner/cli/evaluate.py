"""`runner evaluate`: evaluate a run's checkpoints on the images they were trained with, and write a report.

./launch.sh evaluate RUN [--split test] [--json] [--no-report] [--faithfulness 100]
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import argparse
import json
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.cli.options import JSON_HELP, RUN_HELP, add_moved_images, add_tracking_root, moved_images
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.exit_status import run_script
from runner.utils.processes import exit_with_launcher

if TYPE_CHECKING:
    from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
    from runner.tracking.run_lookup import RunInfo
    from runner.utils.console import Terminal


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
    add_moved_images(parser)
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
    from runner.training.devices import init_processes
    from runner.training.restore import restore_checkpoints
    from runner.utils.console import Terminal

    state = init_processes()
    terminal = Terminal(enabled=state.is_main_process, stderr=args.json)
    server = tracking_server(args.tracking)
    server.check_exists()
    client = server.connect(read_only=True)
    # A new run may begin at the same time, so one process looks up `latest` for all.
    run = broadcast_object_list([find_run(client, args.run) if state.is_main_process else None])[0]
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        checkpoints = restore_checkpoints(client, run, moved_images(args), Path(temporary), terminal)
        evaluations = [loaded.evaluate(args.split) for loaded in checkpoints]
        if state.is_main_process:
            _print_scores(run, args, evaluations, state.num_processes, terminal)
        if args.report and evaluations:
            reported = evaluations[0]  # best, if there is one
            val = reported.predictions if args.split == "val" else checkpoints[0].predict("val")
            if state.is_main_process:
                from runner.evaluation.report import ReportRequest, write_report

                fallback = server.root / "reports" / f"{run.run_id}-{args.split}"
                request = ReportRequest(client, run, args.faithfulness, args.boxes, args.out, fallback)
                terminal.line(f"The report is {write_report(reported, val, request, terminal)}.")
    state.destroy_process_group()
    return 0


def _print_scores(
    run: "RunInfo",
    args: argparse.Namespace,
    evaluations: Sequence["CheckpointEvaluation"],
    processes: int,
    terminal: "Terminal",
) -> None:
    if args.json:
        result = {
            "run": run.run_id,
            "name": run.name,
            "split": args.split,
            "images": max((len(evaluation.entries) for evaluation in evaluations), default=0),
            "processes": processes,
            "checkpoints": {
                evaluation.checkpoint: {"epoch": evaluation.epoch, **evaluation.predictions.scores.to_dict()}
                for evaluation in evaluations
            },
        }
        print(json.dumps(result))
        return
    metrics = evaluations[0].predictions.scores.shown if evaluations else []
    header = ("checkpoint", "epoch", "images", "correct", *(metric.label for metric in metrics))
    rows = []
    for evaluation in evaluations:
        scores = evaluation.predictions.scores
        counts = (evaluation.epoch, scores.images, scores.hits1)
        values = (f"{scores[metric.name]:.4f}" for metric in metrics)
        rows.append((evaluation.checkpoint, *(f"{count:,}" for count in counts), *values))
    terminal.table(f"Run {run.run_id[:8]} ({run.name}) on its {args.split} split", header, rows)


if __name__ == "__main__":
    sys.exit(run_script(main))
