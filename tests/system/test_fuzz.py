"""Whatever a file holds, the runner reads it correctly, refuses it in one sentence, or ignores it."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from fuzz import FORMATS, Report, fuzz
from fuzz.damage import damaged, mutated_json

FAST_CASES, LONG_CASES = 100, 1500
PLANTED = 40
"""Cases of a target with a bug, which about one in five triggers."""


def assert_no_faults(report: Report) -> None:
    print(report)
    problems = [f"case {case} of {report.format}: {text}" for case, text in report.faults]
    assert not problems, "\n\n".join([f"{len(problems)} problems of {report.cases} cases", *problems[:5]])


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    report = fuzz(name, FAST_CASES, tmp_path)
    assert_no_faults(report)
    assert report.cases == report.accepted + report.refused == FAST_CASES


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_many_hostile_files(name: str, tmp_path: Path) -> None:
    report = fuzz(name, LONG_CASES, tmp_path, first=FAST_CASES)
    assert_no_faults(report)
    assert report.cases == LONG_CASES
    assert report.accepted, "no case was accepted: code after the parser is not reached"


class TestEngine:
    @pytest.mark.parametrize(
        ("planted", "kind", "expected"),
        [
            ("fault", "tracebacks", "ZeroDivisionError"),
            ("exit", "tracebacks", "SystemExit"),
            ("crash", "tracebacks", "Segmentation fault"),
            ("mistake", "wrong", "planted"),
            ("talk", "wrong", "One line"),
            ("warn", "wrong", "invalid value"),
        ],
    )
    def test_finds_planted_bugs(self, tmp_path: Path, planted: str, kind: str, expected: str) -> None:
        report = fuzz(f"planted {planted}", PLANTED, tmp_path)
        found = getattr(report, kind)
        assert found == report.faults
        assert 1 <= len(found) < PLANTED / 2
        assert all(expected in text for _, text in found)
        assert report.cases == PLANTED == len(found) + report.refused  # cases after a crash run, too

    def test_finds_a_case_that_hangs(self, tmp_path: Path) -> None:
        report = fuzz("planted hang", 12, tmp_path, limit=0.5)
        assert report.slow == report.faults
        assert 1 <= len(report.slow) < 6
        assert all("in bad" in text for _, text in report.slow)
        assert report.cases == 12

    def test_finds_a_case_that_uses_too_much_memory(self, tmp_path: Path) -> None:
        case = next(case for case in range(200) if Random(f"planted swell:{case}").randbytes(4)[0] % 5 == 0)
        report = fuzz(
            "planted swell", 1, tmp_path, first=case, limit=60
        )  # so much memory takes seconds to come
        assert [("MiB of memory" in text) for _, text in report.faults] == [True], report.faults

    def test_reports_nothing_if_nothing_is_wrong(self, tmp_path: Path) -> None:
        report = fuzz("planted planted", PLANTED, tmp_path)
        assert (report.faults, report.refused) == ([], PLANTED)

    def test_a_case_does_not_depend_on_those_before(self, tmp_path: Path) -> None:
        whole = fuzz("planted fault", PLANTED, tmp_path).tracebacks
        case, text = whole[-1]
        assert fuzz("planted fault", 1, tmp_path, first=case).tracebacks == [(case, text)]

    def test_leaves_no_files(self, tmp_path: Path) -> None:
        fuzz("planted crash", PLANTED, tmp_path)
        assert os.listdir(tmp_path) == []

    def test_an_unknown_format_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="cannot begin"):
            fuzz("no such format", 1, tmp_path)

    def test_damage_depends_only_on_the_seed(self) -> None:
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
        return lambda random: mutated_json(random, tree)


def test_code_in_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files in this process; at the end one of them is trusted, to show that its code works."""
    import pickle

    from fuzz.weight_formats import MARK, malicious_pickle

    from runner.config.schema import ModelConfig
    from runner.models.pretrained import read_weights
    from runner.utils.errors import UserError

    monkeypatch.chdir(tmp_path)
    path, seen = tmp_path / "weights.pth", set()
    settings = ModelConfig(arch="vgg11", weights=str(path), head="pooled")
    for case in range(60):
        content = malicious_pickle(Random(case))
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
