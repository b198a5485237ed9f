"""Datasets: each `data.kind` becomes a folder of images. `runner.data.dataset_listing` lists them.

To add a dataset, register a function here: `@DATASETS.register(name, description, uses)`. It is called with the data
settings, the cache folder and the terminal. It downloads or unpacks what it must, and returns an `ImageFolder`.
`uses` names those of root, download and background that it reads. This module is imported for `--help` too, so that
large libraries are imported inside the functions.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runner.config.choices import DATASETS
from runner.config.data_schema import DataConfig
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from runner.utils.console import Terminal

CALTECH_ARCHIVE = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
CALTECH_MD5 = "3138e1922a9193bfa496528edbbc45d0"
CALTECH_IMAGES = Path("caltech101") / "101_ObjectCategories"
"""The class folders, below data.root."""
BACKGROUND = "BACKGROUND_Google"
"""The folder that torchvision leaves out."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images.

    Attributes:
        root: The folder; with `layout="detect"` also a file, as an archive.
        excluded: Names in it that are passed over.
        layout: classes: it holds one folder per class; detect: whatever the user has.
    """

    root: Path
    excluded: frozenset[str] = frozenset()
    layout: Literal["classes", "detect"] = "classes"


def locate(data: DataConfig, cache: Path, terminal: Terminal) -> ImageFolder:
    """The folder of an experiment's images. Downloads or unpacks it first if necessary.

    Raises `UserError` if it is missing, with how to get it.
    """
    folder: ImageFolder = DATASETS.find(data.kind).implementation(data, cache, terminal)
    return folder


def _root(data: DataConfig) -> Path:
    assert data.root is not None  # noqa: S101 (for types: the settings are validated)
    return Path(data.root).expanduser()


@DATASETS.register(
    "folder", "a folder of images per class, and other layouts", uses=["root", "test", "table"]
)
def _folder(data: DataConfig, _cache: Path, _terminal: Terminal) -> ImageFolder:
    from runner.data.archives.listing import is_archive

    root = _root(data)
    if not root.exists():
        raise UserError(
            f"There is no folder {root}; set data.root to the folder that holds the class folders."
        )
    if not root.is_dir() and not is_archive(root):
        raise UserError(
            f"{root} is a file; data.root must be the folder that holds the class folders, or an archive (.zip, .tar);"
            " a table of labels is data.table."
        )
    return ImageFolder(root, layout="detect")


@DATASETS.register("caltech101", "torchvision's Caltech-101", uses=["root", "download", "background"])
def _caltech101(data: DataConfig, _cache: Path, terminal: Terminal) -> ImageFolder:
    root = _root(data)
    images = root / CALTECH_IMAGES
    if not images.is_dir():
        if not data.download:
            hint = ""
            if (root / CALTECH_IMAGES.name).is_dir():
                hint = f" ({root} itself holds {CALTECH_IMAGES.name}; did you mean data.root={root.parent}?)"
            raise UserError(
                f"There is no Caltech-101 at {images}{hint}; set data.root to the folder that holds caltech101/,"
                " or data.download=true to fetch it."
            )
        _download_caltech101(root, terminal)
    if data.background and not (images / BACKGROUND).is_dir():
        raise UserError(
            f"There is no {BACKGROUND} in {images}, which data.background=true would use as a class."
        )
    return ImageFolder(images, frozenset() if data.background else frozenset({BACKGROUND}))


def _download_caltech101(root: Path, terminal: Terminal) -> None:
    """Download and unpack into a temporary folder, then rename: an interrupted download leaves no partial dataset.

    Archives are unpacked with Python's data filter, which refuses names and links that lead out of the folder. The
    first releases of Python 3.11 lack it.
    """
    import http.client
    import tarfile
    import zipfile
    import zlib

    from filelock import FileLock
    from torchvision.datasets import Caltech101

    from runner.utils.downloads import download_timeout

    images = root / CALTECH_IMAGES
    by_hand = (
        f"fetch {CALTECH_ARCHIVE} (md5 {CALTECH_MD5}), unpack it and its 101_ObjectCategories.tar.gz, and put the"
        f" folder 101_ObjectCategories at {images}"
    )
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"This Python does not check where an archive's files go; use 3.11.4 or newer, or {by_hand}."
        )
    # torchvision 0.26 names no filter.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)

    root.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(root / ".caltech101.lock"),
        tempfile.TemporaryDirectory(prefix=".caltech101.", dir=root) as temporary,
    ):
        if images.is_dir():
            return  # another process has downloaded it meanwhile
        terminal.line(f"Downloading Caltech-101 into {root} …")
        try:
            with download_timeout():
                Caltech101(temporary, target_type="category", download=True)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, ValueError) as error:
            raise UserError(
                f"The archive of Caltech-101 is damaged, or would write outside its folder ({error}), and was not"
                f" used; {by_hand}."
            ) from None
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(f"Caltech-101 could not be downloaded ({error}); {by_hand}.") from None
        images.parent.mkdir(exist_ok=True)
        os.replace(Path(temporary) / CALTECH_IMAGES, images)


@DATASETS.register("digits", "scikit-learn's 1,797 handwritten digits")
def _digits(_data: DataConfig, cache: Path, _terminal: Terminal) -> ImageFolder:
    """The digits (8 × 8 pixels, values 0 to 16) as PNG files in the cache."""
    root = cache / "digits"
    if root.is_dir():
        return ImageFolder(root)
    import numpy as np
    from filelock import FileLock
    from PIL import Image
    from sklearn.datasets import load_digits

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".digits.lock"):
        if root.is_dir():
            return ImageFolder(root)
        digits = load_digits()
        with tempfile.TemporaryDirectory(prefix=".digits.", dir=cache) as temporary:
            images = Path(temporary) / "digits"
            for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
                folder = images / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.rint(values * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04}.png")
            os.replace(images, root)
    return ImageFolder(root)
