"""Files of weights, including pickled ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch

from fuzz import tensorfile
from fuzz.damage import damaged
from fuzz.network_formats import corrupted, finite, small
from fuzz.target import Target, check
from runner.config.schema import ModelConfig
from runner.config.validation import NORMALIZATION_KEYS
from runner.models import pretrained

MARK = "tests-fuzz-was-here"
"""The file that code in a pickle would create."""


class WeightsFile(Target):
    """model.weights as .safetensors: the loaded weights are finite and those of the file."""

    suffix = ".safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.chdir(folder)
        self.network = small()
        self.tensors = {
            name: value.contiguous()
            for name, value in small(1).state_dict().items()
            if name.startswith("features.")
        }
        self.path = folder / f"weights{self.suffix}"
        self.settings = ModelConfig(arch="vgg11_bn", weights=str(self.path), head="pooled", pool=1, width=4)
        numbers = json.dumps({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]})
        self.file = safetensors.torch.save(self.tensors, {NORMALIZATION_KEYS[0]: numbers})

    def make(self, random: Random) -> bytes:
        if random.random() < 0.75:
            return tensorfile.hostile(random, self.file, self.file)
        return safetensors.torch.save(corrupted(random, self.tensors))

    def read(self, content: bytes) -> None:
        self.path.write_bytes(content)
        try:
            found = pretrained.read_weights(self.settings)
        finally:
            check(not Path(MARK).exists(), "code in the file was run")
        assert found is not None
        pretrained.load_weights(self.network, found)
        state = self.network.state_dict()
        check(finite(state), "a weight is no number")
        for name, value in found.tensors.items():
            if name in self.tensors:
                check(
                    torch.equal(state[name], value.to(state[name].dtype)), f"{name} is another in the network"
                )
        if found.normalization is not None:
            numbers = [*found.normalization.mean, *found.normalization.std]
            check(all(type(each) is float for each in numbers), f"normalization {numbers}")


class PickleFile(WeightsFile):
    """model.weights as .pth: the same, and no code in it runs."""

    suffix = ".pth"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.objects: tuple[Any, ...] = (
            self.tensors,
            OrderedDict(self.tensors),
            {"state_dict": self.tensors, "epoch": 3},
            {f"module.{name}": value for name, value in self.tensors.items()},
        )
        self.zips = [_saved(each) for each in self.objects]
        self.legacy = _saved(self.tensors, legacy=True)

    def make(self, random: Random) -> bytes:
        kind = random.random()
        content = random.choice((*self.zips, self.legacy))
        if kind < 0.25:
            return damaged(random, content, self.legacy)
        if kind < 0.45:
            return _rezipped(
                random.choice(self.zips), lambda description: damaged(random, description, description)
            )
        if kind < 0.6:
            evil = malicious_pickle(random)
            return random.choice(
                (evil, _rezipped(self.zips[0], lambda _: evil), self.legacy[: len(self.legacy) // 2] + evil)
            )
        if kind < 0.8:
            return _saved(corrupted(random, self.tensors), legacy=random.random() < 0.3)
        return _saved(self._odd_weights(random), legacy=random.random() < 0.3)

    def _odd_weights(self, random: Random) -> Any:
        name = random.choice(
            [each for each in sorted(self.tensors) if self.tensors[each].is_floating_point()]
        )
        value = self.tensors[name]
        odd = random.choice(
            (
                None,
                3,
                "text",
                [value],
                {"a": value},
                value.to_sparse(),
                torch.empty(value.shape, device="meta"),
                torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
                value.reshape(-1)[:1].expand(2**20, 2**10),
                torch.nn.Parameter(value),
                value.to(torch.bfloat16),
                value.to(torch.float8_e4m3fn),
                torch.complex(value, value),
            )
        )
        state: Any = {**self.tensors, name: odd}
        return random.choice(
            (
                state,
                {**self.tensors, 5: value},
                [state],
                odd,
                {"state_dict": {"model": state}},
                {},
                {"model": {}},
                {None: {}},
            )
        )


def _saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _rezipped(content: bytes, change: Any) -> bytes:
    """The archive with its pickle changed, and correct checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for each in old.infolist():
            inside = old.read(each)
            new.writestr(each.filename, change(inside) if each.filename.endswith("data.pkl") else inside)
    return file.getvalue()


class _Call:
    """An object that pickles as a function call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def malicious_pickle(random: Random) -> bytes:
    """A pickle that creates the file `MARK` when it is loaded without restrictions, or exhausts the memory."""
    touch = f"touch {MARK}"
    code = f"open({MARK!r}, 'w')"
    return random.choice(
        (
            pickle.dumps(_Call(os.system, touch), 2),
            pickle.dumps({"features.0.weight": _Call(os.system, touch)}, 2),
            pickle.dumps(OrderedDict(a=_Call(eval, code)), 2),
            pickle.dumps(_Call(exec, code), 4),
            f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
            f"cposix\nsystem\n(S'{touch}'\ntR.".encode(),
            f"(S'{touch}'\nios\nsystem\n.".encode(),
            f"c__builtin__\ngetattr\n(cos\npath\nS'os'\ntRS'{touch}'\n.".encode(),
            pickle.dumps(_Call(bytearray, 2**45), 2),
            pickle.dumps(_Call(torch.empty, (2**20, 2**20)), 2),
            b"\x80\x02" + b"(" * 300_000 + b".",
            b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        )
    )
