"""The network against torchvision's own, the cut, freezing, and weights that fit or do not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from runner.config.schema import Experiment, ModelConfig, Normalization
from runner.config.validation import check_weights
from runner.models import pretrained
from runner.models.dropout import set_dropout_batch
from runner.models.network import ModelSpec, TransferModel
from runner.models.pretrained import PretrainedWeights
from runner.training import setup
from runner.utils.errors import UserError

ARCHS = [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")]
NUMBERS = Normalization((0.5, 0.45, 0.4), (0.25, 0.2, 0.3))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = ("blue", "green", "red")


def network(
    arch: str = "vgg11",
    head: str = "pooled",
    pool: int = 1,
    trainable: str = "head",
    dropout: float = 0.4,
    training_seed: int = 0,
    random: bool = True,
) -> TransferModel:
    architecture = ModelSpec(arch, head, pool, 16, dropout, trainable, CLASSES, NUMBERS)
    return TransferModel(architecture, training_seed, random)


def images(count: int = 4, pixels: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator)


def torchvision_model(arch: str) -> nn.Module:
    """torchvision's own model, without memory for its numbers."""
    with torch.device("meta"):
        return torchvision.models.get_model(arch, weights=None).eval()


def drawn(arch: str, classifier: bool = True) -> dict[str, Tensor]:
    """Weights under torchvision's names, none of them zero or one, so that a forgotten one would show."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, value in torchvision_model(arch).state_dict().items():
        if name.startswith("classifier.6.") or (name.startswith("classifier.") and not classifier):
            continue
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif value.dim() > 1:
            spread = (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.empty(value.shape).normal_(0, spread, generator=generator)
        else:
            tensors[name] = torch.empty(value.shape).uniform_(0.5, 1.5, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def features11() -> dict[str, Tensor]:
    return drawn("vgg11", classifier=False)


@pytest.fixture(scope="module")
def report11() -> TransferModel:
    return network(head="report").eval()


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


class TestAgainstTorchvision:
    @pytest.mark.parametrize("head", ["report", "pooled"])
    @pytest.mark.parametrize("arch", ARCHS)
    def test_layers_bear_its_names(self, arch: str, head: str) -> None:
        ours = network(arch, head, random=False)
        head_name = "classifier.6." if head == "report" else "classifier."
        frozen = [name for name in ours.state_dict() if not name.startswith(("normalise.", head_name))]
        theirs = [name for name in torchvision_model(arch).state_dict() if not name.startswith(head_name)]
        assert frozen == theirs

    @pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn", "vgg16"])
    def test_same_weights_give_the_same_pooled_convolutions(self, arch: str) -> None:
        tensors = drawn(arch, classifier=False)
        ours = network(arch, pool=2, random=False).eval()
        pretrained.load_weights(ours, PretrainedWeights("drawn", tensors, None))
        theirs = torchvision_model(arch)
        theirs.load_state_dict(tensors, strict=False, assign=True)
        theirs.avgpool = nn.AdaptiveAvgPool2d(2)
        batch = images(3, 64)
        with torch.no_grad():
            expected = theirs.avgpool(theirs.features(normalised(batch))).flatten(1)
            ours_before_head = ours.prefix(batch)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours_before_head, expected, rtol=1e-4, atol=1e-4)

    def test_same_weights_give_the_same_4096_numbers_in_front_of_the_report_head(self) -> None:
        tensors = drawn("vgg11")
        ours = network(head="report", random=False).eval()
        pretrained.load_weights(ours, PretrainedWeights("drawn", tensors, None))
        theirs = torchvision_model("vgg11")
        theirs.load_state_dict(tensors, strict=False, assign=True)
        theirs.classifier[6] = nn.Identity()
        batch = images(2, 32)
        seen: list[Tensor] = []
        ours.get_submodule("classifier.6.0").register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        with torch.no_grad():
            ours(batch)
            expected = theirs(normalised(batch))
        assert seen[0].shape == (2, 4096)
        assert expected.std() > 0.01
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)

    def test_logits_are_float32_one_for_each_class(self, report11: TransferModel) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = report11(images(2))
        assert logits.dtype == torch.float32
        assert logits.shape == (2, 3)

    def test_report_head_is_linear_relu_dropout_linear(self, report11: TransferModel) -> None:
        head = report11.get_submodule("classifier.6")
        assert [
            isinstance(layer, kind)
            for layer, kind in zip(head, (nn.Linear, nn.ReLU, nn.Dropout, nn.Linear), strict=True)
        ] == [True] * 4
        assert head[2].p == 0.4
        assert (head[0].in_features, head[0].out_features) == (4096, 16)
        assert (head[3].in_features, head[3].out_features) == (16, 3)
        assert [layer.p for layer in report11.classifier if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def normalised(batch: Tensor) -> Tensor:
    """As torchvision's own transforms do it."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Normalize(NUMBERS.mean, NUMBERS.std)(to_float(batch))


