"""Pretrained weights: by name, from files, weights that do not fit, and the normalization that goes with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from helpers import NUMBERS, small_model
from safetensors.torch import save_file
from torch import Tensor
from vgg_weights import drawn_weights, read_vgg11

from runner.config.schema import ModelConfig
from runner.config.validation import check_weights
from runner.models import pretrained
from runner.models.pretrained import PretrainedWeights
from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError

VGG11 = "VGG11_Weights.IMAGENET1K_V1"


@pytest.fixture
def model() -> TransferModel:
    """vgg11 with a pooled head, before its weights are loaded."""
    return small_model(random_weights=False)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder that torchvision downloads weights to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


class TestByName:
    def test_weights_of_another_architecture_are_refused(self) -> None:
        settings = ModelConfig(arch="vgg11", weights="VGG16_Weights.IMAGENET1K_V1")
        with pytest.raises(UserError, match=r"no weights of vgg11.*VGG11_Weights\.IMAGENET1K_V1"):
            check_weights(settings)
        with pytest.raises(UserError, match="no weights of vgg11"):
            pretrained.read_weights(settings)

    def test_weights_without_a_classifier_need_a_pooled_head(self) -> None:
        name = "VGG16_Weights.IMAGENET1K_FEATURES"
        with pytest.raises(UserError, match=r"model\.head=pooled"):
            check_weights(ModelConfig(weights=name, head="classifier"))
        check_weights(ModelConfig(weights=name, head="pooled"))

    @pytest.mark.parametrize(
        "name",
        ["VGG11_Weights.NONSENSE", "VGG11_Weights", "VGG11_Weights.a.b", "vgg11_weights.IMAGENET1K_V1"],
    )
    def test_unknown_weights_are_refused(self, name: str) -> None:
        with pytest.raises(UserError, match="torchvision has no weights"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=name))

    def test_a_failed_download_names_address_and_folder(
        self, downloads: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise URLError("no route to host")

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        with pytest.raises(UserError) as failure:
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=VGG11))
        text = str(failure.value)
        assert torchvision.models.VGG11_Weights.IMAGENET1K_V1.url in text
        assert str(downloads) in text
        assert "no route to host" in text

    def test_a_download_with_another_digest_is_a_failed_one(
        self, downloads: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mangle(*_: object, **__: object) -> None:
            raise RuntimeError('invalid hash value (expected "8a719046", got "00000000")')

        monkeypatch.setattr(torch.hub, "download_url_to_file", mangle)
        with pytest.raises(UserError, match="invalid hash value"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=VGG11))

    def test_a_damaged_download_is_named(self, downloads: Path) -> None:
        downloads.mkdir(parents=True)
        address = torchvision.models.VGG11_Weights.IMAGENET1K_V1.url
        (downloads / address.rsplit("/", 1)[1]).write_bytes(b"<html>Service unavailable</html>")
        with pytest.raises(UserError, match=r"VGG11_Weights\.IMAGENET1K_V1"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=VGG11))

    def test_null_means_random_weights(self) -> None:
        assert pretrained.read_weights(ModelConfig(weights=None)) is None


def has(model: TransferModel, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(model.state_dict()[name], value) for name, value in tensors.items())


class TestFiles:
    def test_safetensors_fill_the_backbone_only(
        self, tmp_path: Path, features11: dict[str, Tensor], model: TransferModel
    ) -> None:
        path = tmp_path / "vgg11.safetensors"
        save_file(features11, path)
        head = model.classifier[1].weight.clone()
        pretrained.load_weights(model, read_vgg11(path))
        assert has(model, features11)
        assert torch.equal(model.classifier[1].weight, head)
        assert model.normalize.mean.flatten().tolist() == pytest.approx(NUMBERS.mean)

    @pytest.mark.parametrize(
        "wrap",
        [
            *("plain", "state_dict", "model", "model_state_dict"),
            *("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."),
        ],
    )
    def test_pth_fills_the_backbone(
        self, tmp_path: Path, features11: dict[str, Tensor], wrap: str, model: TransferModel
    ) -> None:
        path = tmp_path / "vgg11.pth"
        content: dict[str, object] = dict(features11)
        if wrap.endswith("."):  # as DistributedDataParallel and torch.compile name them
            content = {"state_dict": {f"{wrap}{name}": value for name, value in features11.items()}}
        elif wrap != "plain":
            content = {
                "epoch": 3,
                wrap: content,
                "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1}]},
            }
        torch.save(content, path)
        pretrained.load_weights(model, read_vgg11(path))
        assert has(model, features11)

    def test_names_of_a_compiled_layer_and_in_safetensors(
        self, tmp_path: Path, features11: dict[str, Tensor], model: TransferModel
    ) -> None:
        path = tmp_path / "vgg11.safetensors"
        save_file(
            {name.replace("features.", "features._orig_mod."): value for name, value in features11.items()},
            path,
        )
        pretrained.load_weights(model, read_vgg11(path))
        assert has(model, features11)

    def test_tensors_that_a_file_holds_twice_are_refused(
        self, tmp_path: Path, features11: dict[str, Tensor]
    ) -> None:
        path = tmp_path / "twice.pth"
        torch.save({**features11, "module.features.0.bias": torch.zeros(64)}, path)
        with pytest.raises(UserError, match=r"twice\.pth holds some tensors twice"):
            read_vgg11(path)

    def test_half_precision_becomes_float32(
        self, features11: dict[str, Tensor], model: TransferModel
    ) -> None:
        halves = {name: value.half() for name, value in features11.items()}
        pretrained.load_weights(model, PretrainedWeights("half", halves, None))
        weight = model.state_dict()["features.0.weight"]
        assert weight.dtype == torch.float32
        assert torch.equal(weight, features11["features.0.weight"].half().float())

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"There is no weights file .*gone\.safetensors"):
            read_vgg11(tmp_path / "gone.safetensors")

    def test_another_kind_of_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "vgg11.onnx").write_bytes(b"onnx")
        with pytest.raises(UserError, match=r"neither \.safetensors nor \.pth"):
            read_vgg11(tmp_path / "vgg11.onnx")

    def test_a_malicious_pickle_is_refused_and_not_run(self, tmp_path: Path) -> None:
        trace = tmp_path / "it ran"

        class Malicious:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
                return Path.touch, (trace,)

        modern, old, bare = tmp_path / "modern.pth", tmp_path / "old.pth", tmp_path / "bare.pth"
        torch.save({"features.0.weight": torch.zeros(1), "more": Malicious()}, modern)
        torch.save({"more": Malicious()}, old, _use_new_zipfile_serialization=False)
        bare.write_bytes(pickle.dumps(Malicious()))
        for path in (modern, old, bare):
            with pytest.raises(UserError, match="was not loaded"):
                read_vgg11(path)
        assert not trace.exists()
        pickle.loads(bare.read_bytes())
        assert trace.exists()

    @pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "old.pth"])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
    def test_a_truncated_file_is_named(self, tmp_path: Path, name: str, share: float) -> None:
        path = tmp_path / name
        tensors = {"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=name != "old.pth")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(UserError) as failure:
            read_vgg11(path)
        assert str(path) in str(failure.value)

    @pytest.mark.parametrize(
        "content", [b"<html>not found</html>", b"\x80\x02.", b"version https://git-lfs", b"\0" * 64]
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_a_file_of_something_else_is_named(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"else.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError) as failure:
            read_vgg11(path)
        assert str(path) in str(failure.value)

    @pytest.mark.parametrize(
        "content", [[torch.zeros(1)], {"epoch": 3}, {}, {3: torch.zeros(1)}, torch.zeros(2)], ids=repr
    )
    def test_tensors_without_names_are_refused(
        self, tmp_path: Path, content: object, model: TransferModel
    ) -> None:
        path = tmp_path / "odd.pth"
        torch.save(content, path)
        with pytest.raises(UserError) as failure:
            pretrained.load_weights(model, read_vgg11(path))
        assert str(path) in str(failure.value)


def refusal(tensors: dict[str, Tensor], model: TransferModel) -> str:
    """The sentence that weights are refused with."""
    with pytest.raises(UserError) as failure:
        pretrained.load_weights(model, PretrainedWeights("these.pth", tensors, None))
    assert "these.pth" in str(failure.value)
    return str(failure.value)


class TestMismatches:
    def test_a_missing_tensor_is_named(self, features11: dict[str, Tensor], model: TransferModel) -> None:
        rest = {name: value for name, value in features11.items() if name != "features.3.bias"}
        assert "lacks features.3.bias" in refusal(rest, model)

    def test_many_missing_tensors_are_counted(self, model: TransferModel) -> None:
        text = refusal({}, model)
        assert "features.0.weight, features.0.bias, features.3.weight and 13 more" in text
        assert "model.arch" in text

    def test_an_unexpected_tensor_is_named(self, features11: dict[str, Tensor], model: TransferModel) -> None:
        assert "features.21.weight" in refusal({**features11, "features.21.weight": torch.zeros(1)}, model)

    def test_another_shape_is_stated(self, features11: dict[str, Tensor], model: TransferModel) -> None:
        text = refusal({**features11, "features.0.weight": torch.zeros(64, 1, 3, 3)}, model)
        assert "features.0.weight" in text
        assert "[64, 1, 3, 3]" in text
        assert "[64, 3, 3, 3]" in text

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_a_tensor_that_is_not_finite_is_named(
        self, features11: dict[str, Tensor], number: float, model: TransferModel
    ) -> None:
        bias = features11["features.8.bias"].clone()
        bias[5] = number
        assert "features.8.bias" in refusal({**features11, "features.8.bias": bias}, model)

    def test_a_missing_classifier_suggests_the_pooled_head(self, features11: dict[str, Tensor]) -> None:
        text = refusal(features11, small_model(head="classifier", random_weights=False))
        assert "classifier.0.weight" in text
        assert "model.head=pooled" in text

    def test_another_architecture_suggests_arch(self, features11: dict[str, Tensor]) -> None:
        assert "model.arch" in refusal(features11, small_model(arch="vgg13", random_weights=False))

    def test_nothing_is_loaded_if_anything_does_not_fit(self, features11: dict[str, Tensor]) -> None:
        model = small_model()
        before = model.features[0].weight.clone()
        refusal({**features11, "features.18.bias": torch.zeros(1)}, model)
        assert torch.equal(model.features[0].weight, before)

    def test_old_files_without_batch_counts_start_at_zero(self) -> None:
        tensors = drawn_weights("vgg11_bn", classifier=False)
        old = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        assert len(old) < len(tensors)
        torch.use_deterministic_algorithms(True)  # fills uninitialized memory with a conspicuous value
        try:
            model = small_model(arch="vgg11_bn", random_weights=False)
        finally:
            torch.use_deterministic_algorithms(False)
        pretrained.load_weights(model, PretrainedWeights("old.pth", old, None))
        counts = {n: v.item() for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
        assert set(counts.values()) == {0}, counts
