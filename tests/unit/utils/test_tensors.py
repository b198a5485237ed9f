"""Padding, digests and writing of tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from runner.utils import tensors
from runner.utils.tensors import float64_device, pad_rows, save_tensors, tensor_digest


def test_rows_are_padded_with_zeros() -> None:
    values = torch.ones(2, 3, dtype=torch.uint8)
    padded = pad_rows(values, 4)
    assert padded.tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert padded.dtype == torch.uint8
    assert pad_rows(values, 2) is values


@pytest.mark.parametrize(("device", "computes_on"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_device_without_float64_leaves_it_to_the_cpu(device: str, computes_on: str) -> None:
    assert float64_device(torch.device(device)) == torch.device(computes_on)


def test_the_digest_depends_on_values_and_not_on_memory_layout() -> None:
    values = torch.arange(12.0).reshape(3, 4)
    assert tensor_digest(values) == tensor_digest(values.t().contiguous().t())
    assert tensor_digest(values) != tensor_digest(values + 1)


def test_tensors_are_written(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(2)}, tmp_path / "temporary", {"b": "c"}, tmp_path / "final")
    assert torch.equal(load_file(tmp_path / "temporary")["a"], torch.ones(2))


def test_an_error_of_the_disk_names_the_final_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", refuse)
    with pytest.raises(OSError, match="No space left") as refused:
        save_tensors({}, tmp_path / "temporary", {}, tmp_path / "final")
    assert (refused.value.errno, refused.value.filename) == (28, os.fspath(tmp_path / "final"))
