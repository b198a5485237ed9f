"""Loads a model by run, registered name or path."""

from __future__ import annotations

import importlib
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from runner.serving.locate import ModelLocation, locate_model
from runner.utils.errors import UserError
from runner.utils.paths import nearest_records

if TYPE_CHECKING:
    import torch

    from runner.serving.predictor import LoadedModel


def load_model(
    reference: str | Path | None = None, tracking: str | None = None, device: torch.device | str | None = None
) -> LoadedModel:
    """Load a model for inference.

    Args:
        reference: A run (its id, the first characters of its id, its name, or `latest`), a registered model as
            NAME@ALIAS or NAME@VERSION, or the path of a model folder or checkpoint. None means the latest run:
            the newest finished one that is not part of a study or of --repeat.
        tracking: Folder of MLflow's database, unless MLFLOW_TRACKING_URI names a server. None means mlruns/ in the
            working folder or the nearest one above it that has records.
        device: Device to compute on; None uses a GPU if available.

    Raises `UserError` if there is no such model, or if it is damaged or of an unknown format version.
    """
    return open_model(locate_model(reference, tracking or nearest_records()), device)


def load_model_concurrently(reference: str | None, tracking: str) -> LoadedModel:
    """Like `load_model`, but a second process locates the model while this one imports torch, which takes seconds.

    For commands only: the process must have imported neither torch nor MLflow, because it is forked.
    """
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(1, get_context("fork"), signal.signal, ignore_interrupt) as pool:
        location = pool.submit(locate_model, reference, tracking)
        importlib.import_module("runner.serving.predictor")
        return open_model(location.result())


def open_model(location: ModelLocation, device: torch.device | str | None = None) -> LoadedModel:
    """Load the files that `locate_model` found. Raises `UserError` if they are damaged or of an unknown format."""
    from runner.portable.classifier import Classifier, ModelError
    from runner.serving.predictor import LoadedModel

    try:
        if location.path.is_dir():
            return LoadedModel(Classifier.load(location.path, device), location.source)
        return _open_checkpoint(location, device)
    except ModelError as error:
        raise UserError(str(error)) from None
    finally:
        if location.temporary:
            shutil.rmtree(location.temporary, ignore_errors=True)


def _open_checkpoint(location: ModelLocation, device: torch.device | str | None) -> LoadedModel:
    from runner.config.parser import read
    from runner.models import checkpoint
    from runner.serving import packaging
    from runner.serving.predictor import LoadedModel

    loaded = checkpoint.load(location.path)
    inference = loaded.inference
    if location.experiment:
        inference = packaging.inference_settings(read(location.experiment))
    if not {"name", "transform", "precision"} <= set(inference):
        raise UserError(
            f"{location.path} was written by a version that did not store the transform; give its run (--model RUN),"
            " or train again."
        )
    description = packaging.describe(loaded.model, inference, epoch=loaded.epoch, val=loaded.val)
    classifier = packaging.to_classifier(loaded.model, description, device)
    return LoadedModel(classifier, f"{location.source}, epoch {loaded.epoch}")
