"""Plans of studies: which differences make another study."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from studies import CONDITIONAL, DROPOUT, LR, Dimension, Space, make_plan, quickstart

from runner.config.parser import parse
from runner.study.plan import Plan, describe_differences


def test_an_identity_is_plain_values() -> None:
    plan = make_plan("", space=CONDITIONAL)
    identity = plan.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["space"]["optim.momentum"] == {
        "low": 0.5,
        "high": 0.99,
        "log": False,
        "whole": False,
        "when": {"optim.name": ["sgd"]},
    }


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"space": Space((LR,))}, "space.model.dropout"),
        (
            {"space": Space((dataclasses.replace(LR, high=0.2), DROPOUT))},
            "space.optim.lr.high was 0.1 and is 0.2 now",
        ),
        ({"objective": "loss"}, "objective was top1 and is loss now"),
        ({"seeds": 3}, "seeds was 1 and is 3 now"),
        ({"folds": 3}, "folds was not set and is 3 now"),
        ({"baseline": quickstart("--train.epochs", "6")}, "train.epochs was 5 and is 6 now"),
        ({"baseline": quickstart("--optim.lr", "0.004")}, "optim.lr was 0.003 and is 0.004 now"),
        ({"baseline": quickstart("--seed.split", "1")}, "seed.split was 0 and is 1 now"),
    ],
)
def test_a_difference_is_described(changes: dict[str, Any], difference: str) -> None:
    one, other = make_plan("").identity(), make_plan("", **changes).identity()
    assert describe_differences(one, one) == []
    assert difference in "; ".join(describe_differences(one, other))


def test_workers_may_differ_in_what_changes_no_result() -> None:
    one = ["--name", "photos", "--data.kind", "folder", "--data.root", "/one"]
    other = [
        *("--name", "photos", "--data.kind", "folder", "--data.root", "/other"),
        *("--cache", "/elsewhere", "--data.workers", "1"),
        *("--tracking.root", "/records", "--features.memory", "1", "--tracking.system_metrics", "false"),
    ]
    identities = [make_plan("", baseline=parse(words)[0]).identity() for words in (one, other)]
    assert describe_differences(*identities) == []


def test_images_and_weights_are_compared_by_content(tmp_path: Path) -> None:
    identities = []
    for folder, content in (("one", b"1"), ("copy", b"1"), ("onward", b"2")):
        path = tmp_path / folder / "vgg16-397923af.pth"
        path.parent.mkdir()
        path.write_bytes(content)
        plan = make_plan("", baseline=quickstart("--model.weights", str(path))).on_images(folder[:1])
        identities.append(plan.identity())
    one, copy, other = identities
    assert describe_differences(one, other) == [
        "the pretrained weights have changed",
    ]
    assert describe_differences(one, copy) == ["the images or their split have changed"]
    assert describe_differences(one, one) == []


def searching_weights(files: list[Path], baseline: Path) -> Plan:
    """A plan that searches the weights, as it is with the files' present content."""
    space = Space((Dimension("model.weights", choices=tuple(map(str, files))),))
    plan = make_plan("", baseline=quickstart("--model.weights", str(baseline)), space=space)
    return plan.on_images("images")


def test_searched_weights_count(tmp_path: Path) -> None:
    a, b = files = [tmp_path / name for name in ("a.pth", "b.pth")]
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    before = searching_weights(files, a).identity()
    assert json.loads(json.dumps(before)) == before
    assert describe_differences(before, searching_weights(files, a).identity()) == []
    b.write_bytes(b"another b")
    assert describe_differences(before, searching_weights(files, a).identity()) == [
        "a file of the searched model.weights has changed"
    ]


def test_searched_weights_do_not_hide_another_baseline(tmp_path: Path) -> None:
    a, b = files = [tmp_path / name for name in ("a.pth", "b.pth")]
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    one, other = (searching_weights(files, baseline).identity() for baseline in files)
    assert describe_differences(one, other) == ["the pretrained weights have changed"]
    a.write_bytes(b"b")
    b.write_bytes(b"a")
    swapped = searching_weights(files, b).identity()
    assert describe_differences(one, swapped) == ["a file of the searched model.weights has changed"]


def test_a_plan_knows_its_images_and_classes() -> None:
    """With few classes, metrics in which models cannot differ are left out of the report."""
    plan = make_plan("").on_images("images", 5)
    assert (plan.manifest, plan.classes) == ("images", 5)


def test_a_plan_stored_without_digests_is_the_same() -> None:
    plan = make_plan("")
    stored = plan.identity()
    del stored["manifest"], stored["weights"]
    assert describe_differences(stored, plan.on_images("images").identity()) == []


def test_other_ways_to_search_make_no_other_study() -> None:
    changes = {"trials": 9, "sampler": "tpe", "pruner": "median", "sampler_seed": 4}
    assert make_plan("there", **changes).identity() == make_plan("").identity()
