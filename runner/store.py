"""A plain store of feature rows on disk, keyed by what computed them and by (image content, view).

A store is a folder; a chunk is a .safetensors file of rows and their keys, written whole or not at all. Any
number of processes may add chunks; a row that two of them computed is the same row.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runner.files import replacing, write_text
from runner.keys import digest


class Store:
    """The rows of one recipe.

    Args:
        root: Folder of all stores.
        recipe: Everything that decides the numbers of a row, beside the image and the view's number.
    """

    def __init__(self, root: Path, recipe: dict[str, Any]) -> None:
        self.folder = root / digest(recipe)
        self.recipe = recipe
        self._places: dict[str, tuple[Path, int]] = {}
        self._known: set[str] = set()

    def refresh(self) -> None:
        """Learn of chunks that were added since, by whatever process. A chunk that is not whole is passed over."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._known:
                continue
            try:
                with safe_open(path, "pt") as file:
                    rows = json.loads(file.metadata()["rows"])
            except (SafetensorError, KeyError, ValueError, TypeError):
                continue
            self._known.add(path.name)
            self._places.update({key: (path, place) for place, key in enumerate(rows)})

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The places in `keys` of rows that are not stored."""
        return [place for place, key in enumerate(keys) if key not in self._places]

    def write(self, keys: Sequence[str], rows: Tensor) -> None:
        """Add a chunk: `rows` is len(keys) × d."""
        if not (self.folder / "recipe.json").exists():
            write_text(self.folder / "recipe.json", json.dumps(self.recipe, indent=1, default=str))
        with replacing(self.folder / f"{uuid.uuid4().hex}.safetensors") as aside:
            save_file({"rows": rows.contiguous()}, aside, metadata={"rows": json.dumps(list(keys))})

    def read(self, keys: Sequence[str]) -> Tensor:
        """The rows of `keys`, in that order: len(keys) × d. Raises KeyError for one that is not stored."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for target, key in enumerate(keys):
            path, place = self._places[key]
            wanted.setdefault(path, []).append((target, place))
        rows: Tensor | None = None
        for path, pairs in wanted.items():
            with safe_open(path, "pt") as file:
                chunk = file.get_tensor("rows")
            if rows is None:
                rows = torch.empty(len(keys), *chunk.shape[1:], dtype=chunk.dtype)
            targets, places = zip(*pairs, strict=True)
            rows[list(targets)] = chunk[list(places)]
        assert rows is not None
        return rows