class TestCut:
    def test_report_head_ends_behind_the_first_relu_of_the_classifier(self, report11: TransferModel) -> None:
        assert report11.split_layer == "classifier.1"
        with torch.no_grad():
            rows = report11.prefix(images(2))
        assert rows.shape == (2, 4096)
        assert rows.min() == 0

    @pytest.mark.parametrize("pool", [1, 2, 3])
    def test_pooled_head_ends_behind_pooling(self, pool: int) -> None:
        ours = network(pool=pool).eval()
        assert ours.split_layer == "flatten"
        with torch.no_grad():
            assert ours.prefix(images(2, 96)).shape == (2, 512 * pool**2)

    @pytest.mark.parametrize("trainable", ["all", "features", "features.0"])
    def test_nothing_is_cut_where_everything_trains(self, trainable: str) -> None:
        ours = network(trainable=trainable)
        assert ours.split_index == 0
        assert ours.split_layer == ""
        assert all(parameter.requires_grad for parameter in ours.parameters())

    @pytest.mark.parametrize(
        ("trainable", "before"),
        [("features.3", "features.2"), ("features.16", "features.15"), ("features.18", "features.17")],
    )
    def test_cut_lies_before_the_first_layer_that_trains(self, trainable: str, before: str) -> None:
        ours = network(trainable=trainable)
        assert ours.split_layer == before
        trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
        number = int(trainable.removeprefix("features."))
        expected = {
            name
            for name, _ in ours.named_parameters()
            if name.startswith("classifier.") or int(name.split(".")[1]) >= number
        }
        assert trained == expected

    def test_part_of_the_old_classifier_may_train(self) -> None:
        ours = network(head="report", trainable="classifier.0", random=False)
        assert ours.split_layer == "flatten"
        assert not any(parameter.requires_grad for parameter in ours.features.parameters())
        assert all(parameter.requires_grad for parameter in ours.classifier.parameters())

    def test_later_classifier_layer_leaves_the_cut_at_the_first_dropout(self) -> None:
        ours = network(head="report", trainable="classifier.3", random=False)
        assert ours.split_layer == "classifier.1"
        assert not ours.classifier[0].weight.requires_grad
        assert ours.classifier[3].weight.requires_grad

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "settings",
        [
            {"head": "report"},
            {"head": "pooled", "pool": 2},
            {"trainable": "features.16"},
            {"arch": "vgg11_bn", "trainable": "features.22"},
        ],
        ids=str,
    )
    def test_prefix_then_tail_is_the_whole_bit_for_bit(
        self, settings: dict[str, object], precision: torch.dtype, report11: TransferModel
    ) -> None:
        ours = report11 if settings == {"head": "report"} else network(**settings)  # type: ignore[arg-type]
        batch = images(4, 64)
        mixed = precision != torch.float32
        for training in (False, True):
            ours.train(training)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                set_dropout_batch(ours.modules(), 0, slice(0, 4), 4)
                whole = ours(batch)
                set_dropout_batch(ours.modules(), 0, slice(0, 4), 4)
                rows = ours.prefix(batch)
                parts = ours(rows, start=ours.split_index)
            assert torch.equal(whole, parts)
            assert whole.std() > 0
        ours.eval()

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("feature.16", "features.16"), ("clasifier.1", "classifier.1"), ("Head", "head, all")],
    )
    def test_unknown_trainable_names_the_nearest(self, name: str, nearest: str) -> None:
        with pytest.raises(UserError, match=r"network\.trainable") as failure:
            network(trainable=name, random=False)
        assert repr(name) in str(failure.value)
        assert nearest in str(failure.value)

    def test_layer_without_weights_cannot_train(self) -> None:
        with pytest.raises(UserError, match=r"names no layer with weights"):
            network(trainable="features.1", random=False)


