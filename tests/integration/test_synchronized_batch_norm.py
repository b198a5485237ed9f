"""Batch normalization over two processes: outputs, gradients and running statistics of torch's on one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, Make, Recorder
from torch import Tensor, distributed, nn
from two_processes import finish_two, start_two

from runner.config.tree import override
from runner.models.batch_norm import SynchronizedBatchNorm
from runner.training import run, setup
from runner.utils.errors import UserError


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6))
    return nn.Sequential(*layers, nn.BatchNorm1d(6, affine=False)).double().train()


def state(net: nn.Module) -> dict[str, Tensor]:
    """Gradients and running statistics."""
    gradients = {name: each.grad.clone() for name, each in net.named_parameters() if each.grad is not None}
    return gradients | {name: each.clone() for name, each in net.named_buffers()}


def step(net: nn.Module, samples: slice) -> Tensor:
    """The outputs of some of seven images, after the backward pass of their loss."""
    torch.manual_seed(1)
    images, labels = torch.randn(7, 3, 8, 8).double(), torch.randint(0, 6, (7,))
    outputs = net(images[samples])
    nn.functional.cross_entropy(outputs, labels[samples], reduction="sum").backward()
    return outputs.detach()


def compute(place: Path, split: int) -> int:
    """The first process has `split` images of the seven."""
    rank, net = distributed.get_rank(), network()
    with SynchronizedBatchNorm():
        outputs = step(net, slice(0, split) if rank == 0 else slice(split, 7))
    for parameter in net.parameters():
        distributed.all_reduce(parameter.grad)
    torch.save((outputs, state(net)), place / f"result {rank}")
    return 0


@pytest.mark.parametrize("split", [3, 0])
def test_two_processes_compute_what_one_does(split: int, tmp_path: Path) -> None:
    """Also if one of them has no image."""
    finish_two(tmp_path, start_two(tmp_path, compute, tmp_path, split))
    net = network()
    evaluated = copy.deepcopy(net).eval()
    with SynchronizedBatchNorm():
        assert torch.equal(step(evaluated, slice(0, 7)), step(evaluated, slice(0, 7))), (
            "one process, no statistics"
        )
    outputs = step(net, slice(0, 7))
    results = [torch.load(tmp_path / f"result {rank}", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([own for own, _ in results]), outputs, rtol=0, atol=1e-12)
    for _, own in results:
        expected = state(net)
        assert own.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(own[name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("size", "parts", "images"), [(1, 1, "1 image;"), (9, 5, r"9 images in 5 parts \(train.accumulate\);")]
)
def test_batch_normalization_needs_two_images_at_a_time(
    make: Make, accelerator: Accelerator, size: int, parts: int, images: str
) -> None:
    experiment = make("--model.arch", "vgg11_bn", "--model.weights", "null", "--model.trainable", "all")
    assert setup.prepare(experiment, accelerator, QUIET).model.trains_batch_norm
    experiment = override(experiment, {"train.batch_size": size, "train.accumulate": parts})
    with pytest.raises(UserError, match=f"two images or more at a time, but a batch has {images}"):
        setup.prepare(experiment, accelerator, QUIET)


def test_a_last_image_whose_map_is_one_pixel_is_a_sentence(
    make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    words = ("--model.arch", "timm/regnetx_002", "--model.weights", "null", "--model.trainable", "last:2")
    with pytest.raises(
        UserError, match=r"has one image, whose map there is one pixel\. Set train.batch_size"
    ):
        run.train(make(*words, "--train.batch_size", "17"), accelerator, Recorder(tmp_path), QUIET)
