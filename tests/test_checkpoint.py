"""Checkpoints: what they hold, that they come back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import checkpoint_content, small_network
from safetensors.torch import load_file, save_file

from runner.models import checkpoint
from runner.models.network import TransferModel
from runner.utils.errors import UserError


class TestCheckpoint:
    @pytest.fixture
    def kept(self, tmp_path: Path) -> tuple[TransferModel, Path]:
        """A network whose every trained tensor was moved, and its checkpoint."""
        network = small_network(arch="vgg11_bn", trainable="features.25", training_seed=3).eval()
        generator = torch.Generator().manual_seed(1)
        for value in network.trainable_state().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
        self.write(network, tmp_path)
        return network, tmp_path / "best.safetensors"

    def write(self, network: TransferModel, folder: Path) -> None:
        checkpoint.save_frozen(network, folder)
        frozen = checkpoint.frozen_digest(network)
        checkpoint.save(
            network, folder / "best.safetensors", 4, {"top1": 0.5, "hits1": 3}, frozen, {"name": "small"}
        )

    def test_comes_back_as_it_was(self, kept: tuple[TransferModel, Path]) -> None:
        network, path = kept
        back = checkpoint.load(path)
        assert (back.epoch, back.val, back.inference) == (4, {"top1": 0.5, "hits1": 3}, {"name": "small"})
        assert back.model.spec == network.spec
        assert not back.model.training
        state = back.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.equal(back.model(images), network(images))

    def test_holds_only_what_was_learned(self, kept: tuple[TransferModel, Path]) -> None:
        network, path = kept
        learned, frozen = load_file(path), load_file(path.parent / checkpoint.FROZEN_FILE)
        assert {name.rpartition(".")[0] for name in learned} == {
            "features.25",
            "features.26",
            "classifier.1",
            "classifier.4",
        }
        assert set(learned) | set(frozen) == set(network.state_dict())
        assert not set(learned) & set(frozen)

    def test_another_frozen_file_is_refused(self, kept: tuple[TransferModel, Path]) -> None:
        network, path = kept
        network.get_parameter("features.0.bias").data[0] += 1e-3
        checkpoint.save_frozen(network, path.parent)
        with pytest.raises(UserError, match="is not the one that best"):
            checkpoint.load(path)

    def test_frozen_file_of_another_network_is_refused(self, kept: tuple[TransferModel, Path]) -> None:
        checkpoint.save_frozen(small_network(), kept[1].parent)
        with pytest.raises(UserError):
            checkpoint.load(kept[1])

    @pytest.mark.parametrize("name", ["best.safetensors", "frozen.safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
    def test_damaged_file_is_refused(self, kept: tuple[TransferModel, Path], name: str, share: float) -> None:
        path = kept[1].parent / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(UserError, match="damaged") as failure:
            checkpoint.load(kept[1])
        assert str(path) in str(failure.value)

    @pytest.mark.parametrize("name", ["best.safetensors", "frozen.safetensors"])
    def test_flipped_bit_is_refused(self, kept: tuple[TransferModel, Path], name: str) -> None:
        path = kept[1].parent / name
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError):
            checkpoint.load(kept[1])

    @pytest.mark.parametrize("name", ["best.safetensors", "frozen.safetensors"])
    def test_missing_file_is_named(self, kept: tuple[TransferModel, Path], name: str) -> None:
        (kept[1].parent / name).unlink()
        with pytest.raises(UserError, match="There is no") as failure:
            checkpoint.load(kept[1])
        assert str(kept[1].parent / name) in str(failure.value)

    @pytest.mark.parametrize("name", ["best.safetensors", "frozen.safetensors"])
    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
    def test_foreign_file_is_refused(
        self, kept: tuple[TransferModel, Path], name: str, metadata: dict[str, str] | None
    ) -> None:
        save_file({"weight": torch.zeros(3)}, kept[1].parent / name, metadata)
        with pytest.raises(UserError, match="no checkpoint of this runner"):
            checkpoint.load(kept[1])

    @pytest.mark.parametrize(
        "about", ["", "{", "[]", "{}", '{"architecture": {}}', '{"architecture": {"arch": "resnet18"}}']
    )
    def test_unknown_description_is_refused(self, kept: tuple[TransferModel, Path], about: str) -> None:
        path = kept[1]
        save_file(load_file(path), path, {"format": checkpoint.FORMAT, "about": about})
        with pytest.raises(UserError, match="not a checkpoint of this version"):
            checkpoint.load(path)

    def test_learned_numbers_of_another_shape_are_refused(self, kept: tuple[TransferModel, Path]) -> None:
        network, path = kept
        other = small_network(arch="vgg11_bn", trainable="features.25", width=8)
        description = checkpoint.frozen_digest(network)
        checkpoint.save(network, path, 1, {}, description, {})
        tensors = {
            **load_file(path),
            **{n: v for n, v in other.trainable_state().items() if n.startswith("classifier.")},
        }
        metadata = checkpoint_content(path)[1]
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
        with pytest.raises(UserError, match="not a checkpoint of this version"):
            checkpoint.load(path)
