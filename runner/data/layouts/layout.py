"""Finds the class of each file, and its split if folders say it, from the names of the folders that it is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runner.config.data_schema import DataConfig
from runner.data.archives.listing import TAR_SUFFIXES
from runner.data.files import FolderFiles
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.layouts.folders import Child, Folders, Parts, is_image_file
from runner.data.layouts.trees import layout_error
from runner.data.listing import FileList, Listing
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, joined, named, printable, valid_unicode

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders, in small letters, and the split that they hold."""
MOST_LOOSE = 1000
"""Files beside the class folders that are opened to see whether they are images."""


@dataclass(frozen=True)
class _Layout:
    """Where the class folders are."""

    prefix: Parts = ()
    """The folders around all of it."""
    splits: Mapping[str, str] | None = None
    """The folders that hold class folders of one split, and which; None: there are none."""


def arrange(found: FileList, data: DataConfig) -> Listing:
    """The images of a folder or an archive, by the layout of its folders.

    Class folders; train, val and test folders that hold class folders; either within one more folder. A class is a
    folder with all below it or, with data.nested=path, each folder that holds images.

    Raises `UserError` for any other layout, with a drawing of it, for class folders without files, and for two classes
    that have the same name in Unicode.
    """
    folders = Folders(found)
    return _listing(folders, _find(folders), data)


def class_folders(found: FileList) -> Listing:
    """The images of a dataset that is known to have class folders. Raises `UserError` as `arrange`."""
    folders = Folders(found)
    if not any(folders.parts):
        raise _no_class_folders(folders, ())
    return _listing(folders, _Layout(), DataConfig())


def _find(folders: Folders) -> _Layout:
    prefix: Parts = ()
    while True:
        children = folders.children(prefix)
        full = {name: child for name, child in children.items() if child.holds_images}
        if not full:
            if children and not any(child.has_files for child in children.values()):
                return _Layout(prefix)  # empty class folders, which are named
            raise _no_class_folders(folders, prefix)
        splits = _split_folders(children)
        others = [name for name in full if name not in splits]
        if any(children[name].has_nested_images for name in splits) or (splits and not others):
            _check_splits(folders, prefix, children, splits)
            return _Layout(prefix, splits)
        (name, child), *more = full.items()
        rest = [each for other, each in children.items() if other != name]
        if more or child.has_images or not all(each.has_files for each in rest):
            _check_classes(folders, prefix, full)
            return _Layout(prefix)
        prefix = (*prefix, name)


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """The folders that are named as splits, in the order of the splits."""
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    return dict(sorted(splits.items(), key=lambda item: SPLITS.index(item[1])))


def _no_class_folders(folders: Folders, prefix: Parts) -> UserError:
    """The error for a folder in which no folder holds images."""
    found = folders.found
    root = printable(str(found.files.root.joinpath(*prefix)))
    if folders.images[folders.parts.index(prefix)]:
        return layout_error(
            f"{root} holds no class folders but images, and nothing says what they show; put the images of each class"
            " in a folder of their own, or name their classes in a table (data.table).",
            found,
        )
    if found.links:
        return UserError(
            f"{root} holds no class folders but links ({named(found.links)}), which are not followed; set"
            " data.follow_links=true, or data.root to another folder."
        )
    if found.broken_links:
        return UserError(
            f"{root} holds no class folders but links to nowhere ({named(found.broken_links)}); fetch what they lead"
            " to."
        )
    packed = [path for path in found.paths if path.lower().endswith((".zip", *TAR_SUFFIXES))]
    if packed and isinstance(found.files, FolderFiles):
        advice = "name the archive itself" if len(packed) == 1 else "unpack them, or name one of them"
        return UserError(
            f"{root} holds no images but {counted(len(packed), 'archive')} ({named(packed)}); {advice}:"
            f" {printable(found.files.shown(packed[0]))}."
        )
    what = "no image that can be read" if len(found.paths) else "no class folders: it is empty"
    return layout_error(f"{root} holds {what}; set data.root to a folder of images.", found)


