"""The images that a training command names without a flag: `runner train path/to/images`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.utils.errors import UserError
from runner.utils.image_paths import expand_user
from runner.utils.paths import EXPERIMENTS
from runner.utils.text import did_you_mean, printable

SUFFIX = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tzst|tar\.\w+|csv|tsv|parquet)$", re.IGNORECASE)
"""Of archives and tables."""


def take_images(stray: Sequence[str], words: dict[str, str]) -> None:
    """Put the path among `stray`, if there is one, into `words` as data.root, with data.kind=folder.

    Args:
        stray: The words of a command line that belong to no flag.
        words: Its flags by setting. A data.kind among them stays.

    Raises `UserError` for a second path, one beside data.root, and one that does not exist.
    """
    if not stray:
        return
    path, *more = stray
    if more:
        raise UserError(
            f"Unexpected word {printable(more[0])!r}: only one place of images is named without a flag, here"
            f" {printable(path)!r}; settings are given as --name value (--help lists them)."
        )
    if "data.root" in words:
        raise UserError(
            f"The images are named twice, as {printable(path)} and as --data.root {printable(words['data.root'])};"
            " leave out one of them."
        )
    _check(path)
    words["data.root"] = path
    words.setdefault("data.kind", "folder")


def looks_like_path(word: str) -> bool:
    """Whether a word is rather a path of images than a value."""
    return bool(word) and not word.startswith("-") and ("/" in word or expand_user(word).exists())


def _check(path: str) -> None:
    """Raises `UserError` if there is nothing at a path, or an experiment file."""
    shown = printable(path)
    shipped = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))
    is_experiment = path.lower().endswith((".yaml", ".yml"))
    if path and expand_user(path).exists() and not is_experiment:
        return
    if "://" in path:
        raise UserError(
            f"{shown} is a URL; images are read from local folders and archives, so fetch it first."
        )
    if path in shipped or is_experiment:
        raise UserError(
            f"{shown} is an experiment, not a place of images; write --config {shown} (and --data.root IMAGES, if it"
            " does not name them)."
        )
    raise UserError(
        f"There is no folder or archive {shown!r}{did_you_mean(path, [*shipped, *_beside(path)])}; images are named by"
        " their path, settings as --name value (--help lists them)."
    )


def _beside(path: str) -> Iterable[str]:
    """What lies in the folder in which `path` would lie, as it would be written."""
    try:
        names = [entry.name for entry in expand_user(path).parent.iterdir()]
    except OSError:
        return
    parent = path[: len(path.rstrip("/")) - len(Path(path).name)]
    yield from (parent + name for name in names[:1000])


def dataset_name(root: str) -> str:
    """The name of a dataset: its folder's, or its archive's or table's without the suffix."""
    path = Path(root).expanduser().resolve()
    return path.name if path.is_dir() else SUFFIX.sub("", path.name)
