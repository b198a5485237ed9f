"""Techniques of fine-tuning, as words of a command line for the small experiment."""

from __future__ import annotations

BASE = (
    *("--train.epochs", "3", "--train.batch_size", "7", "--features.compile", "false"),
    *("--optim.name", "sgd", "--optim.lr", "0.01", "--schedule.kind", "constant"),
)
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "mixup": ("--train.mixup", "0.4"),
    "mixup of images": ("--train.mixup", "0.4", "--model.trainable", "all"),
    "cutmix": ("--train.cutmix", "1.0", "--model.trainable", "last:1", "--train.accumulate", "2"),
    "ema": ("--train.average", "ema", "--train.ema_decay", "0.8"),
    "swa": ("--train.average", "swa", "--train.swa_start", "0.3"),
    "layer decay, warm-up": (
        *("--model.trainable", "last:2", "--optim.layer_decay", "0.5", "--optim.decay_norm", "false"),
        *("--optim.weight_decay", "0.01", "--schedule.kind", "cosine", "--schedule.warmup", "0.5"),
    ),
    "drop path": (
        *("--model.arch", "timm/convnext_atto", "--model.weights", "null", "--model.pool", "1"),
        *("--model.trainable", "last:3", "--model.drop_path", "0.5"),
    ),
    "batch norm": ("--model.arch", "vgg11_bn", "--model.weights", "null", "--model.trainable", "last:1"),
    "batch norm in parts": (
        *("--model.arch", "timm/regnetx_002", "--model.weights", "null", "--model.pool", "1"),
        *("--model.trainable", "last:2", "--train.accumulate", "2", "--train.average", "ema"),
        *("--train.recompute", "true"),
    ),
    "patience": ("--train.patience", "1"),
    "stages": ("--train.stages", "[{epochs: 1, trainable: head}, {epochs: 2, trainable: last:1, lr: 0.002}]"),
    "stages, averaged": (
        *("--train.stages", "[{epochs: 2, trainable: last:1}, {epochs: 1, trainable: all}]"),
        *("--train.average", "ema", "--train.ema_decay", "0.8", "--train.clip", "0.5"),
    ),
}
