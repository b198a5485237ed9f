"""The identity of an experiment: what makes two runs the same, and how a difference is described."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.identity import MANIFEST_TAG, WEIGHTS_TAG, Identity, weights_digest
from runner.config.tree import as_tree, flatten, from_tree, override

EXPERIMENT = from_tree({"data": {"kind": "digits"}})
TREE = as_tree(EXPERIMENT)


def test_what_changes_no_result_does_not_count() -> None:
    other = {"data.workers": 1, "cache": "elsewhere", "tracking.root": "there", "features.memory": 1.0}
    assert Identity.of(TREE).changes(Identity.of(as_tree(override(EXPERIMENT, other)))) == []


def test_each_difference_is_a_clause() -> None:
    now = Identity.of(as_tree(override(EXPERIMENT, {"train.epochs": 7})), "other images", "other weights")
    assert Identity.of(TREE, "images", "weights").changes(now) == [
        "train.epochs was 30 and is 7 now",
        "the images or their split have changed",
        "the pretrained weights have changed",
    ]


def test_a_setting_that_is_younger_than_the_experiment_has_its_default() -> None:
    before = {name: value for name, value in flatten(TREE).items() if name != "data.depth"}
    assert Identity.of(before).changes(Identity.of(TREE)) == []
    changed = Identity.of(as_tree(override(EXPERIMENT, {"data.depth": 12})))
    run = Identity.of_run(
        {name: str(value) for name, value in before.items() if name != "optim.momentum"}, {}
    )
    assert run.changes(Identity.of_run({name: str(value) for name, value in before.items()}, {})) == []
    assert Identity.of(before).changes(changed) == ["data.depth was auto and is 12 now"]


@pytest.mark.parametrize("known", [{"manifest": "a"}, {"weights": "a"}])
def test_digests_that_are_not_known_are_not_compared(known: dict[str, str]) -> None:
    assert Identity.of(TREE).changes(Identity.of(TREE, **known)) == []
    assert Identity.of(TREE, **known).changes(Identity.of(TREE)) == []


def test_scores_are_comparable_on_images_that_are_known_to_be_the_same() -> None:
    one, other, unknown = (Identity(manifest=digest) for digest in ("a", "b", ""))
    assert one.has_same_images(Identity(manifest="a"))
    assert not one.has_same_images(other)
    assert not unknown.has_same_images(unknown)


def test_weights_are_compared_by_content(tmp_path: Path) -> None:
    identities = []
    for name, content in [("a/w.pth", b"1"), ("b/w.pth", b"1"), ("c/w.pth", b"2"), ("d/v.pth", b"1")]:
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(content)
        tree = as_tree(override(EXPERIMENT, {"model.weights": str(path)}))
        identities.append(Identity.of(tree, weights=weights_digest(str(path))))
    first, copied, changed, renamed = identities
    assert first == copied
    assert first.changes(changed) == ["the pretrained weights have changed"]
    assert first.changes(renamed) == []
    assert first.settings["model.weights"] == "w.pth"


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"some")
    before = weights_digest(str(path))
    path.write_bytes(b"other")
    assert weights_digest(str(path)) != before
    path.unlink()
    assert (
        weights_digest(str(path))
        == weights_digest("VGG16_Weights.IMAGENET1K_V1")
        == weights_digest(None)
        == ""
    )


def test_a_run_in_mlflow_shows_its_identity() -> None:
    params = {name: str(value) for name, value in flatten(TREE).items()}
    identity = Identity.of_run(params, {MANIFEST_TAG: "images", WEIGHTS_TAG: "weights", "mlflow.user": "me"})
    assert identity.tags() == {"runner.manifest": "images", "runner.weights": "weights"}
    assert identity.settings["optim.lr"] == "0.01"
    assert "cache" not in identity.settings
    assert Identity.of(TREE).tags() == {}