class TestFrozenBatchNormalisation:
    def statistics(self, ours: TransferModel) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in ours.state_dict().items() if "running_mean" in name}

    def forward(self, ours: TransferModel) -> set[str]:
        """The running means that a training forward moves."""
        before = self.statistics(ours)
        ours.train()
        set_dropout_batch(ours.modules(), 0, slice(0, 4), 4)
        with torch.no_grad():
            ours(images(4, 64))
        return {name for name, value in self.statistics(ours).items() if not torch.equal(value, before[name])}

    def test_stays_in_evaluation(self) -> None:
        ours = network("vgg11_bn")
        assert self.forward(ours) == set()
        assert ours.training
        assert ours.get_submodule("classifier.0").training

    def test_moves_where_it_trains(self) -> None:
        ours = network("vgg11_bn", trainable="features.22")
        assert self.forward(ours) == {"features.23.running_mean", "features.26.running_mean"}

    def test_its_statistics_are_kept_with_what_was_learned(self) -> None:
        learned, frozen = network("vgg11_bn", trainable="features.22").parts()
        assert "features.23.running_var" in learned
        assert "features.19.running_var" in frozen
        assert not set(learned) & set(frozen)


class TestParameterGroups:
    def test_longest_name_decides(self) -> None:
        ours = network(trainable="all")
        groups = ours.parameter_groups(0.1, {"features": 1e-4, "features.16": 1e-3})
        rate_of = {id(each): group["lr"] for group in groups for each in group["params"]}  # type: ignore[attr-defined]
        for name, parameter in ours.named_parameters():
            expected = 0.1
            if name.startswith("features."):
                expected = 1e-3 if name.startswith("features.16.") else 1e-4
            assert rate_of[id(parameter)] == expected, name

    def test_name_is_no_mere_beginning(self) -> None:
        ours = network("vgg13", trainable="all")
        groups = ours.parameter_groups(0.1, {"features.2": 1e-3})
        (named,) = [group for group in groups if group["lr"] == 1e-3]
        assert [id(each) for each in named["params"]] == [id(each) for each in ours.features[2].parameters()]  # type: ignore[attr-defined]

    def test_without_names_all_that_trains_is_one_group(self) -> None:
        ours = network()
        (group,) = ours.parameter_groups(0.1, {})
        assert group["lr"] == 0.1
        wanted = [parameter for parameter in ours.parameters() if parameter.requires_grad]
        assert [id(each) for each in group["params"]] == [id(each) for each in wanted]  # type: ignore[attr-defined]
        assert len(wanted) == 4

    @pytest.mark.parametrize("name", ["nonsense", "features", "features.0", "classifier.2", "class"])
    def test_name_where_nothing_trains_is_refused(self, name: str) -> None:
        with pytest.raises(UserError, match=r"optim\.groups") as failure:
            network(random=False).parameter_groups(0.1, {name: 1e-3})
        assert repr(name) in str(failure.value)


class TestFirstWeights:
    def head(self, ours: TransferModel) -> dict[str, Tensor]:
        return {name: value for name, value in ours.state_dict().items() if name.startswith("classifier.")}

    def test_head_is_a_function_of_the_fit_seed(self) -> None:
        torch.manual_seed(1)
        first = self.head(network(training_seed=3))
        torch.manual_seed(2)
        for again in (
            network(training_seed=3),
            network("vgg13", training_seed=3, random=False),
            network(training_seed=3, trainable="all"),
        ):
            assert all(torch.equal(value, first[name]) for name, value in self.head(again).items())
        other = self.head(network(training_seed=4))
        assert not any(torch.equal(value, first[name]) for name, value in other.items())

    def test_random_convolutions_are_the_same_in_each_build(self) -> None:
        torch.manual_seed(1)
        first = network(training_seed=1).features.state_dict()
        torch.manual_seed(2)
        again = network(training_seed=2, pool=2, trainable="all").features.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert first["0.weight"].std() > 0

    def test_random_convolutions_are_spread_as_torchvision_does(self) -> None:
        layer = network().features[16]
        assert layer.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
        assert not layer.bias.any()

    def test_building_leaves_the_global_generator_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        network()
        assert torch.equal(torch.rand(3), expected)


