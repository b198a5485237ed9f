"""Checks before processes are launched."""

from __future__ import annotations

import pytest
from helpers import QUIET, Make

from runner.training.preflight import check
from runner.utils.errors import UserError


def test_a_metric_that_is_the_same_for_every_model_is_refused(make: Make) -> None:
    advice = (
        "top5, but top-5 is the same for every model of 3 classes; choose top1, balanced_accuracy or loss"
    )
    with pytest.raises(UserError, match=f"train.best is {advice}"):
        check(make("--train.best", "top5"), QUIET)
    with pytest.raises(UserError, match=f"--objective is {advice}"):
        check(make(), QUIET, "top5")
    assert len(check(make(), QUIET, "loss").classes) == 3
