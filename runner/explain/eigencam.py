"""EigenCAM (Muhammad & Yeasin 2020) for layers of any resolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_grad_cam


class EigenCAM(pytorch_grad_cam.EigenCAM):
    """The grad-cam package's EigenCAM with a reduced SVD.

    The package computes a full SVD, whose memory grows with the square of the number of pixels.
    """

    def get_cam_image(
        self, _input: Any, _layer: Any, _targets: Any, activations: np.ndarray, _gradients: Any, _smooth: Any
    ) -> np.ndarray:
        """The activations (n × channels × h × w) projected on their first principal component: n × h × w, float32."""
        maps = []
        for channels in activations:
            pixels = channels.reshape(len(channels), -1).T
            centered = pixels - pixels.mean(axis=0)
            _, _, directions = np.linalg.svd(centered, full_matrices=False)
            projection = (centered @ directions[0]).reshape(channels.shape[1:])
            # The sign of a principal component is arbitrary: choose the one that is positive where the layer is active.
            maps.append(projection if (projection * channels.mean(axis=0)).sum() >= 0 else -projection)
        return np.array(maps, np.float32)
