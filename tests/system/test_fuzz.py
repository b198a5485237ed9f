"""Hostile input: whatever a file holds, the runner reads it rightly, refuses it in one sentence, or does without it."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from fuzz import FORMATS, Report, fuzz
from fuzz.damage import bent_json, damaged

FEW, MANY = 100, 1500
PLANTED = 40
"""Cases of a target with a fault of its own, of which about one in five shows it."""


def sound(report: Report) -> None:
    print(report)
    told = [f"case {case} of {report.format}: {text}" for case, text in report.faults]
    assert not told, "\n\n".join([f"{len(told)} faults of {report.cases} cases", *told[:5]])


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    report = fuzz(name, FEW, tmp_path)
    sound(report)
    assert report.cases == report.accepted + report.refused == FEW


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_many_hostile_files(name: str, tmp_path: Path) -> None:
    report = fuzz(name, MANY, tmp_path, first=FEW)
    sound(report)
    assert report.cases == MANY
    assert report.accepted, "not one case was read: what is behind the parser is not reached"


class TestEngine:
    @pytest.mark.parametrize(
        ("planted", "kind", "said"),
        [
            ("fault", "tracebacks", "ZeroDivisionError"),
            ("exit", "tracebacks", "SystemExit"),
            ("crash", "tracebacks", "Segmentation fault"),
            ("mistake", "wrong", "planted"),
            ("talk", "wrong", "One line"),
            ("warn", "wrong", "invalid value"),
        ],
    )
    def test_finds_what_was_planted(self, tmp_path: Path, planted: str, kind: str, said: str) -> None:
        report = fuzz(f"planted {planted}", PLANTED, tmp_path)
        found = getattr(report, kind)
        assert found == report.faults
        assert 1 <= len(found) < PLANTED / 2
        assert all(said in text for _, text in found)
        assert report.cases == PLANTED == len(found) + report.refused  # those behind a fault are tried too

    def test_finds_a_case_that_hangs(self, tmp_path: Path) -> None:
        report = fuzz("planted hang", 12, tmp_path, limit=0.5)
        assert report.slow == report.faults
        assert 1 <= len(report.slow) < 6
        assert all("in bad" in text for _, text in report.slow)
        assert report.cases == 12

    def test_finds_a_case_that_swells(self, tmp_path: Path) -> None:
        case = next(case for case in range(200) if Random(f"planted swell:{case}").randbytes(4)[0] % 5 == 0)
        report = fuzz("planted swell", 1, tmp_path, first=case)
        assert "MiB of memory" in report.wrong[0][1]

    def test_says_nothing_where_nothing_is_wrong(self, tmp_path: Path) -> None:
        report = fuzz("planted planted", PLANTED, tmp_path)
        assert (report.faults, report.refused) == ([], PLANTED)

    def test_a_case_is_the_same_whichever_came_before(self, tmp_path: Path) -> None:
        whole = fuzz("planted fault", PLANTED, tmp_path).tracebacks
        case, text = whole[-1]
        assert fuzz("planted fault", 1, tmp_path, first=case).tracebacks == [(case, text)]

    def test_leaves_nothing_behind(self, tmp_path: Path) -> None:
        fuzz("planted crash", PLANTED, tmp_path)
        assert os.listdir(tmp_path) == []

    def test_an_unknown_format_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="cannot begin"):
            fuzz("no such format", 1, tmp_path)

    def test_damage_depends_on_the_seed_alone(self) -> None:
        tree = {"a": [1, 2, {"b": "c"}], "d": 0.5}
        for case in range(200):
            once, again = ([make(Random(case)) for make in (self._bytes, self._tree(tree))] for _ in range(2))
            assert once == again
        assert tree == {"a": [1, 2, {"b": "c"}], "d": 0.5}
        assert len({self._bytes(Random(case)) for case in range(200)}) > 150

    @staticmethod
    def _bytes(random: Random) -> bytes:
        return damaged(random, b"a: 1\nb: [2, 3]\n" * 5, b"another: file\n")

    @staticmethod
    def _tree(tree: object):  # type: ignore[no-untyped-def]
        return lambda random: bent_json(random, tree)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files, in this process, beside one that shows that they would leave their mark if they were trusted."""
    import pickle

    from fuzz.network_formats import MARK, _evil

    from runner.config.schema import ModelConfig
    from runner.models.pretrained import read_weights
    from runner.utils.errors import UserError

    monkeypatch.chdir(tmp_path)
    path, seen = tmp_path / "weights.pth", set()
    settings = ModelConfig(arch="vgg11", weights=str(path), head="pooled")
    for case in range(60):
        content = _evil(Random(case))
        if content in seen or MARK.encode() not in content:
            continue
        seen.add(content)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"was not loaded|not a whole"):
            read_weights(settings)
        assert not Path(MARK).exists()
    assert len(seen) >= 6
    pickle.loads(next(each for each in sorted(seen) if each.startswith(b"cposix")))
    assert Path(MARK).exists()