class TestWeightsByName:
    def test_enum_of_another_network_is_refused(self) -> None:
        settings = ModelConfig(arch="vgg11", weights="VGG16_Weights.IMAGENET1K_V1")
        with pytest.raises(UserError, match=r"no weights of vgg11.*VGG11_Weights\.IMAGENET1K_V1"):
            check_weights(settings)
        with pytest.raises(UserError, match="no weights of vgg11"):
            pretrained.read_weights(settings)

    def test_features_only_weights_are_refused_for_the_report_head(self) -> None:
        name = "VGG16_Weights.IMAGENET1K_FEATURES"
        with pytest.raises(UserError, match=r"network\.head=pooled"):
            check_weights(ModelConfig(weights=name, head="report"))
        check_weights(ModelConfig(weights=name, head="pooled"))

    @pytest.mark.parametrize(
        "name",
        ["VGG11_Weights.NONSENSE", "VGG11_Weights", "VGG11_Weights.a.b", "vgg11_weights.IMAGENET1K_V1"],
    )
    def test_unknown_member_of_the_right_enum_is_refused(self, name: str) -> None:
        with pytest.raises(UserError, match="torchvision has no weights"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=name))

    def test_failed_download_names_address_and_folder(
        self, torch_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise URLError("no route to host")

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        name = "VGG11_Weights.IMAGENET1K_V1"
        with pytest.raises(UserError) as failure:
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=name))
        text = str(failure.value)
        assert torchvision.models.VGG11_Weights.IMAGENET1K_V1.url in text
        assert str(torch_home) in text
        assert "no route to host" in text

    def test_wrong_download_is_told_as_a_failed_one(
        self, torch_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mangle(*_: object, **__: object) -> None:
            raise RuntimeError('invalid hash value (expected "8a719046", got "00000000")')

        monkeypatch.setattr(torch.hub, "download_url_to_file", mangle)
        with pytest.raises(UserError, match="invalid hash value"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights="VGG11_Weights.IMAGENET1K_V1"))

    def test_damaged_file_in_the_download_folder_is_a_sentence(self, torch_home: Path) -> None:
        torch_home.mkdir(parents=True)
        address = torchvision.models.VGG11_Weights.IMAGENET1K_V1.url
        (torch_home / address.rsplit("/", 1)[1]).write_bytes(b"<html>Service unavailable</html>")
        with pytest.raises(UserError, match=r"VGG11_Weights\.IMAGENET1K_V1"):
            pretrained.read_weights(ModelConfig(arch="vgg11", weights="VGG11_Weights.IMAGENET1K_V1"))

    def test_no_weights_are_none(self) -> None:
        assert pretrained.read_weights(ModelConfig(weights=None)) is None


