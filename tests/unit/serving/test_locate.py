"""References to models: MLflow's URIs, paths, and what is refused without a server."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from runner.serving.locate import _is_path, _without_uri_scheme, locate_model
from runner.utils.errors import UserError


@pytest.mark.parametrize(
    ("uri", "reference"),
    [
        ("models:/small@champion", "small@champion"),
        ("models:/small/3", "small@3"),
        ("models:/a b/3/", "a b@3"),
        ("models:/m-0123", "m-0123"),
        ("runs:/0123abcd/model", "0123abcd"),
        ("runs:/0123abcd", "0123abcd"),
        ("latest", "latest"),
    ],
)
def test_mlflows_uris_are_references(uri: str, reference: str) -> None:
    assert _without_uri_scheme(uri) == reference


@pytest.mark.parametrize(
    ("reference", "is_path"),
    [
        ("a/b", True),
        ("best.safetensors", True),
        ("best.pth", True),
        ("here", True),
        ("small@champion", False),
        ("latest", False),
    ],
)
def test_paths_are_recognized(
    reference: str, is_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _is_path(reference) is is_path


def test_the_files_of_a_folder_are_found(tmp_path: Path) -> None:
    logged, bare, checkpoints = (tmp_path / name for name in ("logged", "bare", "checkpoints"))
    for folder in (logged / "artifacts" / "classifier", bare):
        folder.mkdir(parents=True)
        (folder / "model.json").touch()
        (folder / "model.safetensors").touch()
    checkpoints.mkdir()
    (checkpoints / "best.safetensors").touch()
    assert locate_model(str(logged), "mlruns").path == logged / "artifacts" / "classifier"
    assert locate_model(bare, "mlruns").path == bare
    assert locate_model(bare / "model.safetensors", "mlruns").path == bare
    for reference in (checkpoints, checkpoints / "best.safetensors"):
        location = locate_model(reference, "mlruns")
        assert location.path == checkpoints / "best.safetensors"
        assert location.source == f"checkpoint {location.path}"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere/best.safetensors", "There is no nowhere/best.safetensors"),
        ("best.safetensors", "There is no best.safetensors"),
        ("~nobody-at-all/x", "~nobody"),
        ("a/" + "b" * 300, "There is no"),
        ("empty/", "has no model (model.json) and no checkpoint (best.safetensors)"),
        ("model.pkl/", "Pickled files are not opened"),
        ("best.pth", "Pickled files are not opened"),
    ],
)
def test_paths_without_a_model_are_refused_in_one_sentence(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("model.pkl", "best.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        locate_model(reference.removesuffix("/") if "." in reference else reference, "mlruns")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
