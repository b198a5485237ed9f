"""What a run looks at: Grad-CAM of the same few validation images, as MLflow's stepped pictures."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from runner.data.manifest import Entry
from runner.data.transforms import CLEAN
from runner.explain import cam, overlay
from runner.tracking.journal import now_ms
from runner.tracking.tracker import Tracker
from runner.training.loop import Epoch
from runner.training.setup import Prepared
from runner.utils.atomic_files import replacing

LONGEST = 80
"""Characters of a picture's name; a file system takes 255 bytes with the rest."""


def choose(entries: Sequence[Entry], judged: Tensor, count: int) -> list[int]:
    """Places of `count` images of a split, half of them wrong where there are so many, in the order of the split.

    Args:
        entries: The split.
        judged: n × 3, as `scores.judge` gives it.
        count: Images to choose.

    The order of their contents' digests decides: it is the same in every run, and says nothing of the images.
    """
    order = sorted(range(len(entries)), key=lambda place: (entries[place].digest, entries[place].path))
    right = [place for place in order if judged[place, 1] == 0]
    wrong = [place for place in order if judged[place, 1] > 0]
    of_wrong = min(len(wrong), max(count // 2, count - len(right)))
    return sorted([*wrong[:of_wrong], *right[: count - of_wrong]])


class Gallery:
    """The pictures of one run. Only for rank 0.

    Args:
        ready: The run's network and images.
        tracker: Takes the pictures.
    """

    def __init__(self, ready: Prepared, tracker: Tracker) -> None:
        self.ready = ready
        self.tracker = tracker
        self.entries = ready.manifest.select("val")
        self.labels = ready.manifest.labels("val")
        self.places: list[int] = []
        self.layer = cam.default_layer(ready.network)
        self._rows: Tensor | None = None
        self._shown: set[int] = set()
        wanted = ready.experiment.tracking.gallery > 0
        self._first = _clone(ready.network.parts()[0]) if wanted else {}

    def due(self, epoch: Epoch) -> bool:
        """Whether this epoch's pictures are wanted."""
        settings = self.ready.experiment.tracking
        every = settings.gallery_every
        return bool(settings.gallery and every and epoch.number % every == 0)

    def show(self, epoch: Epoch) -> None:
        """Draw the images as the network sees them now, which is as it was at the end of an epoch.

        The first call chooses them, and draws them as the network saw them before it was trained, too: step 0,
        where MLflow's slider begins.
        """
        settings, network = self.ready.experiment.tracking, self.ready.network
        if not settings.gallery or epoch.number in self._shown:
            return
        if not self.places:
            self.tracker.tags({"mlflow.loggedImages": "True"})
            self.choose(choose(self.entries, epoch.judged, settings.gallery))
            now = _clone(network.parts()[0])
            network.load_state_dict(self._first, strict=False)
            self._first = {}
            try:
                self._draw(0)
            finally:
                network.load_state_dict(now, strict=False)
        self._draw(epoch.number)

    def choose(self, places: list[int]) -> None:
        """Show the images at these places of the validation split; none: they are chosen when first shown."""
        self.places = places
        if places:
            chosen = [self.entries[place] for place in places]
            self.views = next(self.ready.loader.batches(chosen, CLEAN, [range(len(chosen))]))

    def _draw(self, step: int) -> None:
        self._shown.add(step)
        network, classes = self.ready.network, self.ready.manifest.classes
        rows = self._activations()
        probabilities = cam.probabilities(network, rows, self.layer)
        predicted = probabilities.argmax(1).tolist()
        found = cam.upscaled(cam.maps(network, rows, predicted, self.layer), self.views.shape[-2:])
        for number, (place, said) in enumerate(zip(self.places, predicted, strict=True)):
            true = classes[self.labels[place]]
            above = overlay.title(classes[said], float(probabilities[number, said]), true)
            key = f"gallery/{number + 1} {true}"
            self._log(key, step, self.views[number], found[number], above, f"Grad-CAM for {classes[said]}")

    def _activations(self) -> Tensor:
        """The layer's output of the chosen images; where all in front of it is frozen it stays."""
        network = self.ready.network
        if self._rows is None or cam.place_of(network, self.layer) >= network.cut:
            self._rows = cam.activations(network, self.views, self.layer)
        return self._rows

    def _log(self, key: str, step: int, view: Tensor, found: np.ndarray, above: str, about: str) -> None:
        """Give MLflow a picture of a step, under the names that its page looks for: one to open, one to show."""
        name = re.sub(r"[^a-zA-Z0-9_\-. /]", "_", key).replace("/", "~")[:LONGEST]
        if self.tracker.recorded(
            "artifact", f"images/{name}+step+{step}+", ".webp"
        ):  # before it was interrupted
            return
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.tracker.run_id} {key} {step}")
        stem = f"images/{name}+step+{step}+timestamp+{now_ms()}+{unique}"
        whole, shown = (self.tracker.stage(f"{stem}{end}") for end in (".png", "+compressed.webp"))
        overlay.draw(view, found, above, about, whole)
        with replacing(shown) as aside, Image.open(whole) as picture:
            picture.convert("RGB").save(aside, "webp", quality=85)
        self.tracker.artifact(whole, "images")
        self.tracker.artifact(shown, "images")


def _clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
