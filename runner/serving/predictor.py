"""A model in one's hand: it says what is in image files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.portable.classifier import BATCH_SIZE, Classifier
from runner.portable.network import VGG
from runner.utils.cpu import cpu_count


@dataclass(frozen=True)
class ClassProbability:
    """A class, and its softmax probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of a file: its likeliest classes, the likeliest first; or why the file is no image."""

    path: str
    top: tuple[ClassProbability, ...]
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """`{"path": …, "top": [{"class": …, "probability": …}, …]}`."""
        return {
            "path": self.path,
            "top": [{"class": each.name, "probability": each.probability} for each in self.top],
        }


class LoadedModel:
    """A classifier, and where it comes from.

    Args:
        classifier: Network, classes and transform.
        source: For a person: which run, version or file it is of.
    """

    def __init__(self, classifier: Classifier, source: str) -> None:
        self.classifier = classifier
        self.source = source

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes; a class's place is its index."""
        return self.classifier.classes

    @property
    def network(self) -> VGG:
        """The network, in evaluation mode: uint8 images (n × 3 × crop × crop) in, logits out."""
        return self.classifier.network

    def predict(
        self,
        paths: Sequence[Path | str] | Path | str,
        top: int = 5,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """What is in image files, in their order; a file that is no image is told so, and stops no other.

        Args:
            paths: The files, or one; as many as you like.
            top: Classes to tell of each.
            advance: Is told how many more files are done.
        """
        if isinstance(paths, (str, Path)):
            paths = [paths]
        found: list[Prediction] = []
        for names, views, faults in self.views(paths):
            said = iter(self.classifier.top(torch.stack(views), top) if views else [])
            for name, error in zip(names, faults, strict=True):
                guesses = () if error else tuple(ClassProbability(*each) for each in next(said))
                found.append(Prediction(name, guesses, error))
            advance(len(names))
        return found

    def views(self, paths: Sequence[Path | str]) -> Iterator[tuple[list[str], list[Tensor], list[str]]]:
        """A chunk of files at a time: their names, the views of those that are images, and what is wrong with each.

        Files are decoded beside the network, a few chunks ahead of it.
        """
        todo = iter(paths)
        with ThreadPoolExecutor(min(8, cpu_count())) as pool:
            ahead: list[tuple[str, Future[Tensor | str]]] = []

            def more(count: int) -> None:
                for path in itertools.islice(todo, count):
                    ahead.append((str(path), pool.submit(self._view, path)))

            more(4 * BATCH_SIZE)
            while ahead:
                views: list[Tensor] = []
                names, faults = [], []
                while ahead and len(views) < BATCH_SIZE:  # whole chunks: a bad file must not cost a pass
                    name, future = ahead.pop(0)
                    outcome = future.result()
                    names.append(name)
                    faults.append(outcome if isinstance(outcome, str) else "")
                    if not isinstance(outcome, str):
                        views.append(outcome)
                    more(1)
                yield names, views, faults

    def _view(self, path: Path | str) -> Tensor | str:
        from PIL import UnidentifiedImageError

        try:
            if not Path(path).stat().st_size:
                return "is empty"
            return self.classifier.open(path)
        except UnidentifiedImageError:
            return "is not an image that Pillow knows"
        except OSError as error:
            return f"cannot be read ({error.strerror or ' '.join(str(error).split())})"
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            return f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
