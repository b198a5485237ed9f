"""Class names in other languages: the included file, and files that a user gives."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from runner.serving import class_names
from runner.utils.errors import UserError

CLASSES = ("cat", "dog", "red panda")
CALTECH = """
accordion airplanes anchor ant barrel bass beaver binocular bonsai brain brontosaurus buddha butterfly camera cannon
car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish crocodile crocodile_head cup
dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu euphonium ewer Faces Faces_easy ferry flamingo
flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate
joshua_tree kangaroo ketch lamp laptop Leopards llama lobster lotus mandolin mayfly menorah metronome minaret Motorbikes
nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster saxophone schooner scissors
scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick trilobite
umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench yin_yang BACKGROUND_Google
"""


def csv_file(folder: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path = folder / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def test_the_chinese_file_names_every_class_of_caltech_101() -> None:
    text = (class_names.FOLDER / "zh.csv").read_text(encoding="utf-8")
    known = [row["class"] for row in csv.DictReader(io.StringIO(text))]
    assert sorted(known) == sorted(CALTECH.split())
    assert len(known) == 102
    names = class_names.translations("zh", known)
    assert len(set(names.values())) == 102
    assert names["watch"] == "手表"
    for name in names.values():
        assert all("\u4e00" <= letter <= "\u9fff" or letter in "（）" for letter in name), name


def test_included_languages() -> None:
    assert class_names.languages() == ["zh"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("class,name\ncat,chat\ndog,chien\n", ["chat", "chien", "red panda"]),
        ("class,name\r\ncat,chat\r\n", ["chat", "dog", "red panda"]),
        ('class,name\n"cat","chat, ""gros"""\n', ['chat, "gros"', "dog", "red panda"]),
        ("class,name\n\ncat , chat \n\n", ["chat", "dog", "red panda"]),
        ("class,name\ncat,\ndog,chien", ["cat", "chien", "red panda"]),
        (" class , name \nred panda,小熊猫\n", ["cat", "dog", "小熊猫"]),
        ("class,name\ncat,chat\nunicorn,licorne\n", ["chat", "dog", "red panda"]),
    ],
    ids=["plain", "windows", "quoted", "spaces", "empty name", "spaces in the header", "unknown class"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_the_user(tmp_path: Path, content: str, encoding: str, names: list[str]) -> None:
    path = csv_file(tmp_path, content, encoding)
    assert class_names.translations(path, CLASSES) == dict(zip(CLASSES, names, strict=True))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "must have the header class,name"),
        ("\n\n", "must have the header class,name"),
        ("cat,chat\n", "must have the header class,name"),
        ("class;name\ncat;chat\n", "must have the header class,name"),
        ("class,name\ncat,chat,gros\n", "two columns"),
        ("class,name\ncat\n", "two columns"),
        ("class,name\n", "has none of the model's classes (cat, dog, red panda, …)"),
        ("class,name\nunicorn,licorne\n", "has none of the model's classes"),
        ('class,name\ncat,"chat\n', "is not a valid CSV file"),
        ('class,name\ncat,"chat"x\n', "is not a valid CSV file"),
        (f"class,name\ncat,{'x' * 200_000}\n", "is not a valid CSV file"),
        ("class,name\ncat,chät\n".encode("latin-1"), "is not a CSV file in UTF-8"),
        ("class,name\ncat,chat\n".encode("utf-16"), "is not a CSV file in UTF-8"),
        ("class,name\ncat,chat\ncat,minou\n", "names the class 'cat' twice"),
        ("class,name\ncat,ch\tat\n", "has a line break or control character"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a CSV file in UTF-8"),
    ],
)
def test_an_unusable_file_is_refused_in_one_sentence(
    tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    path = csv_file(tmp_path, content)
    with pytest.raises(UserError) as failure:
        class_names.translations(path, CLASSES)
    assert sentence in str(failure.value)
    assert str(failure.value).startswith(path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        (
            "de",
            "There are no class names for 'de'; --lang takes zh, or a CSV file with the header class,name.",
        ),
        ("nowhere/fr.csv", "There are no class names for 'nowhere/fr.csv'"),
        ("../names/zh", "There are no class names for '../names/zh'"),
        ("x" * 300, ""),
        ("~nobody-at-all/x.csv", ""),
        (f"{__file__}/x.csv", ""),
    ],
    ids=lambda text: text[-20:],
)
def test_an_unknown_language_is_refused(language: str, sentence: str) -> None:
    with pytest.raises(UserError) as failure:
        class_names.translations(language, CLASSES)
    assert sentence in str(failure.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a CSV file"):
        class_names.translations(str(tmp_path), CLASSES)
