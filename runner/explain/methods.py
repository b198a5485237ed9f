"""The class activation map methods, by the name that commands take. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method, computed by a class with the interface of the grad-cam package."""

    title: str
    """Its name in pictures."""
    target: str
    """`module:class`, where the class is a `pytorch_grad_cam.base_cam.BaseCAM`."""
    runs_images: bool = False
    """It runs masked images through the whole model. The others start from a layer's output."""

    def load(self) -> Any:
        """The class. Importing the grad-cam package takes seconds (OpenCV)."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


METHODS = {
    "gradcam": Method("Grad-CAM", "pytorch_grad_cam:GradCAM"),
    "gradcam++": Method("Grad-CAM++", "pytorch_grad_cam:GradCAMPlusPlus"),
    "hirescam": Method("HiResCAM", "pytorch_grad_cam:HiResCAM"),
    "layercam": Method("LayerCAM", "pytorch_grad_cam:LayerCAM"),
    "eigencam": Method("EigenCAM", "runner.explain.eigencam:EigenCAM"),
    "scorecam": Method("Score-CAM", "pytorch_grad_cam:ScoreCAM", runs_images=True),
}
"""All methods. A new one is a line here; `runner explain --method` and its pictures follow."""
