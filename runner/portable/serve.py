"""The entry point of MLflow's model server: `mlflow models serve -m models:/NAME@champion --env-manager local`.

A request holds images in base64. The response holds the most likely classes of each image.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOP = 5


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
        from portable.classifier import Classifier  # type: ignore[import-not-found]  # lies beside the model

        self.classifier = Classifier.load(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types
        """For each image `{"top": [{"class": …, "probability": …}, …]}`, the most likely class first."""
        import torch

        cells = list(model_input["image"])
        texts = [text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)]
        images = [self._decode(index, text) for index, text in enumerate(texts)]
        if not images:
            return []
        count = max(1, int((params or {}).get("top", DEFAULT_TOP)))
        return [
            {"top": [{"class": name, "probability": value} for name, value in row]}
            for row in self.classifier.top_k(torch.stack(images), count)
        ]

    def _decode(self, index: int, text: str) -> Tensor:
        """The transformed image. Raises `RequestError` that names the image by its index."""
        try:
            # Data URLs and line breaks are fine.
            encoded = "".join((text.partition("base64,")[2] or text).split())
            content = base64.b64decode(encoded, validate=True)
            image: Tensor = self.classifier.load_image(io.BytesIO(content))
            return image
        except binascii.Error:
            raise RequestError(f"Image {index} is not base64.") from None
        except UnidentifiedImageError:
            raise RequestError(f"Image {index} is not an image that Pillow knows.") from None
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files
            raise RequestError(f"Image {index} cannot be decoded ({' '.join(str(error).split())}).") from None


mlflow.models.set_model(ServedClassifier())
