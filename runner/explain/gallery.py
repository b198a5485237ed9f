"""Grad-CAM pictures of a few validation images during a run, logged as MLflow's stepped images."""

from __future__ import annotations

import re
import uuid

import numpy as np
from PIL import Image
from torch import Tensor

from runner.config.schema import TrackingConfig
from runner.data.images import Images
from runner.data.loader import ImageLoader
from runner.data.transforms import EVALUATION_VIEW
from runner.explain import cam, overlay
from runner.models.transfer_model import TransferModel
from runner.tracking.journal import now_ms
from runner.tracking.tracker import Tracker
from runner.utils.atomic_files import atomic_write

FULL, THUMBNAIL = ".png", "+compressed.webp"
"""Ends of the names of a picture's two files."""
LONGEST = 80
"""Maximum characters of a picture's name. File systems allow 255 bytes, including the step, time and id."""


def select_images(entries: Images, sample_results: Tensor, count: int) -> list[int]:
    """Indices of `count` images of a split, in its order: half of them misclassified, if there are enough.

    The digests of the images' contents decide, so that every run selects the same images.

    Args:
        entries: The split, sorted by path.
        sample_results: n × 3, one row per image; column 1 is the rank of the true class (0 is correct).
        count: Number of images to select.
    """
    order = np.argsort(entries.digest_values, kind="stable")
    ranks = sample_results[:, 1].numpy()[order]
    correct, wrong = order[ranks == 0], order[ranks > 0]
    wrong_count = min(len(wrong), max(count // 2, count - len(correct)))
    return sorted([*wrong[:wrong_count].tolist(), *correct[: count - wrong_count].tolist()])


class Gallery:
    """Grad-CAM pictures of the same few validation images at several epochs of a run. Used on rank 0 only.

    Args:
        model: The model that the run trains.
        entries: The validation split.
        loader: Loads the images.
        settings: `gallery` (number of images) and `gallery_every` (epochs between two pictures).
        tracker: Logs the pictures.
    """

    def __init__(
        self,
        model: TransferModel,
        entries: Images,
        loader: ImageLoader,
        settings: TrackingConfig,
        tracker: Tracker,
    ) -> None:
        self.model = model
        self.entries = entries
        self.loader = loader
        self.settings = settings
        self.tracker = tracker
        self.indices: list[int] = []
        """Indices of the shown images in the validation split."""
        self.layer = model.cam_layer
        self._outputs: Tensor | None = None
        self._drawn_steps: set[int] = set()
        self._untrained = _clone(model.trainable_state()) if settings.gallery > 0 else {}

    def due(self, epoch: int) -> bool:
        """Whether pictures are wanted at the end of an epoch (counted from 1)."""
        every = self.settings.gallery_every
        return bool(self.settings.gallery and every and epoch % every == 0)

    def show(self, epoch: int, sample_results: Tensor) -> None:
        """Draw and log the images with the model's weights at the end of an epoch; do nothing if already done.

        The first call selects the images and also draws them with the weights from before training, as step 0.

        Args:
            epoch: Its number, from 1: the step of the pictures.
            sample_results: Validation results of that epoch, as `select_images` takes them.
        """
        if not self.settings.gallery or epoch in self._drawn_steps:
            return
        if not self.indices:
            self.tracker.set_tags({"mlflow.loggedImages": "True"})
            self.select(select_images(self.entries, sample_results, self.settings.gallery))
            trained = _clone(self.model.trainable_state())
            self.model.load_state_dict(self._untrained, strict=False)
            self._untrained = {}
            try:
                self._draw(0)
            finally:
                self.model.load_state_dict(trained, strict=False)
        self._draw(epoch)

    def select(self, indices: list[int]) -> None:
        """Show these images of the validation split; an empty list leaves the selection to the first `show`."""
        self.indices = indices
        if indices:
            entries = [self.entries[index] for index in indices]
            self.images = next(self.loader.batches(entries, EVALUATION_VIEW, [range(len(entries))]))

    def _draw(self, step: int) -> None:
        self._drawn_steps.add(step)
        classes = self.model.spec.classes
        outputs = self._layer_outputs()
        probabilities = cam.probabilities(self.model, outputs, self.layer)
        predicted = probabilities.argmax(1).tolist()
        heatmaps = cam.explain(self.model, self.images, predicted, self.layer, outputs=outputs)
        for number, (index, prediction) in enumerate(zip(self.indices, predicted, strict=True)):
            true = self.entries[index].label
            title = overlay.title(classes[prediction], float(probabilities[number, prediction]), true)
            key = f"gallery/{number + 1} {true}"
            label = f"Grad-CAM for {classes[prediction]}"
            self._log(key, step, self.images[number], heatmaps[number], title, label)

    def _layer_outputs(self) -> Tensor:
        """The layer's output for the selected images; computed once if everything up to the layer is frozen."""
        if self._outputs is None or cam.layer_index(self.model, self.layer) >= self.model.split_index:
            self._outputs = cam.activations(self.model, self.images, self.layer)
        return self._outputs

    def _log(self, key: str, step: int, image: Tensor, heatmap: np.ndarray, title: str, label: str) -> None:
        """Log a picture as a PNG file and a small WebP file, named as `MlflowClient.log_image` names them."""
        name = re.sub(r"[^a-zA-Z0-9_\-. /]", "_", key).replace("/", "~")[:LONGEST]
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.tracker.run_id} {key} {step}")
        stem = f"images/{name}+step+{step}+timestamp+{now_ms()}+{unique}"
        logged = self.tracker.logged_artifacts(f"images/{name}+step+{step}+")  # before an interruption
        if any(file.endswith(THUMBNAIL) for file in logged):
            return
        if logged:  # the same name again, or there would be two pictures
            stem = logged[0].removesuffix(FULL)
        full, thumbnail = (self.tracker.artifact_path(f"{stem}{end}") for end in (FULL, THUMBNAIL))
        overlay.draw(image, heatmap, title, label, full)
        with atomic_write(thumbnail) as aside, Image.open(full) as picture:
            picture.convert("RGB").save(aside, "webp", quality=85, method=2)
        self.tracker.log_artifact(full, "images")
        self.tracker.log_artifact(thumbnail, "images")


def _clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
