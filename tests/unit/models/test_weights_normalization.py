"""The normalization that files of pretrained weights give, or do not give."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import NUMBERS, Make
from safetensors.torch import save_file
from torch import Tensor
from vgg_weights import read_vgg11

from runner.config.schema import Experiment, Normalization
from runner.config.validation import check_weights
from runner.models import pretrained
from runner.training import setup
from runner.utils.console import Terminal
from runner.utils.errors import UserError

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestNormalization:
    @pytest.fixture
    def normalization(
        self, accelerator: Accelerator, silent: Terminal
    ) -> Callable[[Experiment], Normalization]:
        """The normalization of an experiment's model."""

        def of(experiment: Experiment) -> Normalization:
            return setup.prepare(experiment, accelerator, silent).features.extractor.model.spec.normalization

        return of

    def file(self, folder: Path, tensors: dict[str, Tensor], stated: str | None) -> str:
        """A weights file that states a normalization."""
        path = folder / "vgg11.safetensors"
        save_file(tensors, path, {"normalization": stated} if stated is not None else None)
        return str(path)

    def test_by_numbers(self, make: Make, normalization: Callable[[Experiment], Normalization]) -> None:
        numbers = json.dumps({"mean": IMAGENET.mean, "std": IMAGENET.std})
        assert normalization(make("--model.normalize", numbers)) == IMAGENET

    def test_by_enum(self, make: Make, normalization: Callable[[Experiment], Normalization]) -> None:
        assert normalization(make("--model.normalize", "VGG16_Weights.IMAGENET1K_V1")) == IMAGENET

    def test_by_statistics_of_the_training_images(
        self, make: Make, accelerator: Accelerator, silent: Terminal
    ) -> None:
        features = setup.prepare(make("--model.normalize", "statistics"), accelerator, silent).features
        images = features.loader.batches(features.manifest.select("train"), -1, [range(18)])
        values = next(images).double() / 255
        spec = features.extractor.model.spec
        assert spec.normalization.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-5)
        std = values.std((2, 3), correction=0).mean(0)
        assert spec.normalization.std == pytest.approx(std.tolist(), abs=1e-5)

    def test_as_the_weights_file_states(
        self,
        make: Make,
        normalization: Callable[[Experiment], Normalization],
        tmp_path: Path,
        features11: dict[str, Tensor],
    ) -> None:
        path = self.file(tmp_path, features11, json.dumps({"mean": NUMBERS.mean, "std": NUMBERS.std}))
        assert normalization(make("--model.weights", path, "--model.normalize", "weights")) == NUMBERS
        another = make("--model.weights", path, "--model.normalize", "VGG11_Weights.DEFAULT")
        assert normalization(another) == IMAGENET

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_weights_that_state_none_are_refused_where_it_is_asked_for(
        self,
        make: Make,
        normalization: Callable[[Experiment], Normalization],
        tmp_path: Path,
        features11: dict[str, Tensor],
        suffix: str,
    ) -> None:
        path = self.file(tmp_path, features11, None)
        if suffix == ".pth":
            path = str(tmp_path / "vgg11.pth")
            torch.save(features11, path)
        experiment = make("--model.weights", path, "--model.normalize", "weights")
        refusals = (lambda: check_weights(experiment.model), lambda: normalization(experiment))
        for refusal in refusals:
            with pytest.raises(UserError, match="does not say which normalization") as refused:
                refusal()
        sentence = str(refused.value)
        assert path in sentence
        offered = re.search(r"--model.normalize '(.*?)'", sentence)
        assert offered is not None
        assert normalization(make("--model.weights", path, "--model.normalize", offered[1])) == IMAGENET
        statistics = make("--model.weights", path, "--model.normalize", "statistics")
        assert normalization(statistics) == normalization(make("--model.normalize", "statistics"))

    def test_a_file_without_a_classifier_most_likely_expects_that_of_weights_without_one(
        self, make: Make, tmp_path: Path
    ) -> None:
        path, features = tmp_path / "vgg16.safetensors", {"features.0.weight": torch.zeros(64, 3, 3, 3)}
        words = ("--model.arch", "vgg16", "--model.weights", str(path), "--model.normalize", "weights")

        def refusal(tensors: dict[str, Tensor]) -> str:
            save_file(tensors, path)
            with pytest.raises(UserError) as refused:
                check_weights(make(*words).model)
            return str(refused.value)

        converted, own = "VGG16_Weights.IMAGENET1K_FEATURES", "VGG16_Weights.IMAGENET1K_V1"
        assert f"--model.normalize {converted}, most likely" in refusal(features)
        whole = features | {"classifier.0.weight": torch.zeros(4096, 25088)}
        assert f"--model.normalize {own}, or {converted} if" in refusal(whole)

    @pytest.mark.parametrize("key", ["normalization", "normalisation"])
    def test_files_of_earlier_versions_state_it_under_their_own_spelling(
        self, tmp_path: Path, key: str
    ) -> None:
        path = tmp_path / "weights.safetensors"
        stated = '{"mean": [0.5, 0.25, 0.125], "std": [0.5, 1, 2]}'
        save_file({"features.0.bias": torch.zeros(64)}, path, {key: stated})
        assert read_vgg11(path).normalization == Normalization((0.5, 0.25, 0.125), (0.5, 1, 2))

    @pytest.mark.parametrize(
        "stated",
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
    def test_metadata_that_is_no_normalization_is_refused(self, tmp_path: Path, stated: str) -> None:
        path = self.file(tmp_path, {"features.0.bias": torch.zeros(64)}, stated)
        with pytest.raises(UserError, match="normalization") as failure:
            read_vgg11(Path(path))
        assert path in str(failure.value)

    @pytest.mark.parametrize(
        "enum", ["VGG16_Weights.NONSENSE", "nonsense", "vgg16.IMAGENET1K_V1", "vgg.x", "a.b.c"]
    )
    def test_an_unknown_enum_is_refused(self, enum: str) -> None:
        with pytest.raises(UserError, match="torchvision has no weights"):
            pretrained.weights_normalization(enum)

    def test_an_enum_without_normalization_is_refused(self) -> None:
        with pytest.raises(UserError, match="states no mean and std"):
            pretrained.weights_normalization("FasterRCNN_ResNet50_FPN_Weights.COCO_V1")

    @pytest.mark.parametrize(
        "values", [{"mean": NUMBERS.mean, "std": (0.2, 0.2, 0.0)}, {"mean": NUMBERS.mean}], ids=repr
    )
    def test_numbers_out_of_range_are_refused(self, make: Make, values: dict[str, object]) -> None:
        with pytest.raises(UserError):
            make("--model.normalize", json.dumps(values))
