"""The model that trains: the split point, freezing, batch normalization, parameter groups and initial weights."""

from __future__ import annotations

import pytest
import torch
from helpers import random_images, small_model
from torch import Tensor, nn

from runner.models.dropout import set_dropout_batch
from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError


@pytest.fixture(scope="module")
def classifier_head() -> TransferModel:
    """vgg11 with its own classifier, whose last layer is new."""
    return small_model(head="classifier").eval()


def frozen_features(model: TransferModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.run(images, 0, model.split_index)


class TestHead:
    def test_logits_are_float32_one_per_class(self, classifier_head: TransferModel) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = classifier_head(random_images(2))
        assert logits.dtype == torch.float32
        assert logits.shape == (2, 3)

    def test_it_replaces_the_last_layer_of_the_classifier(self, classifier_head: TransferModel) -> None:
        head = classifier_head.get_submodule("classifier.6")
        assert [type(layer) for layer in head][::3] == [nn.Linear, nn.Linear]
        assert isinstance(head[1], nn.ReLU)
        assert isinstance(head[2], nn.Dropout)
        assert head[2].p == 0.4
        assert (head[0].in_features, head[0].out_features) == (4096, 16)
        assert (head[3].in_features, head[3].out_features) == (16, 3)
        dropouts = [layer.p for layer in classifier_head.classifier if isinstance(layer, nn.Dropout)]
        assert dropouts == [0.5, 0.5]


class TestSplitPoint:
    def test_classifier_head_splits_after_the_first_relu_of_the_classifier(
        self, classifier_head: TransferModel
    ) -> None:
        assert classifier_head.split_layer == "classifier.1"
        features = frozen_features(classifier_head, random_images(2))
        assert features.shape == (2, 4096)
        assert features.min() == 0

    @pytest.mark.parametrize("pool", [1, 2, 3])
    def test_pooled_head_splits_after_the_pooling(self, pool: int) -> None:
        model = small_model(pool=pool).eval()
        assert model.split_layer == "flatten"
        assert frozen_features(model, random_images(2, 96)).shape == (2, 512 * pool**2)

    @pytest.mark.parametrize("trainable", ["all", "features", "features.0"])
    def test_no_split_if_everything_trains(self, trainable: str) -> None:
        model = small_model(trainable=trainable)
        assert model.split_index == 0
        assert model.split_layer == ""
        assert model.frozen_stages == ()
        assert all(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("trainable", "last_frozen"),
        [("features.3", "features.2"), ("features.16", "features.15"), ("features.18", "features.17")],
    )
    def test_split_before_the_first_trainable_layer(self, trainable: str, last_frozen: str) -> None:
        model = small_model(trainable=trainable)
        assert model.split_layer == last_frozen
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        number = int(trainable.removeprefix("features."))
        expected = {
            name
            for name, _ in model.named_parameters()
            if name.startswith("classifier.") or int(name.split(".")[1]) >= number
        }
        assert trained == expected

    def test_a_part_of_the_own_classifier_can_train(self) -> None:
        model = small_model(head="classifier", trainable="classifier.0", random_weights=False)
        assert model.split_layer == "flatten"
        assert not any(parameter.requires_grad for parameter in model.features.parameters())
        assert all(parameter.requires_grad for parameter in model.classifier.parameters())

    def test_dropout_in_the_own_classifier_ends_the_frozen_backbone(self) -> None:
        model = small_model(head="classifier", trainable="classifier.3", random_weights=False)
        assert model.split_layer == "classifier.1"
        assert not model.classifier[0].weight.requires_grad
        assert model.classifier[3].weight.requires_grad

    def test_the_first_stage_ends_before_the_pooling(self, classifier_head: TransferModel) -> None:
        for model in (classifier_head, small_model(pool=2, random_weights=False)):
            first, second = model.frozen_stages
            assert (first.start, second.start, second.stop) == (0, first.stop, model.split_index)
            assert model.layer_names[first.stop] == "avgpool"
        assert len(small_model(trainable="features.16", random_weights=False).frozen_stages) == 1

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "settings",
        [
            {"head": "classifier"},
            {"head": "pooled", "pool": 2},
            {"trainable": "features.16"},
            {"arch": "vgg11_bn", "trainable": "features.22"},
        ],
        ids=str,
    )
    def test_frozen_backbone_then_trainable_part_is_the_whole_model_bit_for_bit(
        self, settings: dict[str, object], precision: torch.dtype, classifier_head: TransferModel
    ) -> None:
        model = classifier_head if settings == {"head": "classifier"} else small_model(**settings)  # type: ignore[arg-type]
        images = random_images(4, 64)
        mixed = precision != torch.float32
        for training in (False, True):
            model.train(training)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                set_dropout_batch(model.modules(), 0, slice(0, 4), 4)
                whole = model(images)
                set_dropout_batch(model.modules(), 0, slice(0, 4), 4)
                parts = model(frozen_features(model, images), start=model.split_index)
            assert torch.equal(whole, parts)
            assert whole.std() > 0
        model.eval()

    @pytest.mark.parametrize(
        ("name", "similar"),
        [("feature.16", "features.16"), ("clasifier.1", "classifier.1"), ("Head", "head, all")],
    )
    def test_unknown_trainable_layer_is_refused_with_a_suggestion(self, name: str, similar: str) -> None:
        with pytest.raises(UserError, match=r"model\.trainable") as failure:
            small_model(trainable=name, random_weights=False)
        assert repr(name) in str(failure.value)
        assert similar in str(failure.value)

    def test_a_layer_without_weights_cannot_train(self) -> None:
        with pytest.raises(UserError, match="no layer with weights"):
            small_model(trainable="features.1", random_weights=False)


