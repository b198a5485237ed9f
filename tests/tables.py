"""Tables of labels, and the images that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from runner.config.data_schema import DataConfig
from runner.data.listing import Listing, list_folder
from runner.data.tables.label_table import list_table

IMAGES = ("a.jpg", "b.jpg", "c.png", "d.jpg")


def list_images(
    content: str | bytes | dict[str, Any],
    folder: Path,
    name: str = "labels.csv",
    root: bool = True,
    group: str | None = None,
    **columns: str,
) -> Listing:
    """Write a table into a folder, and list the images that it names.

    Args:
        content: The table; a dictionary becomes a Parquet file.
        folder: It holds images/.
        name: Of the table.
        root: Its paths are relative to images/, which is data.root.
        group: As `split.group`.
        columns: As `data.columns`.
    """
    table, images = folder / name, folder / "images"
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), table)
    else:
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = list_folder(images, False) if root else None
    data = DataConfig("folder", root=str(images) if root else None, table=str(table), columns=columns)
    return list_table(found, data, group)
