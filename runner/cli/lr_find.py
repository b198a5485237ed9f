"""`runner lr-find`: try learning rates on an experiment, draw the loss, and suggest one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import positive_integer
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.text import printable

DESCRIPTION = """\
Train for some steps while the learning rate grows from --from to --to, draw the loss, and suggest a tenth of the rate
at which it is least (Smith's learning-rate range test). Other words name images and settings, as for train. No run is
recorded, and no model is kept; features are cached as usual. Of train.stages, the first one is tried.
"""


def main(argv: Sequence[str]) -> int:
    """Try learning rates. Raises `UserError` as `train` does, and for bounds that are none."""
    parser = CommandLineParser(prog="runner lr-find", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--steps", type=positive_integer, default=100, metavar="N", help="default: 100")
    parser.add_argument("--from", dest="first", type=float, default=1e-6, metavar="LR", help="default: 1e-6")
    parser.add_argument("--to", dest="last", type=float, default=10.0, metavar="LR", help="default: 10")
    text = "where to draw the loss (PNG); default: lr-find.png"
    parser.add_argument("--out", type=Path, default=Path("lr-find.png"), metavar="FILE", help=text)
    options, words = parser.parse_known_args(argv)
    if not 0 < options.first < options.last:
        raise UserError(
            f"--from is {options.first:g} and --to {options.last:g}; --from must be above 0 and less than --to."
        )
    if not options.out.parent.is_dir():
        raise UserError(f"There is no folder {printable(str(options.out.parent))} for --out.")

    from runner.config.parser import parse
    from runner.training import devices
    from runner.training.lr_finder import find_lr
    from runner.training.run import fit_data
    from runner.training.run_names import run_name
    from runner.training.setup import prepare
    from runner.utils.console import Terminal

    experiment, _ = parse(words, prog="runner lr-find")
    accelerator = devices.create_accelerator(experiment)
    terminal = Terminal()
    setup = prepare(experiment, accelerator, terminal)
    data = fit_data(setup)
    with terminal.progress("try learning rates", options.steps, unit="steps") as advance:
        curve = find_lr(setup, data, (options.first, options.last), options.steps, advance)
    if not curve.losses:
        raise UserError(
            f"The loss was not finite from the first step on, at {options.first:g}; lower --from."
        )
    stages = experiment.train.stages
    which = f", stage 1 of {len(stages)} ({stages[0].trainable})" if stages else ""
    curve.draw(options.out, f"{experiment.name}: {run_name(experiment)}{which}")
    terminal.line(f"{len(curve.losses)} steps; the loss is drawn in {options.out}")
    if curve.suggestion is None:
        terminal.line("no suggestion: the loss did not fall; try more --steps or other bounds")
    else:
        setting = "lr of stage 1 in train.stages:" if stages else "--optim.lr"
        terminal.line(f"suggested: {setting} {curve.suggestion:.2g} (the loss is least at ten times that)")
    return 0
