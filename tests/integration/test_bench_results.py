"""What `runner bench results` reads of a run, and of one that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained import TrainedRun

from benchmarks import results
from benchmarks.support.results_table import Row

ROW = Row("small", "a small head", 3, "train --data.root DATA", {"top1": (0.0, 100.0)})


def test_the_figures_of_a_run_are_read_from_its_records(
    trained_run: TrainedRun, no_tracking_uri: None
) -> None:
    measured = results.read_measurement(ROW, trained_run.folder / "mlruns", 12.34)
    metrics = trained_run.client.get_run(trained_run.run_id).data.metrics
    assert (measured.runs, measured.seconds, measured.command) == (1, 12.3, ROW.command)
    for name, (mean, sd) in measured.figures.items():
        assert mean == pytest.approx(100 * metrics[f"test/best/{name}"], abs=1e-3)
        assert sd == 0
    assert measured.computed == metrics["system/features/misses"]
    assert (measured.feature_seconds > 0) == (measured.computed > 0)
    assert "CPU cores" in measured.machine


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(results.FailedRunError, match=r"exit status 2: There is no setting 'nothing'"):
        results.run_row(ROW, ["train", "--nothing", "1"], tmp_path / "records")