def _check_splits(
    folders: Folders, prefix: Parts, children: Mapping[str, Child], splits: Mapping[str, str]
) -> None:
    """Raises `UserError` unless all images lie in split folders with class folders, one for each split."""
    found = folders.found
    root = printable(str(found.files.root.joinpath(*prefix)))
    if others := [name for name, child in children.items() if child.holds_images and name not in splits]:
        free = [name for name, split in SPLIT_FOLDERS.items() if split not in splits.values()]
        guess = next(filter(None, (did_you_mean(name.lower(), free) for name in others)), "")
        classes = "classes" if len(splits) > 1 else "a class"
        raise layout_error(
            f"{root} holds {joined(list(splits))} with class folders, but also other folders with images"
            f" ({named(others)}){guess}; rename them to train, val or test if they are splits, or move them elsewhere."
            f" If {joined(list(splits))} should be {classes}, give {'them' if len(splits) > 1 else 'it'} another name.",
            found,
        )
    flat = [name for name in splits if children[name].has_images and not children[name].has_nested_images]
    if flat:
        raise layout_error(
            f"In {root} the images of {joined(flat)} lie in no class folders, and nothing says what they show; put the"
            " images of each class in a folder of their own, or name their classes in a table (data.table).",
            found,
        )
    if links := _named_as_splits(found.links, prefix):
        raise UserError(
            f"{root} holds links to split folders ({named(links)}), which are not followed; set data.follow_links=true."
        )
    empty = [name for name in splits if not children[name].holds_images]
    if empty := [*empty, *_named_as_splits(found.broken_links, prefix)]:
        raise UserError(f"{root} holds no images in {named(empty)}; fill or remove what is empty.")
    for split in SPLITS:
        if len(doubled := [name for name in splits if splits[name] == split]) > 1:
            raise UserError(
                f"{root} holds {len(doubled)} folders of the {split} split ({named(doubled)}); leave one of them."
            )


def _named_as_splits(links: Sequence[str], prefix: Parts) -> list[str]:
    """The links that stand where split folders stand, and are named so."""
    parents = (link.split("/") for link in links)
    return [name for *above, name in parents if tuple(above) == prefix and name.lower() in SPLIT_FOLDERS]


def _check_classes(folders: Folders, prefix: Parts, full: Mapping[str, Child]) -> None:
    """Raises `UserError` for class folders that are rather splits, or that have splits inside."""
    found = folders.found
    root = printable(str(found.files.root.joinpath(*prefix)))
    if len(full) > 1 and all(_like_splits(name) for name in full):
        raise layout_error(
            f"The folders of {root} are named like splits ({named(full)}), not like classes; rename them to train, val"
            " and test, or to other names if they are classes.",
            found,
        )
    if any(child.has_images for child in full.values()):
        return
    inner = {name: folders.children((*prefix, name)) for name in full}
    if all(name.lower() in SPLIT_FOLDERS for names in inner.values() for name in names):
        paths = [f"{outer}/{name}" for outer, names in inner.items() for name in names]
        raise layout_error(
            f"The class folders of {root} hold split folders ({named(paths)}); put train, val and test outside, and"
            " class folders in each.",
            found,
        )


def _like_splits(name: str) -> bool:
    """Whether a word of a folder's name is that of a split, as in seg_train or test2017."""
    return not SPLIT_FOLDERS.keys().isdisjoint(re.split("[^a-z]+", name.lower()))


def _listing(folders: Folders, layout: _Layout, data: DataConfig) -> Listing:
    found = folders.found
    class_of, split_of = _assign(folders, layout, data.nested)
    names = sorted({valid_unicode(name) for name in class_of if name is not None})
    _check_names(found, class_of)
    number = {name: index for index, name in enumerate(names)}
    label_of = np.array([-1 if name is None else number[valid_unicode(name)] for name in class_of], np.int32)
    labels = label_of[found.folder_of]
    inside = labels >= 0
    _check_empty(found, label_of, np.bincount(labels[inside], minlength=len(names)))
    return Listing(
        found.files,
        found.paths if inside.all() else found.paths.take(inside),
        found.stamps[inside],
        tuple(names),
        labels[inside],
        None if layout.splits is None else split_of[found.folder_of][inside],
        layout=_described(folders, layout, class_of, data),
        remarks=(*_unused(folders, layout, inside), *_nested_remark(folders, layout, class_of, data)),
    )


def _assign(folders: Folders, layout: _Layout, nested: str) -> tuple[list[str | None], np.ndarray]:
    """The name of each folder's class, None for a folder that is in no class, and the folder's split."""
    around = len(layout.prefix)
    depth = around + (layout.splits is not None)
    class_of: list[str | None] = []
    split_of = np.full(len(folders.parts), NO_SPLIT, np.int8)
    parents = {parts[:-1] for parts in folders.parts if parts} if nested == "path" else set()
    for index, parts in enumerate(folders.parts):
        inside = len(parts) > depth and parts[:around] == layout.prefix
        if inside and layout.splits is not None:
            inside = parts[around] in layout.splits
            if inside:
                split_of[index] = SPLITS.index(layout.splits[parts[around]])
        if inside and nested == "path":
            inside = bool(folders.images[index]) or parts not in parents
        name = None
        if inside:
            name = parts[depth] if nested == "top" else "/".join(parts[depth:])
        class_of.append(name)
    return class_of, split_of


