"""A dry run does not try whether to compile the frozen backbone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers import Make

from runner.config.repeat import Repeat
from runner.features import compile_choice
from runner.features.compile_choice import BackboneSpeed
from runner.training import setup
from runner.training.dry_run import print_estimate
from runner.utils.console import Terminal
from runner.utils.errors import UserError

SOLVED = ("--model.head", "linear", "--augment.views", "none", "--train.solver", "logistic")


@pytest.fixture(autouse=True)
def worth_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is tried even for a few images; a measurement fails."""
    monkeypatch.setattr(compile_choice, "worth_compiling", lambda *_: True)
    monkeypatch.setattr(compile_choice, "_measure", None)


def kept_speeds(folder: Path) -> list[Path]:
    return list((folder / "cache" / "compile").glob("*"))


def test_what_is_not_known_is_not_measured(
    make: Make, accelerator: Accelerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_estimate(make(), Repeat(), accelerator, Terminal())
    assert "compiling  a run tries first whether it saves time" in capsys.readouterr().out
    assert not kept_speeds(tmp_path)


@pytest.mark.parametrize("compiled_ips", [5.0, 20.0])
def test_a_known_speed_is_used(
    make: Make,
    accelerator: Accelerator,
    silent: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiled_ips: float,
) -> None:
    monkeypatch.setattr(compile_choice, "_measure", lambda *_: BackboneSpeed(10.0, compiled_ips, 0.0))
    compiled = setup.prepare(make(), accelerator, silent).experiment.features.compile
    assert compiled is (compiled_ips > 10)
    assert kept_speeds(tmp_path)
    monkeypatch.setattr(compile_choice, "_measure", None)
    known = setup.prepare(make(), accelerator, silent, may_measure=False)
    assert known.experiment.features.compile is compiled
    if not compiled:
        print_estimate(make(), Repeat(), accelerator, Terminal())
        assert "compiling" not in capsys.readouterr().out


def test_a_run_that_is_refused_measures_nothing(
    make: Make, accelerator: Accelerator, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("too little memory")

    monkeypatch.setattr(setup, "check_memory", refuse)
    with pytest.raises(UserError, match="too little memory"):
        setup.prepare(make(*SOLVED), accelerator, silent)
    words = ("--model.arch", "vgg11_bn", "--model.weights", "null", "--model.trainable", "all")
    with pytest.raises(UserError, match="Batch normalization trains"):
        setup.prepare(make(*words, "--train.batch_size", "1"), accelerator, silent)


@pytest.mark.parametrize("last", ["last:1", "all"])
@pytest.mark.parametrize("store", ["true", "false"])
def test_the_time_of_all_stages_is_estimated(
    last: str, store: str, make: Make, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = f"[{{epochs: 2, trainable: head}}, {{epochs: 1, trainable: {last}}}]"
    experiment = make("--train.stages", stages, "--features.store", store, "--features.compile", "false")
    print_estimate(experiment, Repeat(), accelerator, Terminal())
    text = " ".join(capsys.readouterr().out.split())
    rate = re.search(r"for the frozen backbone at ([\d,.]+) images/s", text)
    assert rate is not None, text
    assert 0 < float(rate[1].replace(",", "")) < 100_000, "images do go through it"
    assert "at most 3" in text
