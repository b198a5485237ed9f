"""The model card: README.md of a logged model, as Hugging Face's model cards are laid out."""

from __future__ import annotations

from runner.config.choices import ARCHITECTURES
from runner.evaluation.metrics import METRICS
from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import bootstrap
from runner.models.timm_weights import package_and_version
from runner.portable.backbones.timm_networks import PACKAGE
from runner.training.results import RunResult
from runner.training.setup import Setup
from runner.training.summary import (
    RANDOM_WEIGHTS,
    describe_data,
    describe_model,
    describe_split,
    describe_views,
)
from runner.utils.safe_yaml import dump_yaml
from runner.utils.text import markdown_text, one_line

MAX_CLASSES = 30
"""Names of classes that are listed."""


def model_card(setup: Setup, result: RunResult, predictions: Predictions, run_id: str, name: str) -> str:
    """What a model is, what it was trained on, how good it is, whose weights it contains, and how to use it.

    Args:
        setup: The run's.
        result: The run's.
        predictions: Of the model on the test split.
        run_id: The run's.
        name: Name that the model is registered under; empty if it is not.
    """
    experiment, model = setup.experiment, setup.model
    weights, license_name = experiment.model.weights, _license(setup)
    header = {
        "library_name": "vgg-runner",
        "pipeline_tag": "image-classification",
        **({"license": license_name} if license_name else {}),
    }
    rows = [
        ("Model", describe_model(experiment)),
        ("Pretrained weights", _weights(setup)),
        (
            "License of the weights",
            license_name or "not stated by their source" if weights else "none needed",
        ),
        ("Trained", f"model.trainable={experiment.model.trainable}, epoch {result.best_epoch.number}"),
        ("Data", describe_data(setup.manifest)),
        ("Split", describe_split(setup)),
        ("Views", describe_views(experiment)),
        (
            "Input",
            f"RGB images, {model.spec.input_size} × {model.spec.input_size} pixels after the model's own resizing",
        ),
        ("Run", run_id),
    ]
    return "\n".join(
        [
            f"---\n{dump_yaml(header).strip()}\n---",
            f"# {markdown_text(name or experiment.name)}",
            f"Classifies images into {len(model.spec.classes):,} classes: {_class_names(setup)}.",
            _table(("", ""), [(what, markdown_text(text)) for what, text in rows]),
            f"## Scores on {len(predictions.labels):,} test images",
            "The test images were looked at once, at the end of the run. Intervals are for 95 %, over images.",
            _table(("metric", "value", "95 % interval"), _scores(predictions)),
            "## How to use it",
            f"```\n./launch.sh predict IMAGE --model {run_id[:8]}\n```",
            "```python\nfrom runner import load_model\n\n"
            f'for prediction in load_model("{run_id[:8]}").predict(["photo.jpg"]):\n    print(prediction)\n```',
            "",
        ]
    )


def _scores(predictions: Predictions) -> list[tuple[str, ...]]:
    """A row for each metric that is shown: its label, value and interval."""
    intervals = bootstrap(predictions)
    rows: list[tuple[str, ...]] = []
    for metric in predictions.scores.shown:
        value, interval = predictions.scores[metric.name], intervals.get(metric.name)
        bounds = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
        rows.append((METRICS[metric.name].label, f"{value:.4f}", bounds))
    return rows


def _class_names(setup: Setup) -> str:
    """The names of the classes; of many, the first ones."""
    names = setup.model.spec.classes
    shown = [markdown_text(one_line(name, 40)) for name in names[:MAX_CLASSES]]
    return ", ".join([*shown, *["…"] * (len(names) > MAX_CLASSES)])


def _weights(setup: Setup) -> str:
    settings = setup.experiment.model
    if settings.weights == PACKAGE:
        return f"package {package_and_version(settings.arch)}"
    return settings.weights or f"none: {RANDOM_WEIGHTS}"


def _license(setup: Setup) -> str:
    """The license of the pretrained weights, as their source names it; empty if it does not."""
    settings = setup.experiment.model
    backbone = ARCHITECTURES.find(settings.arch).implementation
    return backbone.license(settings.weights) if settings.weights in backbone.weights_names() else ""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(["", *(f"| {' | '.join(line)} |" for line in lines), ""])
