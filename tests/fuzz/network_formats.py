"""Files that hold a model: checkpoints and logged models."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fuzz import tensorfile
from fuzz.damage import damaged, mutated, mutated_json
from fuzz.target import Target, check
from runner.config.schema import Normalization
from runner.models import checkpoint
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.portable.classifier import DESCRIPTION_FILE, FORMAT, WEIGHTS_FILE, description_digest
from runner.portable.images import open_rgb
from runner.portable.legacy import FORMAT_1
from runner.serving.load import open_model
from runner.serving.locate import locate_model
from runner.serving.packaging import describe

CLASSES = ("blue", "green", "red")
INFERENCE = {
    "name": "small",
    "transform": {"resize": 36, "crop": 32, "interpolation": "bilinear"},
    "precision": "no",
}
VAL = {"top1": 0.5, "hits1": 3}


def small(seed: int = 0) -> TransferModel:
    """A VGG with very few channels and a pooled head."""
    numbers = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    shape = ModelSpec("vgg11_bn", "pooled", 1, 4, 0.4, "features.16", CLASSES, numbers)
    return TransferModel(shape, seed, True).eval()


def finite(tensors: dict[str, Tensor]) -> bool:
    """Whether all values are finite."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def corrupted(random: Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with one removed, renamed, of another type or shape, or not finite."""
    tensors = {
        name: value.contiguous().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    name = random.choice(sorted(tensors))
    value = tensors[name]
    kind = random.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == 2:
        tensors[name] = value.to(
            random.choice((torch.float16, torch.float64, torch.int64, torch.complex64, torch.bool))
        )
    elif kind == 3:
        tensors[name] = random.choice((value.flatten(), value.flatten()[:0], value[None], torch.zeros(())))
    elif kind < 6 and value.is_floating_point():
        value.view(-1)[random.randrange(value.numel())] = random.choice(
            (float("nan"), float("inf"), -float("inf"))
        )
    else:
        tensors["extra"] = torch.zeros(2)
    return tensors


class CheckpointFiles(Target):
    """best.safetensors beside frozen.safetensors: read as written. With forged digests it must still be valid."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.network = small()
        self.best, self.frozen = folder / "best.safetensors", folder / checkpoint.FROZEN_FILE
        checkpoint.save_frozen(self.network, folder)
        checkpoint.save(self.network, self.best, 4, VAL, checkpoint.frozen_digest(self.network), INFERENCE)
        self.files = {path: path.read_bytes() for path in (self.best, self.frozen)}
        self.state = self.network.state_dict()

    def make(self, random: Random) -> bytes:
        kind = random.random()
        if kind < 0.45:
            return b"b" + tensorfile.hostile(random, *self.files.values())
        if kind < 0.65:
            return b"f" + tensorfile.hostile(random, self.files[self.frozen], self.files[self.best])
        header, _ = tensorfile.parts(self.files[self.best])
        metadata = header["__metadata__"]
        description = json.loads(metadata["description"])
        learned = self.network.trainable_state()
        if kind < 0.9:
            description["model" if random.random() < 0.7 else "val"] = mutated(random, description["model"])
        else:
            learned = corrupted(random, learned)
            description["trainable"] = checkpoint._digest(learned)
        plain = {name: value.contiguous() for name, value in learned.items()}
        return b"s" + safetensors.torch.save(plain, _resealed(metadata, description))

    def read(self, content: bytes) -> None:
        which = self.frozen if content[:1] == b"f" else self.best
        for path, undamaged in self.files.items():
            path.write_bytes(content[1:] if path == which else undamaged)
        found = checkpoint.load(self.best)
        state = found.model.state_dict()
        check(finite(state), "a weight is no number")
        check(set(state) == set(self.state), "other tensors come back")
        shape = found.model.spec
        check(all(type(each) is str for each in shape.classes), f"the classes {shape.classes}"[:500])
        check(len(set(shape.classes)) == len(shape.classes) > 1, f"the classes {shape.classes}"[:500])
        check(type(found.epoch) is int and found.epoch > 0, f"epoch {found.epoch!r}")
        check(type(found.val) is dict and type(found.inference) is dict, "scores or use are no groups")
        if content[:1] != b"s":
            check(all(torch.equal(value, self.state[name]) for name, value in state.items()), "other weights")
            check(shape == self.network.spec, f"another architecture: {shape}"[:500])
            check(
                (found.epoch, found.val, found.inference) == (4, VAL, INFERENCE), "other scores, epoch or use"
            )


def _resealed(metadata: dict[str, str], description: dict[str, Any]) -> dict[str, str]:
    """Metadata of a checkpoint with another description and the digest of that."""
    text = json.dumps(description)
    return {**metadata, "description": text, "description_digest": checkpoint.description_digest(text)}


class ModelFolder(Target):
    """model.json beside model.safetensors, as `--model FOLDER` loads them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        network = small()
        self.place = folder / "model"
        self.place.mkdir()
        self.tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        self.weights = safetensors.torch.save(self.tensors, {"format": FORMAT})
        description = describe(network, INFERENCE, epoch=4, val=VAL, run="0123", manifest="4567")
        self.description = json.loads(json.dumps(description))
        self.written, self.described = self.tensors, self.description
        """Tensors and description under the names of the format that is written."""
        self.about = self._sealed(self.described, self.weights)
        picture = io.BytesIO()
        from PIL import Image

        Image.new("RGB", (40, 36), "red").save(picture, "PNG")
        self.image = open_rgb(picture)

    @staticmethod
    def _sealed(description: Any, tensors: bytes) -> bytes:
        if isinstance(description, dict):
            description = {**description, "sha256": hashlib.sha256(tensors).hexdigest()}
            description["digest"] = description_digest(description)
        return json.dumps(description, indent=1).encode("utf-8", "surrogatepass")

    def make(self, random: Random) -> bytes:
        """A mark, the length of model.json, model.json, model.safetensors. The mark is `s` if digests are forged."""
        description, tensors, kind = self.about, self.weights, random.random()
        mark = b"s"
        if kind < 0.2:
            mark, description = b"r", damaged(random, description, description)
        elif kind < 0.3:
            mark, description = (
                b"r",
                mutated_json(random, json.loads(description)).encode("utf-8", "surrogatepass"),
            )
        elif kind < 0.45:
            mark, tensors = b"r", tensorfile.hostile(random, tensors, tensors)
        elif kind < 0.75:
            description = self._sealed(mutated(random, self.described), tensors)
        elif kind < 0.85:
            tensors = tensorfile.hostile(random, tensors, tensors)
            description = self._sealed(self.described, tensors)
        else:
            tensors = safetensors.torch.save(
                corrupted(random, self.written), {"format": self.described["format"]}
            )
            description = self._sealed(self.described, tensors)
        return mark + struct.pack("<Q", len(description)) + description + tensors

    def read(self, content: bytes) -> None:
        (length,) = struct.unpack("<Q", content[1:9])
        (self.place / DESCRIPTION_FILE).write_bytes(content[9 : 9 + length])
        (self.place / WEIGHTS_FILE).write_bytes(content[9 + length :])
        model = open_model(locate_model(self.place, "mlruns"), "cpu")
        found = model.classifier
        check(all(type(each) is str for each in found.classes), f"the classes {found.classes}"[:500])
        check(len(set(found.classes)) == len(found.classes) > 1, f"the classes {found.classes}"[:500])
        check(finite(found.model.state_dict()), "a weight is no number")
        if content[:1] == b"r":
            check(
                found.classes == CLASSES and found.description["model"] == self.description["model"],
                "another model comes back",
            )
            state = found.model.state_dict()
            check(
                all(torch.equal(value, state[name]) for name, value in self.tensors.items()), "other weights"
            )
        (top,) = found.top_k(found.transform(self.image)[None], 3)
        check(
            abs(sum(share for _, share in top) - 1) < 1e-6 or len(found.classes) > 3, f"it says {top}"[:500]
        )


class OldModelFolder(ModelFolder):
    """The same in format 1, which is upgraded when it is loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written = {
            name.replace("normalize.", "normalise."): value for name, value in self.tensors.items()
        }
        self.weights = safetensors.torch.save(self.written, {"format": FORMAT_1})
        network = dict(self.description["model"])
        network["normalisation"] = network.pop("normalization")
        rest = {name: value for name, value in self.description.items() if name != "model"}
        self.described = {**rest, "format": FORMAT_1, "network": network}
        self.about = self._sealed(self.described, self.weights)
