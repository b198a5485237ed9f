"""Another backbone needs one module that registers it; the rest of the program then uses it as it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import CLASSES, Make, random_images, small_model
from torch import nn

from runner.config.choices import ARCHITECTURES
from runner.config.train_schema import OptimConfig
from runner.explain import cam
from runner.models import checkpoint
from runner.models.dropout import set_dropout_batch
from runner.models.parameter_groups import parameter_groups
from runner.portable.backbone import register
from runner.portable.backbones import BACKBONES
from runner.portable.model import build_model
from runner.serving.packaging import describe
from runner.utils.errors import UserError

TINY = '''
"""A residual network with four channels."""

import torch
from torch import nn

from runner.portable.backbone import BackboneModules, Block, Layout, Preprocessing, register
from runner.portable.graph import meta_parameters


class Residual(nn.Module):
    """Two branches, which no list of layers can express: one block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, values):
        return torch.relu(values + self.norm(self.conv(values)))


class Tiny:
    arch, description = "tiny", "a residual network with four channels"
    weights_enum, weights_without_classifier = "Tiny_Weights", ()
    min_input_size = 16

    def weights_names(self):
        return []

    def default_weights(self):
        return None

    def license(self, weights):
        return "mit"

    def preprocessing(self, weights):
        return Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def build(self, head, pool, size, random_weights):
        if not random_weights:
            with meta_parameters():
                return self.build(head, pool, size, True)
        root = nn.Module()
        root.fc = nn.Linear(4, 1000)  # declared first: the order of execution is the blocks'
        root.stem = nn.Conv2d(3, 4, 4, stride=4)
        root.stages = nn.ModuleList([Residual(), Residual()])
        root.pool = nn.AdaptiveAvgPool2d(1 if head == "classifier" else pool)
        root.flatten = nn.Flatten(1)
        blocks = Block.of("stem", "stages.0", "stages.1", "pool", "flatten")
        layouts = {name: Layout(4) for name in ("stem", "stages.0", "stages.1")}
        num_features = 4 if head == "classifier" else 4 * pool**2
        return BackboneModules(root, blocks, "fc", num_features, "pool", "stages.1", layouts)


register(Tiny())
'''
HEADS = ["classifier", "pooled"]


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path) -> Iterator[None]:
    """The backbone, registered by a module of its own."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    del BACKBONES["tiny"]
    if "tiny" in ARCHITECTURES:
        ARCHITECTURES.remove("tiny")


def test_the_architectures_that_settings_accept_are_the_registered_backbones(make: Make) -> None:
    assert [*ARCHITECTURES.choices] == [*BACKBONES]
    assert make("--model.arch", "tiny").model.arch == "tiny"
    with pytest.raises(UserError, match=r"no architecture of torchvision.* timm"):
        make("--model.arch", "unknown")


def test_its_smallest_image_is_checked(make: Make) -> None:
    assert make("--model.arch", "tiny", "--augment.crop", "16").augment.crop == 16
    with pytest.raises(
        UserError, match=r"augment\.crop must be at least 16 for model\.arch=tiny; it is 15 .*64"
    ):
        make("--model.arch", "tiny", "--augment.crop", "15")


def test_an_architecture_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register(BACKBONES["vgg11"])


@pytest.mark.parametrize("head", HEADS)
def test_blocks_run_in_their_order_and_split_before_the_head(head: str) -> None:
    model = small_model(arch="tiny", head=head, pool=2).eval()
    assert model.layer_names[:6] == ["normalize", "stem", "stages.0", "stages.1", "pool", "flatten"]
    assert model.split_layer == "flatten"
    assert [(stage.start, stage.stop) for stage in model.frozen_stages] == [(0, 4), (4, 6)]
    images = random_images(3, 32)
    with torch.no_grad():
        features = model.run(images, 0, model.split_index)
        assert features.shape == (3, 4 if head == "classifier" else 16)
        assert torch.equal(model(features, start=model.split_index), model(images))


def test_freezing_reaches_into_blocks() -> None:
    model = small_model(arch="tiny", trainable="stages.1").train()
    assert model.split_layer == "stages.0"
    assert not model.get_submodule("stages.0.norm").training
    assert model.get_submodule("stages.1.norm").training
    assert model.trains_batch_norm
    trainable = {name.rpartition(".")[0] for name in model.trainable_state()}
    assert trainable == {"stages.1.conv", "stages.1.norm", "fc.1", "fc.4"}
    with pytest.raises(UserError, match=r"did you mean 'stages\.1'"):
        small_model(arch="tiny", trainable="stage.1")


def test_random_weights_are_the_same_in_every_run() -> None:
    one, two = (small_model(seed, arch="tiny").get_submodule("stages").state_dict() for seed in (1, 2))
    assert one["0.conv.weight"].std() > 0
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_one_optimizer_step_changes_only_what_trains() -> None:
    model = small_model(arch="tiny", trainable="stages.1").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, OptimConfig(lr=0.5, groups={"stages": 0.1})))
    set_dropout_batch(model.modules(), 0, slice(0, 4), 4)
    nn.functional.cross_entropy(model(random_images()), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"stages.1.conv.weight", "fc.1.weight", "fc.4.weight"} <= changed <= set(model.trainable_state())


def test_checkpoints_and_packaged_models_load_it(tmp_path: Path) -> None:
    model = small_model(arch="tiny", pool=2).eval()
    checkpoint.save_frozen(model, tmp_path)
    checkpoint.save(model, tmp_path / "best.safetensors", 1, {}, checkpoint.frozen_digest(model), {})
    description = describe(model, {}, epoch=1)
    packaged = build_model(description["model"], len(CLASSES), model.state_dict())
    images = random_images()
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(checkpoint.load(tmp_path / "best.safetensors").model(images), expected)
        assert torch.equal(packaged(images), expected)


def test_grad_cam_explains_its_layer() -> None:
    model = small_model(arch="tiny").eval()
    assert model.cam_layer == "stages.1"
    assert cam.explain(model, random_images(2), [0, 1]).shape == (2, 32, 32)
    with pytest.raises(UserError, match="stem to pool"):
        cam.layer_index(model, "fc")


def test_a_run_trains_and_evaluates_it(
    make: Make, train: Callable[..., Any], accelerator: Accelerator
) -> None:
    experiment = make("--model.arch", "tiny", "--model.weights", "null", "--optim.lr", "0.01")
    result, records = train(experiment)
    assert len(result.history) == 3
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert {"system/features/misses", "test/best/top1"} <= {name for name, _, _ in records.points}
