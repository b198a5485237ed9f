"""The entry point of MLflow's model server: `mlflow models serve -m models:/NAME@champion --env-manager local`.

A request holds images in base64. The response holds the most likely classes of each image. Two environment variables
of the server limit a request: RUNNER_SERVE_MAX_IMAGES and RUNNER_SERVE_MAX_PIXELS.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOP = 5
MAX_IMAGES = 1_000
"""Images of a request, unless RUNNER_SERVE_MAX_IMAGES says otherwise."""
MAX_PIXELS = 64_000_000
"""Pixels of an image, unless RUNNER_SERVE_MAX_PIXELS says otherwise.

So many take 0.3 GB as a plain JPEG or PNG while it is decoded, 0.5 to 0.8 GB with transparency, as progressive JPEG or
in 32 bits, and 1.1 GB as WebP, the most that was measured; the request itself comes on top."""


class RequestError(MlflowException):
    """A bad request: HTTP 400 with one sentence. MLflow would append the whole request to the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or "message" not in self.__dict__:
            super().__setattr__(name, value)


class ServedClassifier(mlflow.pyfunc.PythonModel):
    """A classifier as an MLflow model: column `image` (base64) in, `top` out."""

    def load_context(self, context: Any) -> None:
        """Load the model's two files."""
        from portable.classifier import (  # type: ignore[import-not-found]  # lies beside the model
            BATCH_SIZE,
            Classifier,
        )

        self.max_images = _limit("RUNNER_SERVE_MAX_IMAGES", MAX_IMAGES)
        self.max_pixels = _limit("RUNNER_SERVE_MAX_PIXELS", MAX_PIXELS)
        self.batch_size = BATCH_SIZE
        self.decoding = threading.Lock()
        self.classifier = Classifier.load(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types
        """For each image `{"top": [{"class": …, "probability": …}, …]}`, the most likely class first.

        At most one image of the process is in memory at its full size, and a batch of each request at the model's.
        """
        import torch

        cells = list(model_input["image"])
        texts = [text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)]
        if len(texts) > self.max_images:
            raise RequestError(
                f"The request holds {len(texts):,} images, more than {self.max_images:,}; send several requests."
            )
        count = max(1, int((params or {}).get("top", DEFAULT_TOP)))
        rows = []
        for start in range(0, len(texts), self.batch_size):
            batch = enumerate(texts[start : start + self.batch_size], start)
            images = torch.stack([self._decode(index, text) for index, text in batch])
            rows += self.classifier.top_k(images, count)
        return [{"top": [{"class": name, "probability": value} for name, value in row]} for row in rows]

    def _decode(self, index: int, text: str) -> Tensor:
        """The transformed image. Raises `RequestError` that names the image by its index."""
        try:
            # Data URLs and line breaks are fine.
            encoded = "".join((text.partition("base64,")[2] or text).split())
            content = base64.b64decode(encoded, validate=True)
            with self.decoding:  # MLflow answers requests in threads
                image: Tensor = self.classifier.load_image(io.BytesIO(content), self.max_pixels)
            return image
        except binascii.Error:
            raise RequestError(f"Image {index} is not base64.") from None
        except UnidentifiedImageError:
            raise RequestError(f"Image {index} is not an image that Pillow knows.") from None
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files
            raise RequestError(f"Image {index} cannot be decoded ({' '.join(str(error).split())}).") from None


def _limit(variable: str, default: int) -> int:
    """The number in an environment variable. Raises `RequestError` if it is none."""
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not int(text):
        raise RequestError(f"{variable} must be a whole number of at least 1, not {text!r}.")
    return int(text)


mlflow.models.set_model(ServedClassifier())
