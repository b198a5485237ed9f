"""Which images there are, whether they can be decoded, and which split each is in."""

from __future__ import annotations

import os
import urllib.error
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path

import pytest
import torchvision
from accelerate import Accelerator
from conftest import COLOURS, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

import runner.data.scan
from runner.config.schema import DataConfig, Experiment, SplitConfig
from runner.data.datasets import CALTECH_MD5
from runner.data.manifest import SPLITS, Entry, Manifest, assign_splits, build_manifest, parse_manifest
from runner.data.scan import ImageFile
from runner.training.setup import prepare
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes

Make = Callable[..., Experiment]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that a scan decodes, as it goes."""
    names: list[str] = []
    decode = runner.data.scan._verify_file

    def counted(path: Path) -> tuple[str, str | None]:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(runner.data.scan, "_verify_file", counted)
    return names


def files(sizes: dict[str, int]) -> list[ImageFile]:
    """So many different images of each class."""
    return [
        ImageFile(f"{label}/{number:03}.png", label, 100, f"{label}-{number}")
        for label, size in sizes.items()
        for number in range(size)
    ]


def tally(manifest: Manifest) -> Counter[tuple[str, str]]:
    return Counter((entry.label, entry.split) for entry in manifest.entries)


def paths(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest.entries]


# Listing and splitting


def test_images_are_listed_by_path_with_class_size_and_digest(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    manifest = build_manifest(make(), silent)
    assert paths(manifest) == sorted(f"{label}/{number:02}.png" for label in COLOURS for number in range(12))
    assert manifest.classes == ("blue", "green", "red")
    for entry in manifest.entries:
        content = (pictures / entry.path).read_bytes()
        assert (entry.label, entry.size) == (entry.path.split("/")[0], len(content))
        assert entry.digest == digest_bytes(content)


def test_the_listing_does_not_depend_on_the_order_of_the_disk(
    make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_manifest(make(), silent)
    entries = runner.data.scan._entries
    monkeypatch.setattr(runner.data.scan, "_entries", lambda folder: sorted(entries(folder), key=hash))
    assert build_manifest(make(), silent).entries == before.entries
    monkeypatch.setattr(runner.data.scan, "_entries", lambda folder: entries(folder)[::-1])
    assert build_manifest(make(), silent).entries == before.entries


def test_each_class_is_split_50_25_25(make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make(), silent)
    expected = {(label, name): n for label in COLOURS for name, n in zip(SPLITS, (6, 3, 3), strict=True)}
    assert tally(manifest) == expected
    assert manifest.unused == 0
    assert manifest.labels("val") == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [entry.split for entry in manifest.select("test")] == ["test"] * 9


def test_nothing_is_moved_or_written_in_the_folder_of_the_images(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}

    before = state()
    build_manifest(make(), silent)
    assert state() == before


@pytest.mark.parametrize(
    ("fractions", "numbers"),
    [((0.5, 0.25, 0.25), (6, 3, 3)), ((0.6, 0.2, 0.2), (6, 3, 3)), ((0.75, 0.125, 0.125), (8, 2, 2))],
)
def test_any_proportions_are_kept(
    make: Make, silent: Terminal, fractions: tuple[float, ...], numbers: tuple[int, ...]
) -> None:
    words = [f"--split.{name}={value}" for name, value in zip(SPLITS, fractions, strict=True)]
    counts = tally(build_manifest(make(*words), silent))
    assert {label: tuple(counts[label, name] for name in SPLITS) for label in COLOURS} == dict.fromkeys(
        COLOURS, numbers
    )


@pytest.mark.parametrize("total", [4, 7, 24, 31, 45, 57, 100, 435, 800])
def test_numbers_are_those_of_the_reports_two_calls_of_scikit_learn(total: int) -> None:
    rest, test = train_test_split(range(total), test_size=0.25, random_state=0)
    train, val = train_test_split(rest, test_size=1 / 3, random_state=0)
    assigned = assign_splits(files({"a": total, "b": 4}), SplitConfig(), 0)
    counts = Counter(name for path, name in assigned.items() if path.startswith("a/"))
    assert counts == {"train": len(train), "val": len(val), "test": len(test)}


def test_by_count_caps_the_test_split_and_leaves_the_rest_unused(make: Make, silent: Terminal) -> None:
    words = ("--split.by", "count", "--split.train", "5", "--split.val", "2", "--split.test", "3")
    manifest = build_manifest(make(*words), silent)
    assert tally(manifest) == {
        (label, name): n for label in COLOURS for name, n in zip(SPLITS, (5, 2, 3), strict=True)
    }
    assert manifest.unused == 3 * 2
    assert len(manifest.entries) == 30


def test_by_count_a_small_class_tests_on_what_is_left() -> None:
    assigned = assign_splits(files({"a": 60, "b": 33}), SplitConfig("count", 20, 10, 25), 0)
    counts = Counter((path[0], name) for path, name in assigned.items())
    assert [counts["a", name] for name in SPLITS] == [20, 10, 25]
    assert [counts["b", name] for name in SPLITS] == [20, 10, 3]


@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig("count", 15, 10, 50)])
def test_a_class_too_small_for_its_splits_is_named(split: SplitConfig) -> None:
    with pytest.raises(UserError, match=r"Class 'tiny' has 2 images, too few for its splits"):
        assign_splits(files({"large": 40, "tiny": 2}), split, 0)


def test_the_class_too_small_is_named_when_a_folder_is_read(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    (pictures / "lonely").mkdir()
    draw("red", 99).save(pictures / "lonely" / "a.png")
    with pytest.raises(UserError, match=r"Class 'lonely' has 1 image,"):
        build_manifest(make(), silent)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"one class only \(alone\)"):
        assign_splits(files({"alone": 8}), SplitConfig(), 0)


# Properties of the split

sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 40), min_size=2)
fractions = st.sampled_from([SplitConfig(), SplitConfig("fraction", 0.6, 0.2, 0.2), SplitConfig("fraction", 0.4, 0.3, 0.3)])
seeds = st.integers(0, 2**32)
quick = settings(max_examples=30, deadline=None)


@quick
@given(sizes, fractions, seeds)
def test_every_image_is_in_one_split_and_every_class_in_proportion(
    sizes: dict[str, int], split: SplitConfig, seed: int
) -> None:
    images = files(sizes)
    assigned = assign_splits(images, split, seed)
    assert assigned.keys() == {image.path for image in images}
    assert set(assigned.values()) == set(SPLITS)
    for label, total in sizes.items():
        counts = Counter(name for path, name in assigned.items() if path.startswith(label))
        assert abs(counts["test"] - split.test * total) < 1 + 1e-9
        assert abs(counts["val"] - split.val * total) < 1 + 1e-9
        assert abs(counts["train"] - split.train * total) < 2
        assert counts["test"] == ceil(round(split.test * total, 9))


@quick
@given(sizes, seeds, st.randoms(use_true_random=False))
def test_the_split_is_a_function_of_the_seed_and_not_of_the_order(
    sizes: dict[str, int], seed: int, random: object
) -> None:
    images = files(sizes)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_splits(shuffled, SplitConfig(), seed) == assign_splits(images, SplitConfig(), seed)


def test_another_seed_gives_another_split() -> None:
    images = files({"a": 40, "b": 40})
    assert len({frozenset(assign_splits(images, SplitConfig(), seed).items()) for seed in range(5)}) == 5


@quick
@given(sizes, seeds, st.integers(3, 40))
def test_adding_a_class_moves_no_other_image(sizes: dict[str, int], seed: int, more: int) -> None:
    before = assign_splits(files(sizes), SplitConfig(), seed)
    after = assign_splits(files({**sizes, "new": more}), SplitConfig(), seed)
    assert {path: name for path, name in after.items() if not path.startswith("new/")} == before


@quick
@given(sizes, seeds)
def test_adding_an_image_moves_hardly_any_other(sizes: dict[str, int], seed: int) -> None:
    before = assign_splits(files(sizes), SplitConfig(), seed)
    grown = {label: size + (label == min(sizes)) for label, size in sizes.items()}
    after = assign_splits(files(grown), SplitConfig(), seed)
    assert sum(after[path] != name for path, name in before.items()) <= 3


@quick
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=1, max_size=40),
    st.sampled_from([SplitConfig(), SplitConfig("count", 8, 4, 5)]),
    seeds,
)
def test_duplicates_stay_in_one_split(copies: list[tuple[str, int]], split: SplitConfig, seed: int) -> None:
    twins = [
        ImageFile(f"{label}/copy{place:03}.png", label, 100, f"a-{number}")
        for place, (label, number) in enumerate(copies)
    ]
    images = files({"a": 60, "b": 30}) + twins
    assigned = assign_splits(images, split, seed)
    found: dict[str, set[str | None]] = {}
    for image in images:
        found.setdefault(image.digest, set()).add(assigned.get(image.path))
    assert all(len(names) == 1 for names in found.values())
    assert len(found) == 90


def test_duplicates_are_counted_and_kept_together_on_disk(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    for number in range(5):
        (pictures / "red" / f"copy{number}.png").write_bytes((pictures / "red" / "03.png").read_bytes())
    manifest = build_manifest(make(), silent)
    assert manifest.duplicates == 5
    splits = {e.path: e.split for e in manifest.entries if "copy" in e.path or e.path == "red/03.png"}
    assert len(splits) == 6
    assert len(set(splits.values())) == 1


def test_the_digest_of_a_manifest_tells_every_difference(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    digests = [build_manifest(make(), silent).digest, build_manifest(make("--seed.split", "1"), silent).digest]
    draw("red", 77).save(pictures / "red" / "00.png")
    digests.append(build_manifest(make(), silent).digest)
    (pictures / "red" / "00.png").rename(pictures / "red" / "000.png")
    digests.append(build_manifest(make(), silent).digest)
    assert len(set(digests)) == 4
    assert build_manifest(make(), silent).digest == digests[-1]


# What a scan remembers


def test_a_second_scan_decodes_nothing(make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_manifest(make(), silent)

    def refuse(path: Path) -> tuple[str, str | None]:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(runner.data.scan, "_verify_file", refuse)
    assert build_manifest(make(), silent) == first
    with pytest.raises(AssertionError, match="is decoded again"):
        build_manifest(make("--cache", make().cache + "-other"), silent)


def test_a_changed_file_is_decoded_again(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    path = pictures / "red" / "05.png"
    before = build_manifest(make(), silent)
    assert len(decoded) == 36
    decoded.clear()
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(UserError, match=r"red/05\.png cannot be decoded"):
        build_manifest(make(), silent)
    assert decoded == ["05.png"]
    assert len(before.entries) == 36


def test_a_file_swapped_for_another_is_decoded_again(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    build_manifest(make(), silent)
    decoded.clear()
    draw("red", 50).save(pictures / "aside.png")
    (pictures / "aside.png").replace(pictures / "red" / "05.png")
    entry = next(e for e in build_manifest(make(), silent).entries if e.path == "red/05.png")
    assert decoded == ["05.png"]
    assert entry.digest == digest_bytes((pictures / "red" / "05.png").read_bytes())


def test_only_a_new_file_is_decoded_and_a_deleted_one_forgotten(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    build_manifest(make(), silent)
    decoded.clear()
    draw("red", 50).save(pictures / "red" / "new.png")
    (pictures / "red" / "05.png").unlink()
    found = paths(build_manifest(make(), silent))
    assert decoded == ["new.png"]
    assert "red/new.png" in found
    assert "red/05.png" not in found


def test_an_interrupted_scan_keeps_what_it_had(
    make: Make, silent: Terminal, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = runner.data.scan._verify_file

    def interrupted(path: Path) -> tuple[str, str | None]:
        if len(decoded) >= 30:
            raise KeyboardInterrupt
        return counted(path)

    # One thread, so that it is certain how far the scan came.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
    monkeypatch.setattr(runner.data.scan, "_verify_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_manifest(make(), silent)
    had = set(decoded)
    decoded.clear()
    monkeypatch.setattr(runner.data.scan, "_verify_file", counted)
    assert len(build_manifest(make(), silent).entries) == 36
    assert 6 <= len(decoded) <= 6 + 4
    assert len(had) == 12


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"red/00.png": 3}', b"\xff\xfe"])
def test_a_damaged_memory_of_a_scan_is_replaced(
    make: Make, silent: Terminal, decoded: list[str], content: bytes
) -> None:
    first = build_manifest(make(), silent)
    (memory,) = (Path(make().cache) / "scans").iterdir()
    memory.write_bytes(content)
    decoded.clear()
    assert build_manifest(make(), silent) == first
    assert len(decoded) == 36


def test_a_failure_to_read_is_not_remembered(
    make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "05.png":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", failing)
        with pytest.raises(UserError, match=r"red/05\.png cannot be read: Input/output error"):
            build_manifest(make(), silent)
    assert len(build_manifest(make(), silent).entries) == 36


# Files that are no images


@pytest.fixture
def broken(pictures: Path) -> Path:
    """An empty, a truncated and a text file among the red pictures."""
    whole = (pictures / "red" / "00.png").read_bytes()
    (pictures / "red" / "empty.png").write_bytes(b"")
    (pictures / "red" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "red" / "words.png").write_text("no picture")
    return pictures


@pytest.mark.parametrize("scans", [1, 2])
def test_files_that_are_no_images_stop_the_scan_each_by_name(
    broken: Path, make: Make, silent: Terminal, scans: int
) -> None:
    for _ in range(scans):
        with pytest.raises(UserError) as stopped:
            build_manifest(make(), silent)
        sentence = str(stopped.value)
        assert sentence.startswith("3 of 39 files cannot be used")
        assert f"{broken / 'red' / 'empty.png'} is empty" in sentence
        assert f"{broken / 'red' / 'truncated.png'} cannot be decoded" in sentence
        assert f"{broken / 'red' / 'words.png'} is not an image" in sentence
        assert "data.unreadable=skip" in sentence


def test_files_that_are_no_images_are_skipped_by_setting_each_by_name(
    broken: Path, make: Make, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = prepare(make("--data.unreadable", "skip"), accelerator, Terminal()).manifest
    assert len(manifest.entries) == 36
    assert [file.path for file in manifest.rejected] == [
        *("red/empty.png", "red/truncated.png", "red/words.png")
    ]
    said = capsys.readouterr().out
    assert all(f"left out red/{name}.png" in said for name in ("empty", "truncated", "words"))
    table = manifest.rejected_to_csv().splitlines()
    assert table[0] == "path,class,size,reason"
    assert table[1] == "red/empty.png,red,0,is empty"
    assert len(table) == 4


def test_a_truncated_jpeg_is_noticed(make: Make, pictures: Path, silent: Terminal) -> None:
    path = pictures / "red" / "photo.jpg"
    draw("red", 60, (200, 160)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be decoded: image file is truncated"):
        build_manifest(make(), silent)


def test_many_unusable_files_are_counted_and_some_named(make: Make, pictures: Path, silent: Terminal) -> None:
    for number in range(8):
        (pictures / "blue" / f"empty{number}.png").touch()
    with pytest.raises(UserError, match=r"8 of 44 files .*empty4\.png is empty and 3 more"):
        build_manifest(make(), silent)


def test_hidden_files_and_the_litter_of_desktops_are_passed_over(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    before = build_manifest(make(), silent)
    for name in (".DS_Store", "._00.png", "Thumbs.db", "desktop.ini"):
        (pictures / "red" / name).write_bytes(b"litter")
    (pictures / "red" / ".cache").mkdir()
    draw("red", 70).save(pictures / "red" / ".cache" / "small.png")
    (pictures / ".git").mkdir()
    (pictures / "README.txt").write_text("not in a class folder")
    assert build_manifest(make(), silent) == before


def test_folders_inside_a_class_belong_to_it(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "dark" / "very").mkdir(parents=True)
    draw("red", 70).save(pictures / "red" / "dark" / "very" / "one.png")
    entry = next(e for e in build_manifest(make(), silent).entries if e.path == "red/dark/very/one.png")
    assert entry.label == "red"


def test_names_of_any_letters_are_images_too(make: Make, pictures: Path, silent: Terminal) -> None:
    names = ["Käfer 甲虫.png", 'a,b "c".png', "line\nbreak.png", os.fsdecode(b"latin-\xe9.png")]
    for number, name in enumerate(names):
        draw("red", 70 + number).save(pictures / "red" / name)
    first = build_manifest(make(), silent)
    assert {f"red/{name}" for name in names} <= set(paths(first))
    assert build_manifest(make(), silent) == first


# Links


def test_the_root_may_be_a_link(make: Make, pictures: Path, silent: Terminal, tmp_path: Path) -> None:
    direct = build_manifest(make(), silent)
    (tmp_path / "link").symlink_to(pictures)
    assert build_manifest(make("--data.root", str(tmp_path / "link")), silent).entries == direct.entries


@pytest.fixture
def linked(pictures: Path, tmp_path: Path) -> Path:
    """A linked class folder, a linked folder in a class, a linked file and a link to nowhere."""
    aside = tmp_path / "aside"
    for name in ("violet", "crimson"):
        (aside / name).mkdir(parents=True)
        for number in range(4):
            draw("red", 70 + number + 10 * (name == "violet")).save(aside / name / f"{number}.png")
    (pictures / "violet").symlink_to(aside / "violet")
    (pictures / "red" / "crimson").symlink_to(aside / "crimson")
    draw("red", 99).save(aside / "single.png")
    (pictures / "red" / "single.png").symlink_to(aside / "single.png")
    (pictures / "red" / "nowhere.png").symlink_to(aside / "nowhere.png")
    return pictures


def test_links_inside_the_root_are_left_alone(linked: Path, make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make(), silent)
    assert (linked / "violet" / "0.png").is_file()
    assert manifest.classes == ("blue", "green", "red")
    assert len(manifest.entries) == 36


def test_links_inside_the_root_are_followed_by_setting(linked: Path, make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make("--data.follow_links", "true"), silent)
    added = {path for path in paths(manifest) if not (linked / path).resolve().is_relative_to(linked)}
    assert added == {
        "red/single.png",
        *(f"{folder}/{number}.png" for folder in ("red/crimson", "violet") for number in range(4)),
    }
    assert manifest.classes == ("blue", "green", "red", "violet")


@pytest.mark.timeout(20)
def test_links_that_lead_back_are_followed_once(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "up").symlink_to(pictures)
    (pictures / "red" / "again").symlink_to(pictures / "red")
    (pictures / "blue" / "other").symlink_to(pictures / "green")
    (pictures / "green" / "other").symlink_to(pictures / "blue")
    found = paths(build_manifest(make("--data.follow_links", "true"), silent))
    assert len(found) == 36 + 12 + 12
    assert "blue/other/00.png" in found
    assert not any("again" in path or "up" in path or path.count("other") > 1 for path in found)


@pytest.mark.timeout(20)
def test_a_link_to_itself_does_no_harm(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "self.png").symlink_to("self.png")
    assert len(build_manifest(make("--data.follow_links", "false"), silent).entries) == 36
    assert len(build_manifest(make("--data.follow_links", "true"), silent).entries) == 36


# Folders that cannot be used


def test_an_empty_class_folder_is_named(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "amber").mkdir()
    with pytest.raises(UserError, match=f"class folder {pictures / 'amber'} holds no image"):
        build_manifest(make(), silent)


def test_a_class_of_which_no_file_is_an_image_is_named(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "amber").mkdir()
    (pictures / "amber" / "words.png").write_text("no picture")
    with pytest.raises(UserError, match=f"class folder {pictures / 'amber'} holds no image"):
        build_manifest(make("--data.unreadable", "skip"), silent)


def test_an_empty_linked_class_folder_is_named_too(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "hollow").mkdir()
    (pictures / "amber").symlink_to(tmp_path / "hollow")
    assert build_manifest(make(), silent).classes == ("blue", "green", "red")
    with pytest.raises(UserError, match=f"class folder {pictures / 'amber'} holds no image"):
        build_manifest(make("--data.follow_links", "true"), silent)


def test_a_root_without_class_folders_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    draw("red", 0).save(flat / "a.png")
    with pytest.raises(UserError, match=f"{flat} holds no class folders"):
        build_manifest(make("--data.root", str(flat)), silent)


def test_a_missing_root_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'nowhere'}; set data\.root"):
        build_manifest(make("--data.root", str(tmp_path / "nowhere")), silent)


def test_a_root_that_is_a_file_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"archive\.zip is a file; data\.root must be the folder"):
        build_manifest(make("--data.root", str(tmp_path / "archive.zip")), silent)


def test_a_folder_that_cannot_be_read_is_named(
    make: Make, pictures: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def closed(folder: str | Path = ".") -> object:
        if Path(folder).name == "green":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    with monkeypatch.context() as locked:
        locked.setattr(os, "scandir", closed)
        with pytest.raises(UserError, match=f"folder {pictures / 'green'} cannot be read"):
            build_manifest(make(), silent)
    assert len(build_manifest(make(), silent).entries) == 36


# Caltech-101 and the digits


def lay_out(categories: Path) -> None:
    """A small Caltech-101: two categories and the background."""
    for label, colour in (("accordion", "red"), ("yin_yang", "blue"), ("BACKGROUND_Google", "green")):
        (categories / label).mkdir(parents=True)
        for number in range(4):
            draw(colour, number).save(categories / label / f"image_{number + 1:04}.jpg")


def caltech(tmp_path: Path, **more: bool) -> Experiment:
    data = DataConfig(kind="caltech101", root=str(tmp_path / "data"), **more)
    return Experiment(data=data, cache=str(tmp_path / "cache"))


def test_the_background_of_caltech_is_no_category(silent: Terminal, tmp_path: Path) -> None:
    lay_out(tmp_path / "data" / "caltech101" / "101_ObjectCategories")
    manifest = build_manifest(caltech(tmp_path), silent)
    assert manifest.classes == ("accordion", "yin_yang")
    assert paths(manifest)[0] == "accordion/image_0001.jpg"


def test_the_background_of_caltech_is_a_category_by_setting(silent: Terminal, tmp_path: Path) -> None:
    lay_out(tmp_path / "data" / "caltech101" / "101_ObjectCategories")
    without = build_manifest(caltech(tmp_path), silent)
    manifest = build_manifest(caltech(tmp_path, background=True), silent)
    assert manifest.classes == ("BACKGROUND_Google", "accordion", "yin_yang")
    assert tuple(e for e in manifest.entries if e.label != "BACKGROUND_Google") == without.entries
    assert build_manifest(caltech(tmp_path), silent) == without


def test_a_missing_caltech_says_where_it_should_be_and_how_to_get_it(
    silent: Terminal, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as stopped:
        build_manifest(caltech(tmp_path), silent)
    assert str(tmp_path / "data" / "caltech101" / "101_ObjectCategories") in str(stopped.value)
    assert "data.download=true" in str(stopped.value)
    assert not (tmp_path / "data").exists()


def test_a_root_one_folder_too_deep_is_recognised(silent: Terminal, tmp_path: Path) -> None:
    lay_out(tmp_path / "data" / "101_ObjectCategories")
    with pytest.raises(UserError, match=f"did you mean data.root={tmp_path}"):
        build_manifest(caltech(tmp_path), silent)


@pytest.mark.parametrize("begun", [False, True])
def test_a_failed_download_says_how_to_do_it_by_hand_and_leaves_nothing(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    tried: list[object] = []

    def offline(*_: object, **__: object) -> object:
        tried.append(1)
        raise urllib.error.URLError("Name or service not known")

    def half_way(_url: str, filename: str, *_: object) -> None:
        Path(filename).write_bytes(b"half of the archive")
        offline()

    utils = torchvision.datasets.utils
    if begun:
        monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
        monkeypatch.setattr(utils, "_urlretrieve", half_way)
    monkeypatch.setattr(utils.urllib.request, "urlopen", offline)
    with pytest.raises(UserError) as stopped:
        build_manifest(caltech(tmp_path, download=True), silent)
    assert tried
    assert "Name or service not known" in str(stopped.value)
    assert CALTECH_MD5 in str(stopped.value)
    assert str(tmp_path / "data" / "caltech101" / "101_ObjectCategories") in str(stopped.value)
    # The empty lock may stay: taking it away would race with a process that waits for it.
    assert {path.name for path in (tmp_path / "data").rglob("*")} <= {".caltech101.lock"}


def test_a_connection_that_breaks_off_is_a_failed_download_too(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from http.client import IncompleteRead

    def broken_off(*_: object, **__: object) -> object:
        raise IncompleteRead(b"half", 100)

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", broken_off)
    with pytest.raises(UserError, match=CALTECH_MD5):
        build_manifest(caltech(tmp_path, download=True), silent)


@pytest.mark.parametrize("remains", [(), ("101_ObjectCategories.tar.gz",)])
def test_a_download_ends_in_its_place(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remains: tuple[str, ...]
) -> None:
    for name in remains:
        (tmp_path / "data" / "caltech101").mkdir(parents=True)
        (tmp_path / "data" / "caltech101" / name).write_bytes(b"of an earlier attempt")
    monkeypatch.setattr(
        torchvision.datasets.Caltech101,
        "download",
        lambda self: lay_out(Path(self.root) / "101_ObjectCategories"),
    )
    manifest = build_manifest(caltech(tmp_path, download=True), silent)
    assert manifest.root == tmp_path / "data" / "caltech101" / "101_ObjectCategories"
    assert len(manifest.entries) == 8
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"caltech101", ".caltech101.lock"}


def test_there_are_1797_digits_of_ten_classes(silent: Terminal, tmp_path: Path) -> None:
    experiment = Experiment(data=DataConfig(kind="digits"), cache=str(tmp_path / "cache"))
    manifest = build_manifest(experiment, silent)
    assert len(manifest.entries) == 1797
    assert manifest.classes == tuple("0123456789")
    assert Counter(entry.label for entry in manifest.entries)["0"] == 178
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.name[0] == "."]
    assert build_manifest(experiment, silent) == manifest


# The table


def test_a_manifest_is_read_back_from_its_table(make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make(), silent)
    again = parse_manifest(manifest.to_csv(), manifest.root)
    assert again == manifest
    assert again.digest == manifest.digest


@quick
@given(
    st.lists(
        st.builds(
            lambda label, name, **rest: Entry(f"{label}/{name}", label, **rest),
            label=st.text(st.sampled_from("ab ,\"'\n\ré"), min_size=1),
            name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0./"), min_size=1),
            split=st.sampled_from(SPLITS),
            size=st.integers(0, 2**40),
            digest=st.text("0123456789abcdef", min_size=40, max_size=40),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda entry: entry.path,
    ).map(lambda entries: sorted(entries, key=lambda entry: entry.path))
)
def test_any_names_survive_the_table(entries: list[Entry]) -> None:
    manifest = Manifest(Path("root"), tuple(entries))
    assert parse_manifest(manifest.to_csv(), Path("root")) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,label\n1,2\n",
        "path,class,size,reason\n",
        "path,class,split,size,digest\na/b.png,a,train,large,00\n",
        "path,class,split,size,digest\na/b.png,a,train,12\n",
    ],
)
def test_a_table_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not one that the runner wrote"):
        parse_manifest(text, Path("root"))