class TestWeightsFiles:
    def read(self, path: Path) -> PretrainedWeights:
        found = pretrained.read_weights(ModelConfig(arch="vgg11", weights=str(path), head="pooled"))
        assert found is not None
        return found

    def test_safetensors_fill_the_network(self, tmp_path: Path, features11: dict[str, Tensor]) -> None:
        path = tmp_path / "vgg11.safetensors"
        save_file(features11, path)
        ours = network(random=False)
        head = ours.classifier[1].weight.clone()
        pretrained.load_weights(ours, self.read(path))
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in features11.items())
        assert torch.equal(ours.classifier[1].weight, head)
        assert ours.normalize.mean.flatten().tolist() == pytest.approx(NUMBERS.mean)

    @pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module"])
    def test_pth_fills_the_network(self, tmp_path: Path, features11: dict[str, Tensor], wrap: str) -> None:
        path = tmp_path / "vgg11.pth"
        content: dict[str, object] = dict(features11)
        if wrap == "module":
            content = {f"module.{name}": value for name, value in features11.items()}
        elif wrap != "plain":
            content = {wrap: content, "epoch": 3}
        torch.save(content, path)
        ours = network(random=False)
        pretrained.load_weights(ours, self.read(path))
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in features11.items())

    def test_half_precision_becomes_float32(self, features11: dict[str, Tensor]) -> None:
        ours = network(random=False)
        pretrained.load_weights(
            ours, PretrainedWeights("half", {name: value.half() for name, value in features11.items()}, None)
        )
        name = "features.0.weight"
        assert ours.state_dict()[name].dtype == torch.float32
        assert torch.equal(ours.state_dict()[name], features11[name].half().float())

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"There is no weights file .*gone\.safetensors"):
            self.read(tmp_path / "gone.safetensors")

    def test_other_kind_of_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "vgg11.onnx").write_bytes(b"onnx")
        with pytest.raises(UserError, match=r"neither \.safetensors nor \.pth"):
            self.read(tmp_path / "vgg11.onnx")

    def test_malicious_pickle_is_refused_and_not_run(self, tmp_path: Path) -> None:
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
                self.read(path)
        assert not trace.exists()
        pickle.loads(bare.read_bytes())
        assert trace.exists()

    @pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "old.pth"])
    @pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
    def test_truncated_file_is_named(self, tmp_path: Path, name: str, kept: float) -> None:
        path = tmp_path / name
        tensors = {"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=name != "old.pth")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        with pytest.raises(UserError) as failure:
            self.read(path)
        assert str(path) in str(failure.value)

    @pytest.mark.parametrize(
        "content", [b"<html>not found</html>", b"\x80\x02.", b"version https://git-lfs", b"\0" * 64]
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_file_of_something_else_is_named(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"else.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError) as failure:
            self.read(path)
        assert str(path) in str(failure.value)

    @pytest.mark.parametrize(
        "content", [[torch.zeros(1)], {"epoch": 3}, {}, {3: torch.zeros(1)}, torch.zeros(2)], ids=repr
    )
    def test_tensors_without_names_are_refused(self, tmp_path: Path, content: object) -> None:
        path = tmp_path / "odd.pth"
        torch.save(content, path)
        with pytest.raises(UserError) as failure:
            pretrained.load_weights(network(random=False), self.read(path))
        assert str(path) in str(failure.value)


class TestWeightsThatDoNotFit:
    def refusal(self, tensors: dict[str, Tensor], ours: TransferModel | None = None) -> str:
        with pytest.raises(UserError) as failure:
            pretrained.load_weights(ours or network(random=False), PretrainedWeights("these.pth", tensors, None))
        assert "these.pth" in str(failure.value)
        return str(failure.value)

    def test_missing_tensor_is_named(self, features11: dict[str, Tensor]) -> None:
        rest = {name: value for name, value in features11.items() if name != "features.3.bias"}
        assert "lacks features.3.bias" in self.refusal(rest)

    def test_many_missing_tensors_are_counted(self) -> None:
        text = self.refusal({})
        assert "features.0.weight, features.0.bias, features.3.weight and 13 more" in text
        assert "model.arch" in text

    def test_unexpected_tensor_is_named(self, features11: dict[str, Tensor]) -> None:
        assert "features.21.weight" in self.refusal({**features11, "features.21.weight": torch.zeros(1)})

    def test_wrong_shape_is_told(self, features11: dict[str, Tensor]) -> None:
        text = self.refusal({**features11, "features.0.weight": torch.zeros(64, 1, 3, 3)})
        assert "features.0.weight" in text
        assert "[64, 1, 3, 3]" in text
        assert "[64, 3, 3, 3]" in text

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_number_that_is_none_is_named(self, features11: dict[str, Tensor], number: float) -> None:
        spoilt = features11["features.8.bias"].clone()
        spoilt[5] = number
        assert "features.8.bias" in self.refusal({**features11, "features.8.bias": spoilt})

    def test_no_classifier_for_the_report_head_says_pooled(self, features11: dict[str, Tensor]) -> None:
        text = self.refusal(features11, network(head="report", random=False))
        assert "classifier.0.weight" in text
        assert "model.head=pooled" in text

    def test_other_network_says_arch(self, features11: dict[str, Tensor]) -> None:
        assert "model.arch" in self.refusal(features11, network("vgg13", random=False))

    def test_nothing_is_loaded_of_what_does_not_fit(self, features11: dict[str, Tensor]) -> None:
        ours = network()
        before = ours.features[0].weight.clone()
        self.refusal({**features11, "features.18.bias": torch.zeros(1)}, ours)
        assert torch.equal(ours.features[0].weight, before)

    def test_old_files_without_batch_counters_start_at_zero(self) -> None:
        tensors = drawn("vgg11_bn", classifier=False)
        old = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        assert len(old) < len(tensors)
        torch.use_deterministic_algorithms(True)  # fills memory that nobody initialised with a telling value
        try:
            ours = network("vgg11_bn", random=False)
        finally:
            torch.use_deterministic_algorithms(False)
        pretrained.load_weights(ours, PretrainedWeights("old.pth", old, None))
        counters = {n: v.item() for n, v in ours.state_dict().items() if n.endswith("num_batches_tracked")}
        assert set(counters.values()) == {0}, counters


class TestNormalisation:
    def of(self, experiment: Experiment, accelerator, silent) -> Normalization:  # type: ignore[no-untyped-def]
        return setup.prepare(experiment, accelerator, silent).network.spec.normalization

    def path(self, folder: Path, tensors: dict[str, Tensor], said: str | None) -> str:
        path = folder / "vgg11.safetensors"
        save_file(tensors, path, {"normalisation": said} if said is not None else None)
        return str(path)

    def test_by_numbers(self, make, accelerator, silent) -> None:  # type: ignore[no-untyped-def]
        said = json.dumps({"mean": NUMBERS.mean, "std": NUMBERS.std})
        assert self.of(make("--model.normalize", said), accelerator, silent) == NUMBERS

    def test_by_enum(self, make, accelerator, silent) -> None:  # type: ignore[no-untyped-def]
        setting = make("--model.normalize", "VGG16_Weights.IMAGENET1K_V1")
        assert self.of(setting, accelerator, silent) == IMAGENET

    def test_by_statistics_of_the_training_images(self, make, accelerator, silent) -> None:  # type: ignore[no-untyped-def]
        ready = setup.prepare(make("--model.normalize", "statistics"), accelerator, silent)
        clean = ready.features.loader.batches(ready.manifest.select("train"), -1, [range(18)])
        values = next(clean).double() / 255
        expected = values.std((2, 3), correction=0).mean(0)
        assert ready.network.spec.normalization.mean == pytest.approx(
            values.mean((0, 2, 3)).tolist(), abs=1e-5
        )
        assert ready.network.spec.normalization.std == pytest.approx(expected.tolist(), abs=1e-5)

    def test_by_the_weights_own_words(self, make, accelerator, silent, tmp_path, features11) -> None:  # type: ignore[no-untyped-def]
        said = json.dumps({"mean": NUMBERS.mean, "std": NUMBERS.std})
        path = self.path(tmp_path, features11, said)
        setting = make("--model.weights", path, "--model.normalize", "weights")
        assert self.of(setting, accelerator, silent) == NUMBERS

    def test_weights_that_say_nothing_leave_it_to_statistics(  # type: ignore[no-untyped-def]
        self, make, accelerator, silent, tmp_path, features11, monkeypatch
    ) -> None:
        notes: list[str] = []
        monkeypatch.setattr(silent, "warn", notes.append)
        path = self.path(tmp_path, features11, None)
        found = self.of(make("--model.weights", path, "--model.normalize", "weights"), accelerator, silent)
        assert found == self.of(make("--model.normalize", "statistics"), accelerator, silent)
        assert len(notes) == 1
        assert path in notes[0]

    def test_weights_do_not_overrule_another_setting(
        self, make, accelerator, silent, tmp_path, features11
    ) -> None:  # type: ignore[no-untyped-def]
        path = self.path(tmp_path, features11, json.dumps({"mean": NUMBERS.mean, "std": NUMBERS.std}))
        setting = make("--model.weights", path, "--model.normalize", "VGG11_Weights.DEFAULT")
        assert self.of(setting, accelerator, silent) == IMAGENET

    @pytest.mark.parametrize(
        "said",
        [
            "nonsense",
            "[1, 2]",
            "{}",
            '{"mean": 1, "std": 2}',
            '{"mean": [0.5, 0.5], "std": [1, 1]}',
            '{"mean": ["a", "b", "c"], "std": [1, 1, 1]}',
            '{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0]}',
            '{"mean": [0.5, 0.5, NaN], "std": [0.2, 0.2, 0.2]}',
        ],
    )
    def test_words_that_are_no_normalisation_are_refused(self, tmp_path: Path, said: str) -> None:
        path = self.path(tmp_path, {"features.0.bias": torch.zeros(64)}, said)
        with pytest.raises(UserError, match="normalisation") as failure:
            pretrained.read_weights(ModelConfig(arch="vgg11", weights=path, head="pooled"))
        assert path in str(failure.value)

    @pytest.mark.parametrize(
        "enum", ["VGG16_Weights.NONSENSE", "nonsense", "vgg16.IMAGENET1K_V1", "vgg.x", "a.b.c"]
    )
    def test_unknown_enum_is_refused(self, enum: str) -> None:
        with pytest.raises(UserError, match="torchvision has no weights"):
            pretrained.weights_normalization(enum)

    def test_enum_that_does_not_normalise_is_refused(self) -> None:
        with pytest.raises(UserError):
            pretrained.weights_normalization("FasterRCNN_ResNet50_FPN_Weights.COCO_V1")

    @pytest.mark.parametrize(
        "values", [{"mean": NUMBERS.mean, "std": (0.2, 0.2, 0.0)}, {"mean": NUMBERS.mean}], ids=repr
    )
    def test_numbers_out_of_range_are_refused(self, make, accelerator, silent, values) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(UserError):
            setup.prepare(make("--model.normalize", json.dumps(values)), accelerator, silent)
