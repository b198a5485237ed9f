"""What a user should know about an image folder: what in it is not used, and what makes its labels or scores weak."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from runner.data.listing import Listing
from runner.data.scan import ImageFile
from runner.utils.text import named

FEW_IMAGES = 10
"""A class with fewer images has at most two or three for validation and test."""


def unused_remarks(listing: Listing) -> Iterator[str]:
    """Links and images that a scan has left out."""
    if listing.links:
        yield (
            f"{len(listing.links):,} links are not followed ({named(listing.links)});"
            " set data.follow_links=true to use what they lead to"
        )
    if listing.broken_links:
        yield (
            f"{len(listing.broken_links):,} links lead nowhere and are left out ({named(listing.broken_links)});"
            " fetch their files"
        )
    if listing.loose:
        yield (
            f"{len(listing.loose):,} images beside the class folders are not used ({named(listing.loose)});"
            " move them into the folder of their class"
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
            f"{len(conflicting):,} images are in more than one class, so that their labels contradict each other"
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
            f"{len(small):,} of {len(counts):,} classes have fewer than {FEW_IMAGES} images ({sizes}), so that their"
            " scores depend on single images"
        )
