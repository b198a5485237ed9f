"""What a user should know about an image folder: what in it is not used, and what makes its labels or scores weak."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from runner.data.listing import Listing
from runner.data.scan import ImageFile
from runner.utils.text import counted, named

FEW_IMAGES = 10
"""A class with fewer images has at most two or three for validation and test."""


def unused_remarks(listing: Listing) -> Iterator[str]:
    """Links and images that a scan has left out."""
    if listing.links:
        yield (
            f"not followed: {counted(len(listing.links), 'link')} ({named(listing.links)});"
            " set data.follow_links=true to use what they lead to"
        )
    if listing.broken_links:
        yield (
            f"left out: {counted(len(listing.broken_links), 'link')} to nowhere ({named(listing.broken_links)});"
            " fetch what they lead to"
        )
    if listing.loose:
        yield (
            f"not used: {counted(len(listing.loose), 'image')} beside the class folders ({named(listing.loose)});"
            " move them into the folders of their classes"
        )


def conflict_remark(files: Sequence[ImageFile]) -> Iterator[str]:
    """Identical files in several classes: at most one of their labels is right."""
    labels: dict[str, set[str]] = defaultdict(set)
    for file in files:
        labels[file.digest].add(file.label)
    conflicting = {content for content, names in labels.items() if len(names) > 1}
    if conflicting:
        paths: dict[str, list[str]] = defaultdict(list)
        for file in files:
            if file.digest in conflicting:
                paths[file.digest].append(file.path)
        yield (
            f"contradicting labels: {counted(len(conflicting), 'image')} in more than one class"
            f" ({named([' = '.join(group) for group in paths.values()])}); leave each in one class"
        )


def class_size_remark(files: Sequence[ImageFile]) -> Iterator[str]:
    """Classes with so few images that their scores mean little."""
    counts = Counter(file.label for file in files)
    small = {label: count for label, count in counts.items() if count < FEW_IMAGES}
    if small:
        sizes = named(
            [f"{label}: {count}" for label, count in sorted(small.items(), key=lambda item: item[1])]
        )
        yield (
            f"fewer than {FEW_IMAGES} images in {len(small):,} of {len(counts):,} classes ({sizes}):"
            " their scores depend on single images"
        )
