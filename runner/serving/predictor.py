"""A loaded model that classifies images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.portable.classifier import BATCH_SIZE, Classifier
from runner.portable.model import LayeredModel
from runner.serving.inputs import ImageInput, as_list, is_path, name_of, to_rgb
from runner.utils.processes import cpu_count
from runner.utils.threads import map_in_threads

READ_AHEAD = 4
"""Batches of files that are decoded while the model computes."""


@dataclass(frozen=True)
class ClassProbability:
    """A class and its softmax probability."""

    name: str
    probability: float


@dataclass(frozen=True, repr=False)
class Prediction:
    """The most probable classes of an image, the most probable first."""

    path: str
    """Empty for an image that was given in memory."""
    top: tuple[ClassProbability, ...]
    """Empty if the image cannot be read."""
    error: str = ""
    """Why it could not be read, to follow its name: `is empty`."""

    def __repr__(self) -> str:
        """As `<Prediction photo.jpg: crab 0.981, chair 0.012>`."""
        found = self.error or ", ".join(f"{item.name} {item.probability:.3f}" for item in self.top)
        return f"<Prediction {self.path or 'of an image in memory'}: {found}>"

    def as_dict(self) -> dict[str, Any]:
        """`{"path": …, "top": [{"class": …, "probability": …}, …]}`."""
        return {
            "path": self.path,
            "top": [{"class": item.name, "probability": item.probability} for item in self.top],
        }


@dataclass
class DecodedBatch:
    """Consecutive images, transformed, of those that can be read."""

    paths: list[str] = field(default_factory=list)
    """Of all of them; empty for an image in memory."""
    errors: list[str] = field(default_factory=list)
    """For each why it could not be read; empty if it could."""
    images: list[Tensor] = field(default_factory=list)
    """3 × crop × crop, uint8, of those without an error."""


class LoadedModel:
    """A classifier and where it was loaded from.

    Args:
        classifier: The model with its classes and transform.
        source: Description of the run, version or file that it comes from, for messages.
    """

    def __init__(self, classifier: Classifier, source: str) -> None:
        self.classifier = classifier
        self.source = source

    def __repr__(self) -> str:
        """As `<LoadedModel run 1a2b3c4d (pets, fresh-owl-7): vgg16, 37 classes, on cpu>`."""
        arch = self.classifier.description["model"]["arch"]
        return (
            f"<LoadedModel {self.source}: {arch}, {len(self.classes)} classes, on {self.classifier.device}>"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by class index."""
        return self.classifier.classes

    @property
    def module(self) -> LayeredModel:
        """The torch module in evaluation mode. It maps images (n × 3 × crop × crop, uint8) to logits."""
        return self.classifier.model

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        top: int = 5,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """Classify images; the predictions are in the order of the images.

        A file that cannot be read gets a prediction with an `error` and does not affect the others.

        Args:
            images: One or several of: paths, PIL images, arrays (height × width × 3, uint8), tensors
                (3 × height × width, uint8).
            top: Number of classes per image.
            advance: Called with the number of images done since the last call.

        Raises TypeError for anything else, before anything is computed.
        """
        predictions: list[Prediction] = []
        for batch in self.decoded_batches(images):
            rows = iter(self.classifier.top_k(torch.stack(batch.images), top) if batch.images else [])
            for path, error in zip(batch.paths, batch.errors, strict=True):
                classes = () if error else tuple(ClassProbability(*item) for item in next(rows))
                predictions.append(Prediction(path, classes, error))
            advance(len(batch.paths))
        return predictions

    def decoded_batches(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[DecodedBatch]:
        """Read images in batches. Threads decode the next ones while the caller uses a batch. Raises as `predict`."""
        batch, threads = DecodedBatch(), min(8, cpu_count())
        for given, image in map_in_threads(self._decode, as_list(images), threads, READ_AHEAD * BATCH_SIZE):
            batch.paths.append(name_of(given))
            batch.errors.append(image if isinstance(image, str) else "")
            if not isinstance(image, str):
                batch.images.append(image)
            if len(batch.images) == BATCH_SIZE:  # a bad file must not cost a forward pass
                yield batch
                batch = DecodedBatch()
        if batch.paths:
            yield batch

    def _decode(self, image: ImageInput) -> Tensor | str:
        """The transformed image, or why there is none."""
        from PIL import UnidentifiedImageError

        try:
            if not is_path(image):
                return self.classifier.transform_image(to_rgb(image, self.classifier.depth))
            path = Path(name_of(image))
            if not path.stat().st_size:
                return "is empty"
            return self.classifier.load_image(path)
        except UnidentifiedImageError:
            return "is not an image that Pillow can read"
        except OSError as error:
            return f"cannot be read ({error.strerror or ' '.join(str(error).split())})"
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            return f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
