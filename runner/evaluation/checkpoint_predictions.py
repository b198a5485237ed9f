"""TODO."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from runner.config.schema import Experiment
    from runner.data.manifest import Manifest
    from runner.evaluation.predictions import Predictions
    from runner.features.cache import Held
    from runner.utils.console import Terminal


@dataclasses.dataclass(frozen=True)
class Judged:
    """A checkpoint, and what it says of each image of a split."""

    which: str
    epoch: int
    split: str
    ready: "Prepared"
    outcomes: "Outcomes"

    @classmethod
    def of(
        cls,
        experiment: "Experiment",
        manifest: "Manifest",
        path: Path,
        split: str,
        accelerator: "Accelerator",
        terminal: "Terminal",
        held: "Held",
    ) -> "Judged":
        """Judge a checkpoint: all processes together. Raises `UserError` for one of other classes."""
        from runner.models import checkpoint
        from runner.training.setup import assemble, make_loader

        kept = checkpoint.load(path)
        if kept.network.architecture.classes != manifest.classes:
            raise UserError(f"{path.name} was trained on other classes than the run's manifest holds.")
        loader = make_loader(experiment, manifest, accelerator)
        ready = assemble(experiment, manifest, kept.network, loader, accelerator, terminal, held)
        return cls(path.stem, kept.epoch, split, ready, _outcomes(ready, split, accelerator))

    def on(self, split: str, accelerator: "Accelerator") -> "Outcomes":
        """What it says of another split's images."""
        return _outcomes(self.ready, split, accelerator)

    def scores(self) -> dict[str, Any]:
        """Its scores on the split, with the epoch that it is of."""
        import torch

        from runner.evaluation.metrics import of_logits

        outcomes = self.outcomes
        return {
            "epoch": self.epoch,
            **of_logits(torch.from_numpy(outcomes.logits), outcomes.labels.tolist()).as_dict(),
        }


def _outcomes(ready: "Prepared", split: str, accelerator: "Accelerator") -> "Outcomes":
    from runner.data.transforms import EVALUATION_VIEW
    from runner.evaluation.inference import outcomes, predict

    ready.features.reserve([(split, EVALUATION_VIEW)])
    rows = ready.features.rows(split, EVALUATION_VIEW)
    count = len(ready.manifest.select(split))
    return outcomes(ready.manifest, split, predict(ready.network, rows, count, accelerator, ready.chunk))
