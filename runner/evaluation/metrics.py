"""Scores: sums of integer counts over distinct samples, gathered exactly from any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

TOP_K = 5


@dataclass(frozen=True)
class Scores:
    """How a network does on a split. `loss` is the mean cross-entropy in nats; the others are fractions 0 to 1."""

    loss: float
    top1: float
    top5: float
    balanced_accuracy: float
    """Mean over classes of the share of their images that were classified right."""
    images: int
    hits1: int
    hits5: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """The four figures under `prefix/`."""
        return {
            f"{prefix}/{name}": getattr(self, name) for name in ("loss", "top1", "top5", "balanced_accuracy")
        }

    def as_dict(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self)


def judge(logits: Tensor, labels: Tensor) -> Tensor:
    """What scores are counted from: n × 3 float64 of loss, rank of the true class, predicted class.

    The rank counts the classes that come before the true one: a larger logit, or an equal one of a smaller
    index, so that ties are broken the same way everywhere. Logits that are not finite rank the true class last.

    Args:
        logits: n × classes.
        labels: n class indices.
    """
    logits = logits.double()
    loss = F.cross_entropy(logits, labels, reduction="none")
    true = logits.gather(1, labels[:, None])
    places = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > true) | ((logits == true) & (places < labels[:, None]))
    rank = before.sum(1).double()
    rank[~torch.isfinite(logits).all(1)] = torch.inf
    return torch.stack([loss, rank, logits.argmax(1).double()], dim=1)


def gather(places: Sequence[int], judged: Tensor, total: int, accelerator: Accelerator) -> Tensor:
    """The rows of all processes in the order of the split, float64, on the CPU: as `judge` gives them, or logits.

    Args:
        places: The place in the split of each row of `judged`.
        judged: This process's rows.
        total: Images of the split.

    Raises:
        RuntimeError: a sample is missing, or was judged twice.
    """
    rows = torch.cat(
        [torch.tensor(places, dtype=torch.float64, device=judged.device)[:, None], judged], dim=1
    )
    padded = accelerator.pad_across_processes(rows, dim=0, pad_index=-1)
    everywhere = accelerator.gather(padded).cpu()
    everywhere = everywhere[everywhere[:, 0] >= 0]
    everywhere = everywhere[everywhere[:, 0].argsort(stable=True)]
    if everywhere[:, 0].tolist() != list(range(total)):
        raise RuntimeError(f"{len(everywhere)} judgements do not cover the {total} images once each")
    return everywhere[:, 1:]


def count(judged: Tensor, labels: Sequence[int], classes: int) -> Scores:
    """Scores from the judgements of a whole split.

    Args:
        judged: n × 3, as `judge` gives them, in the order of `labels`.
        labels: The n true class indices.
        classes: Number of classes; one without images does not enter the balanced accuracy.
    """
    loss, rank = judged[:, 0], judged[:, 1]
    true = torch.tensor(labels)
    hits = (rank == 0).long()
    of_class = torch.bincount(true, minlength=classes)
    hits_of_class = torch.bincount(true, weights=hits.double(), minlength=classes)
    present = of_class > 0
    hits1, hits5 = int(hits.sum()), int((rank < TOP_K).sum())
    return Scores(
        loss=float(loss.mean()),
        top1=hits1 / len(true),
        top5=hits5 / len(true),
        balanced_accuracy=float((hits_of_class[present] / of_class[present]).mean()),
        images=len(true),
        hits1=hits1,
        hits5=hits5,
    )


def of_logits(logits: Tensor, labels: Sequence[int]) -> Scores:
    """Scores from the logits (n × classes) of a whole split and its n class indices."""
    return count(judge(logits, torch.tensor(labels, device=logits.device)), labels, logits.shape[1])
