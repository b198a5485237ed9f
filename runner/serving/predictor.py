"""A loaded model that classifies image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.portable.classifier import BATCH_SIZE, Classifier
from runner.portable.model import LayeredModel
from runner.utils.processes import cpu_count
from runner.utils.threads import map_in_threads

READ_AHEAD = 4
"""Batches of files that are decoded while the model computes."""


@dataclass(frozen=True)
class ClassProbability:
    """A class and its softmax probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, the most probable first."""

    path: str
    top: tuple[ClassProbability, ...]
    """Empty if the file is not a readable image."""
    error: str = ""
    """Why the file could not be read, to follow its name: `is empty`."""

    def as_dict(self) -> dict[str, Any]:
        """`{"path": …, "top": [{"class": …, "probability": …}, …]}`."""
        return {
            "path": self.path,
            "top": [{"class": item.name, "probability": item.probability} for item in self.top],
        }


@dataclass
class DecodedBatch:
    """Consecutive files and the images in those that can be read."""

    paths: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """For each file why it could not be read; empty for an image."""
    images: list[Tensor] = field(default_factory=list)
    """3 × crop × crop, uint8, of the files without an error."""


class LoadedModel:
    """A classifier and where it was loaded from.

    Args:
        classifier: The model with its classes and transform.
        source: Description of the run, version or file that it comes from, for messages.
    """

    def __init__(self, classifier: Classifier, source: str) -> None:
        self.classifier = classifier
        self.source = source

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
        paths: Sequence[Path | str] | Path | str,
        top: int = 5,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """Classify image files; the predictions are in the order of the files.

        A file that cannot be read gets a prediction with an `error` and does not affect the others.

        Args:
            paths: Any number of files, or a single one.
            top: Number of classes per image.
            advance: Called with the number of files done since the last call.
        """
        if isinstance(paths, (str, Path)):
            paths = [paths]
        predictions: list[Prediction] = []
        for batch in self.decoded_batches(paths):
            rows = iter(self.classifier.top_k(torch.stack(batch.images), top) if batch.images else [])
            for path, error in zip(batch.paths, batch.errors, strict=True):
                classes = () if error else tuple(ClassProbability(*item) for item in next(rows))
                predictions.append(Prediction(path, classes, error))
            advance(len(batch.paths))
        return predictions

    def decoded_batches(self, paths: Sequence[Path | str]) -> Iterator[DecodedBatch]:
        """Read files in batches. Threads decode the next files while the caller uses a batch."""
        batch = DecodedBatch()
        for path, image in map_in_threads(self._decode, paths, min(8, cpu_count()), READ_AHEAD * BATCH_SIZE):
            batch.paths.append(str(path))
            batch.errors.append(image if isinstance(image, str) else "")
            if not isinstance(image, str):
                batch.images.append(image)
            if len(batch.images) == BATCH_SIZE:  # a bad file must not cost a forward pass
                yield batch
                batch = DecodedBatch()
        if batch.paths:
            yield batch

    def _decode(self, path: Path | str) -> Tensor | str:
        """The image in a file, or why there is none."""
        from PIL import UnidentifiedImageError

        try:
            if not Path(path).stat().st_size:
                return "is empty"
            return self.classifier.load_image(path)
        except UnidentifiedImageError:
            return "is not an image that Pillow can read"
        except OSError as error:
            return f"cannot be read ({error.strerror or ' '.join(str(error).split())})"
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            return f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
