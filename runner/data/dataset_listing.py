"""Lists the images of any dataset: finds out how they lie, and what says their classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runner.config.data_schema import DataConfig
from runner.data.archives.listing import is_archive, list_archive
from runner.data.archives.webdataset import is_shard, list_shards, shard_names
from runner.data.datasets import locate
from runner.data.layouts.combined import with_test_images
from runner.data.layouts.layout import arrange, class_folders
from runner.data.listing import FileList, Listing, list_folder
from runner.data.tables.hf_dataset import SavedImages, is_saved_dataset, list_saved_dataset
from runner.data.tables.label_table import list_table
from runner.utils.console import Terminal
from runner.utils.errors import UserError


def list_dataset(data: DataConfig, cache: Path, terminal: Terminal, group: str | None = None) -> Listing:
    """The images of a dataset, with the class of each. Downloads or unpacks it first if necessary.

    Args:
        data: Its settings.
        cache: Keeps what is downloaded, and indexes of archives.
        terminal: Shows progress.
        group: As `split.group`, which may name a column of data.table.

    Raises `UserError` if it is missing, or lies in no way that is supported.
    """
    listing = _list(data, cache, terminal, group)
    if data.test is None:
        _check_columns(data, listing)
        return listing
    test = Path(data.test).expanduser()
    if not test.exists():
        raise UserError(f"There is no {data.test}; set data.test to where the test images are.")
    if not test.is_dir() and not is_archive(test):
        raise UserError(
            f"{data.test} is a file; data.test must be a folder of test images, or an archive (.zip, .tar)."
        )
    tested = _list(replace(data, root=data.test, test=None, table=None), cache, terminal)
    _check_columns(data, listing, tested)
    return with_test_images(listing, tested)


def _check_columns(data: DataConfig, *listings: Listing) -> None:
    """Raises `UserError` if `data.columns` names columns, and nothing has any."""
    if (
        data.columns
        and data.table is None
        and not any(isinstance(each.files, SavedImages) for each in listings)
    ):
        raise UserError(
            f"data.columns names columns, but {listings[0].files.root} has none ({listings[0].layout}); remove it, or"
            " set data.table to a table of labels."
        )


def _list(data: DataConfig, cache: Path, terminal: Terminal, group: str | None = None) -> Listing:
    found = _listing_or_files(data, cache, terminal, group)
    if isinstance(found, FileList):
        return arrange(found, data)
    if data.nested == "top":
        return found
    remark = f"data.nested={data.nested} has no effect: it is for class folders of data.kind=folder without a table"
    return replace(found, remarks=(*found.remarks, remark))


def _listing_or_files(
    data: DataConfig, cache: Path, terminal: Terminal, group: str | None
) -> Listing | FileList:
    """The images if something else than nested folders says their classes, else all files."""
    if data.table is not None and data.root is None:
        return list_table(None, data, group)
    folder = locate(data, cache, terminal)
    if folder.layout == "classes":
        return class_folders(list_folder(folder.root, data.follow_links, folder.excluded))
    if data.table is None and is_saved_dataset(folder.root):
        return list_saved_dataset(folder.root, data)
    if data.table is None and is_shard(folder.root):
        return list_shards(folder.root, [folder.root.name], cache, terminal)
    if folder.root.is_file():
        found = list_archive(folder.root, cache, terminal)
    else:
        found = list_folder(folder.root, data.follow_links, folder.excluded)
    if data.table is not None:
        return list_table(found, data, group)
    if names := shard_names(found):
        return list_shards(folder.root, names, cache, terminal)
    return found
