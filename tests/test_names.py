"""Names of classes in other languages: the table that comes along, and tables of one's own."""

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


def table(folder: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path = folder / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def test_chinese_knows_every_class_of_caltech() -> None:
    text = (class_names.FOLDER / "zh.csv").read_text(encoding="utf-8")
    known = [row["class"] for row in csv.DictReader(io.StringIO(text))]
    assert sorted(known) == sorted(CALTECH.split())
    assert len(known) == 102
    said = class_names.translations("zh", known)
    assert len(set(said.values())) == 102
    assert said["watch"] == "手表"
    for name in said.values():
        assert all("\u4e00" <= letter <= "\u9fff" or letter in "（）" for letter in name), name


def test_languages_are_listed() -> None:
    assert class_names.languages() == ["zh"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("class,name\ncat,chat\ndog,chien\n", ["chat", "chien", "red panda"]),
        ("class,name\r\ncat,chat\r\n", ["chat", "dog", "red panda"]),
        ('class,name\n"cat","chat, ""gros"""\n', ['chat, "gros"', "dog", "red panda"]),
        ("class,name\n\ncat , chat \n\n", ["chat", "dog", "red panda"]),
        ("class,name\ncat,\ndog,chien", ["cat", "chien", "red panda"]),
        (" class , name \nred panda,小熊猫\n", ["cat", "dog", "小熊猫"]),
        ("class,name\ncat,chat\nunicorn,licorne\n", ["chat", "dog", "red panda"]),
    ],
    ids=["plain", "windows", "quoted", "spaces", "a name left out", "header", "a class too many"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_of_ones_own(tmp_path: Path, content: str, encoding: str, said: list[str]) -> None:
    path = table(tmp_path, content, encoding)
    assert class_names.translations(path, CLASSES) == dict(zip(CLASSES, said, strict=True))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "must have the header class,name"),
        ("\n\n", "must have the header class,name"),
        ("cat,chat\n", "must have the header class,name"),
        ("class;name\ncat;chat\n", "must have the header class,name"),
        ("class,name\ncat,chat,gros\n", "two columns"),
        ("class,name\ncat\n", "two columns"),
        ("class,name\n", "names none of the model's classes (cat, dog, red panda, …)"),
        ("class,name\nunicorn,licorne\n", "names none of the model's classes"),
        ('class,name\ncat,"chat\n', "is no CSV file"),
        ('class,name\ncat,"chat"x\n', "is no CSV file"),
        (f"class,name\ncat,{'x' * 200_000}\n", "is no CSV file"),
        ("class,name\ncat,chät\n".encode("latin-1"), "is no CSV file in UTF-8"),
        ("class,name\ncat,chat\n".encode("utf-16"), "is no CSV file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no CSV file in UTF-8"),
    ],
)
def test_a_bad_table_is_refused_in_a_sentence(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    path = table(tmp_path, content)
    with pytest.raises(UserError) as failure:
        class_names.translations(path, CLASSES)
    assert sentence in str(failure.value)
    assert str(failure.value).startswith(path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("de", "There are no names in 'de'; give zh, or a CSV file with the header class,name."),
        ("nowhere/fr.csv", "There are no names in 'nowhere/fr.csv'"),
        ("../names/zh", "There are no names in '../names/zh'"),
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


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a CSV file"):
        class_names.translations(str(tmp_path), CLASSES)
