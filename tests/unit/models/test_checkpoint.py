"""Checkpoints: what they contain, that they load unchanged, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import checkpoint_content, random_images, small_model
from safetensors.torch import load_file, save_file

from runner.models import checkpoint
from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError

FILES = ["best.safetensors", "frozen.safetensors"]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[TransferModel, Path]:
    """A model with every trainable tensor changed, and its checkpoint. No test may change them."""
    model = small_model(3, arch="vgg11_bn", trainable="features.25").eval()
    generator = torch.Generator().manual_seed(1)
    for value in model.trainable_state().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    checkpoint.save_frozen(model, path.parent)
    frozen = checkpoint.frozen_digest(model)
    checkpoint.save(model, path, 4, {"top1": 0.5, "hits1": 3}, frozen, {"name": "small"})
    return model, path


@pytest.fixture
def saved(saved_once: tuple[TransferModel, Path], tmp_path: Path) -> tuple[TransferModel, Path]:
    """Copies of both, which a test may change."""
    model, path = saved_once
    shutil.copytree(path.parent, tmp_path, dirs_exist_ok=True)
    return copy.deepcopy(model), tmp_path / path.name


def test_loads_as_it_was_saved(saved: tuple[TransferModel, Path]) -> None:
    model, path = saved
    loaded = checkpoint.load(path)
    assert (loaded.epoch, loaded.val, loaded.inference) == (4, {"top1": 0.5, "hits1": 3}, {"name": "small"})
    assert loaded.model.spec == model.spec
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded.model(random_images()), model(random_images()))


def test_contains_only_the_layers_that_train(saved: tuple[TransferModel, Path]) -> None:
    model, path = saved
    trainable, frozen = load_file(path), load_file(path.parent / checkpoint.FROZEN_FILE)
    layers = {"features.25", "features.26", "classifier.1", "classifier.4"}
    assert {name.rpartition(".")[0] for name in trainable} == layers
    assert set(trainable) | set(frozen) == set(model.state_dict())
    assert not set(trainable) & set(frozen)


def test_states_which_frozen_layers_it_belongs_to(saved: tuple[TransferModel, Path]) -> None:
    model, path = saved
    assert checkpoint.stored_frozen_digest(path) == checkpoint.frozen_digest(model)


def test_runs_with_the_same_frozen_layers_share_their_file(
    saved: tuple[TransferModel, Path], tmp_path: Path
) -> None:
    model, path = saved
    shared, folders = tmp_path / "shared", [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    files = [folder / checkpoint.FROZEN_FILE for folder in folders]
    checkpoint.save_frozen(model, folders[0], shared)
    assert files[0].read_bytes() == (path.parent / checkpoint.FROZEN_FILE).read_bytes()
    checkpoint.save_frozen(model, folders[1], shared)
    (file,) = shared.iterdir()
    assert file.stem == checkpoint.frozen_digest(model)
    assert file.samefile(files[0])
    assert file.samefile(files[1])
    model.get_parameter("features.0.bias").data[0] += 1e-3
    checkpoint.save_frozen(model, folders[2], shared)
    assert len(list(shared.iterdir())) == 2
    assert not files[2].samefile(files[0])


@pytest.mark.parametrize("content", [b"", b"no tensors", None], ids=["empty", "text", "another tensor"])
def test_a_damaged_shared_file_is_written_again(
    saved: tuple[TransferModel, Path], tmp_path: Path, content: bytes | None
) -> None:
    model, path = saved
    shared = tmp_path / "shared"
    checkpoint.save_frozen(model, path.parent, shared)
    (file,) = shared.iterdir()
    if content is None:
        tensors, metadata = checkpoint_content(file)
        save_file({name: value.flip(0) for name, value in tensors.items()}, file, metadata)
    else:
        file.write_bytes(content)
    checkpoint.save_frozen(model, path.parent, shared)
    assert checkpoint.load(path).epoch == 4


def test_another_frozen_file_is_refused(saved: tuple[TransferModel, Path]) -> None:
    model, path = saved
    model.get_parameter("features.0.bias").data[0] += 1e-3
    checkpoint.save_frozen(model, path.parent)
    with pytest.raises(UserError, match="does not belong to best"):
        checkpoint.load(path)


def test_a_frozen_file_of_another_architecture_is_refused(saved: tuple[TransferModel, Path]) -> None:
    checkpoint.save_frozen(small_model(), saved[1].parent)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        checkpoint.load(saved[1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: tuple[TransferModel, Path], name: str, share: float) -> None:
    path = saved[1].parent / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="damaged") as failure:
        checkpoint.load(saved[1])
    assert str(path) in str(failure.value)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(saved: tuple[TransferModel, Path], name: str) -> None:
    path = saved[1].parent / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError):
        checkpoint.load(saved[1])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: tuple[TransferModel, Path], name: str) -> None:
    (saved[1].parent / name).unlink()
    with pytest.raises(UserError, match="There is no") as failure:
        checkpoint.load(saved[1])
    assert str(saved[1].parent / name) in str(failure.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
def test_a_file_of_another_program_is_refused(
    saved: tuple[TransferModel, Path], name: str, metadata: dict[str, str] | None
) -> None:
    save_file({"weight": torch.zeros(3)}, saved[1].parent / name, metadata)
    with pytest.raises(UserError, match="not a checkpoint of this version of the runner"):
        checkpoint.load(saved[1])


def test_a_checkpoint_of_an_earlier_version_is_refused(saved: tuple[TransferModel, Path]) -> None:
    path = saved[1]
    save_file(load_file(path), path, {"format": "vgg-runner-checkpoint-1", "about": "{}"})
    with pytest.raises(UserError, match=r"not a checkpoint of this version .*checkpoint-1"):
        checkpoint.load(path)


def test_a_changed_description_is_refused(saved: tuple[TransferModel, Path]) -> None:
    path = saved[1]
    _, metadata = checkpoint_content(path)
    changed = metadata["description"].replace('"epoch": 4', '"epoch": 5')
    assert changed != metadata["description"]
    save_file(load_file(path), path, {**metadata, "description": changed})
    with pytest.raises(UserError, match=r"damaged \(its description"):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {}}', '{"model": {"arch": "unknown"}}'])
def test_a_description_that_is_none_is_refused(saved: tuple[TransferModel, Path], text: str) -> None:
    path = saved[1]
    digest = checkpoint.description_digest(text)
    metadata = {"format": checkpoint.FORMAT, "description": text, "description_digest": digest}
    save_file(load_file(path), path, metadata)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value"), [("classes", ["red", "red"]), ("classes", ["red"]), ("arch", "unknown"), ("width", 3)]
)
def test_a_model_that_cannot_be_is_refused(
    saved: tuple[TransferModel, Path], field: str, value: object
) -> None:
    path = saved[1]
    tensors, metadata = checkpoint_content(path)
    description = json.loads(metadata["description"])
    description["model"][field] = value
    text = json.dumps(description)
    digest = checkpoint.description_digest(text)
    save_file(tensors, path, {**metadata, "description": text, "description_digest": digest})
    with pytest.raises(UserError):
        checkpoint.load(path)


def test_tensors_of_another_shape_are_refused(saved: tuple[TransferModel, Path]) -> None:
    path = saved[1]
    tensors, metadata = checkpoint_content(path)
    other = small_model(arch="vgg11_bn", trainable="features.25", width=8).trainable_state()
    heads = {name: value.contiguous() for name, value in other.items() if name.startswith("classifier.")}
    save_file({**tensors, **heads}, path, metadata)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        checkpoint.load(path)


def test_weights_that_are_not_finite_are_refused(saved: tuple[TransferModel, Path]) -> None:
    model, path = saved
    model.classifier[4].bias.data[0] = float("nan")
    checkpoint.save(model, path, 1, {}, checkpoint.frozen_digest(model), {})
    with pytest.raises(UserError, match="NaN or infinite"):
        checkpoint.load(path)