class TestBatchNormalization:
    def running_means(self, model: TransferModel) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items() if "running_mean" in name}

    def changed_by_training(self, model: TransferModel) -> set[str]:
        """The running means that a forward pass in training mode changes."""
        before = self.running_means(model)
        model.train()
        set_dropout_batch(model.modules(), 0, slice(0, 4), 4)
        with torch.no_grad():
            model(random_images(4, 64))
        after = self.running_means(model)
        return {name for name, value in after.items() if not torch.equal(value, before[name])}

    def test_frozen_it_stays_in_evaluation_mode(self) -> None:
        model = small_model(arch="vgg11_bn")
        assert not model.trains_batch_norm
        assert self.changed_by_training(model) == set()
        assert model.training
        assert model.get_submodule("classifier.0").training

    def test_trainable_it_updates_its_statistics(self) -> None:
        model = small_model(arch="vgg11_bn", trainable="features.22")
        assert model.trains_batch_norm
        assert self.changed_by_training(model) == {"features.23.running_mean", "features.26.running_mean"}

    def test_its_statistics_belong_to_the_trainable_state(self) -> None:
        model = small_model(arch="vgg11_bn", trainable="features.22")
        trainable, frozen = model.trainable_state(), model.frozen_state()
        assert "features.23.running_var" in trainable
        assert "features.19.running_var" in frozen
        assert not set(trainable) & set(frozen)
        assert set(trainable) | set(frozen) == set(model.state_dict())


class TestInitialWeights:
    def head(self, model: TransferModel) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name.startswith("classifier.")}

    def test_the_head_depends_on_the_training_seed_alone(self) -> None:
        torch.manual_seed(1)
        first = self.head(small_model(3))
        torch.manual_seed(2)
        for again in (
            small_model(3),
            small_model(3, arch="vgg13", random_weights=False),
            small_model(3, trainable="all"),
        ):
            assert all(torch.equal(value, first[name]) for name, value in self.head(again).items())
        other = self.head(small_model(4))
        assert not any(torch.equal(value, first[name]) for name, value in other.items())

    def test_random_backbones_are_the_same_in_every_run(self) -> None:
        torch.manual_seed(1)
        first = small_model(1).features.state_dict()
        torch.manual_seed(2)
        again = small_model(2, pool=2, trainable="all").features.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert first["0.weight"].std() > 0

    def test_random_convolutions_are_distributed_as_in_torchvision(self) -> None:
        layer = small_model().features[16]
        assert layer.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
        assert not layer.bias.any()

    def test_building_does_not_change_the_global_generator(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        small_model()
        assert torch.equal(torch.rand(3), expected)