def _check_names(found: FileList, class_of: Sequence[str | None]) -> None:
    """Raises `UserError` if two classes have the same name in Unicode."""
    raw: dict[str, str] = {}
    for name in class_of:
        if name is not None and raw.setdefault(valid_unicode(name), name) != name:
            raise UserError(
                f"Two class folders in {found.files.root} are called {printable(name)} once bytes that are not UTF-8"
                r" are written as \x…; rename one."
            )


def _check_empty(found: FileList, label_of: np.ndarray, counts: np.ndarray) -> None:
    """Raises `UserError` for classes without files."""
    folder_of = {int(label): index for index, label in reversed(list(enumerate(label_of))) if label >= 0}
    empty = [found.folders[folder_of[label]] for label in np.flatnonzero(counts == 0).tolist()]
    if not empty:
        return
    paths = named([str(found.files.root / name) for name in empty])
    inside = tuple(f"{name}/" for name in empty)
    links = [path for path in found.links if path.startswith(inside)]
    broken = [path for path in found.broken_links if path.startswith(inside)]
    plural = len(empty) > 1
    problem = f"The class folder{'s' * plural} {paths} hold{'s' * (not plural)} no image"
    if links:
        raise UserError(
            f"{problem} but {counted(len(links), 'link')} ({named(links)}), not followed; set data.follow_links=true."
        )
    if broken:
        raise UserError(
            f"{problem} but {counted(len(broken), 'link')} to nowhere ({named(broken)}); fetch what they lead to."
        )
    raise UserError(f"{problem}; fill or remove {'them' if plural else 'it'}.")


def _described(folders: Folders, layout: _Layout, class_of: Sequence[str | None], data: DataConfig) -> str:
    """The layout in words."""
    text = "class folders"
    if layout.splits is not None:
        names = joined(list(layout.splits))
        text = f"{names} folder{'s' * (len(layout.splits) > 1)} with class folders"
    if any(_nested_folders(folders, layout, class_of)):
        text += f" and folders inside them (data.nested={data.nested})"
    return f"{text} in {printable('/'.join(layout.prefix))}/" if layout.prefix else text


def _nested_folders(folders: Folders, layout: _Layout, class_of: Sequence[str | None]) -> Iterator[str]:
    """The folders with images inside class folders."""
    depth = len(layout.prefix) + (layout.splits is not None)
    for index, parts in enumerate(folders.parts):
        if len(parts) > depth + 1 and class_of[index] is not None and folders.images[index]:
            yield "/".join(parts[depth:])


def _nested_remark(
    folders: Folders, layout: _Layout, class_of: Sequence[str | None], data: DataConfig
) -> Iterator[str]:
    """Class folders that hold images only in folders inside them: perhaps those are meant to be classes."""
    if data.nested == "path":
        return
    depth = len(layout.prefix) + (layout.splits is not None)
    direct = {
        name
        for name, parts, has in zip(class_of, folders.parts, folders.images, strict=True)
        if has and len(parts) == depth + 1
    }
    inner = sorted(set(_nested_folders(folders, layout, class_of)))
    if inner and direct.isdisjoint(class_of):
        yield (
            f"one class per outer folder: {counted(len(inner), 'folder')} inside them ({named(inner)}) are no"
            " classes of their own; set data.nested=path if they should be"
        )


def _unused(folders: Folders, layout: _Layout, inside: np.ndarray) -> Iterator[str]:
    """Links, images and folders that are left out."""
    found = folders.found
    if found.links:
        yield (
            f"not followed: {counted(len(found.links), 'link')} ({named(found.links)});"
            " set data.follow_links=true to use what they lead to"
        )
    if found.broken_links:
        yield (
            f"left out: {counted(len(found.broken_links), 'link')} to nowhere ({named(found.broken_links)});"
            " fetch what they lead to"
        )
    if unused := _folders_beside(folders, layout):
        yield f"not used: {counted(len(unused), 'folder')} without images ({named(unused)})"
    if inside.all():
        return
    outside = np.flatnonzero(~inside)
    loose = folders.named_as_images[outside]
    for place in np.flatnonzero(~loose)[:MOST_LOOSE]:
        loose[place] = is_image_file(found, outside[place])
    if loose.any():
        images = found.paths.take(outside[loose])
        yield (
            f"not used: {counted(len(images), 'image')} beside the class folders ({named(images)});"
            " move them into the folders of their classes"
        )


def _folders_beside(folders: Folders, layout: _Layout) -> list[str]:
    """The folders that lie beside split folders, or beside the folder around all of it."""
    beside = []
    for depth, name in enumerate(layout.prefix):
        around = layout.prefix[:depth]
        beside += ["/".join((*around, each)) for each in folders.children(around) if each != name]
    if layout.splits is not None:
        names = folders.children(layout.prefix)
        beside += ["/".join((*layout.prefix, name)) for name in names if name not in layout.splits]
    return beside
