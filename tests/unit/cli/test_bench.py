"""`runner bench`: finds benchmarks by name, and each benchmark uses names and settings that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.support import outages, small_run, snapshot_costs
from runner.cli import bench
from runner.config.parser import parse
from runner.study.space import read_space
from runner.utils.errors import UserError
from runner.utils.paths import BENCHMARKS

NAMES = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--help"]) == 0
    assert ", ".join(NAMES) in capsys.readouterr().out
    names = {
        "backbones",
        "data",
        "faults",
        "features",
        "gpu",
        "heads",
        "hosts",
        "predict",
        "results",
        "startup",
        "scaling",
        "study",
        "throughput",
    }
    assert names == set(NAMES)


@pytest.mark.parametrize("argv", [[], ["nothing"], ["__init__"], ["../runner/train"]])
def test_an_unknown_benchmark_is_refused_with_the_known_ones(argv: list[str]) -> None:
    with pytest.raises(UserError, match=", ".join(NAMES)):
        bench.main(argv)


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        bench.main([name, "--help"])
    assert f"usage: runner bench {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings", [{}, outages.LONG_RUN, snapshot_costs.LARGE_HEAD, snapshot_costs.ENDLESS_RUN], ids=str
)
def test_the_small_runs_have_valid_settings(settings: dict[str, str], tmp_path: Path) -> None:
    experiment, _ = parse(small_run.arguments(tmp_path, "small", settings))
    assert experiment.name == "small"
    assert experiment.train.epochs == int({**small_run.SETTINGS, **settings}["train.epochs"])


def test_the_search_space_of_the_study_benchmark_fits_the_quickstart(tmp_path: Path) -> None:
    path = tmp_path / "cheap.yaml"
    path.write_text(study.CHEAP_SPACE)
    experiment, _ = parse(["--config", "quickstart", *study.SCHEDULE])
    assert read_space(path, experiment)
