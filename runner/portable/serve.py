"""What MLflow loads to serve a model: `mlflow models serve -m models:/NAME@champion --env-manager local`.

A request holds images in base64; the answer, for each, its likeliest classes.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import UnidentifiedImageError

TOP = 5


class Refusal(MlflowException):
    """A request that cannot be answered: HTTP 400 with one sentence, where MLflow would add the whole request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or "message" not in self.__dict__:
            super().__setattr__(name, value)


class Served(mlflow.pyfunc.PythonModel):
    """A classifier behind MLflow's interface: a column `image` of base64 in, `top` out."""

    def load_context(self, context: Any) -> None:
        """Load the model's two files."""
        from portable.classifier import Classifier  # type: ignore[import-not-found]  # lies beside the model

        self.classifier = Classifier.load(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types
        """For each image `{"top": [{"class": …, "probability": …}, …]}`, the likeliest first."""
        import torch

        cells = list(model_input["image"])
        texts = [text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)]
        views = [self._view(place, text) for place, text in enumerate(texts)]
        if not views:
            return []
        count = max(1, int((params or {}).get("top", TOP)))
        return [
            {"top": [{"class": name, "probability": value} for name, value in row]}
            for row in self.classifier.top(torch.stack(views), count)
        ]

    def _view(self, place: int, text: str) -> Any:
        try:
            packed = "".join((text.partition("base64,")[2] or text).split())  # base64 files have lines
            content = base64.b64decode(packed, validate=True)
            return self.classifier.open(io.BytesIO(content))
        except binascii.Error:
            raise Refusal(f"Image {place} is not base64.") from None
        except UnidentifiedImageError:
            raise Refusal(f"Image {place} is not an image that Pillow knows.") from None
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            raise Refusal(f"Image {place} cannot be decoded ({' '.join(str(error).split())}).") from None


mlflow.models.set_model(Served())
