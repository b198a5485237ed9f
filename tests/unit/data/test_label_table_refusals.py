"""Tables of labels that are refused: one sentence, with the line."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tables import IMAGES, list_images

from runner.config.data_schema import DataConfig
from runner.data.tables.label_table import list_table
from runner.utils.errors import UserError

HEADER = "path,label\n"
NOTHING = pa.array([], pa.string())
Refusal = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    for name in (*IMAGES, "one/o.jpg", "one/e.jpg", "two/e.jpg", unicodedata.normalize("NFD", "é.jpg")):
        (images / name).parent.mkdir(exist_ok=True, parents=True)
        (images / name).write_bytes(b"")
    (images / "link.jpg").symlink_to("a.jpg")
    return tmp_path


@pytest.fixture
def refusal(folder: Path) -> Refusal:
    """`refusal(content, …)`: why `list_images` refuses a table; paths are shown from the folder."""

    def refusal(content: str | bytes | dict[str, Any], **settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            list_images(content, folder, **settings)
        return str(caught.value).replace(f"{folder}/", "")

    return refusal


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,\nb.jpg, \nc.png,x\n", "line 2 (a.jpg), line 3 (b.jpg): no label; give each"),
        ("a.jpg,cat\n ,dog\n", "line 3 (dog): no path; complete or remove the line"),
        ("a.jpg,x\nb.jpg,y\n./a.jpg,x\n", "line 2 and line 4: both name the same image, ./a.jpg; remove one"),
        ("a.jpg,x\na.jpg,y\na.jpg,z\n", "both name the same image, a.jpg (as 1 more); the labels are x and y"),
        ("w.jpg,x\nx.jpg,x\ny.jpg,x\nz.jpg,x\n", "(w.jpg), line 3 (x.jpg), line 4 (y.jpg) and 1 more: no such file"),
        ("z.jpg,x\n", "no such file in images; correct the paths, or set data.root to the folder that they are"),
        ("/nowhere/a.jpg,x\n", "line 2 (/nowhere/a.jpg): no such file; correct"),
        ("images/a.jpg,x\nz.jpg,x\n", "line 2 (images/a.jpg), line 3 (z.jpg): no such file in images; set data.root="),
        ("one,x\n", "line 2 (one): no such file in images"),
        ("A.JPG,x\n", "small and capital letters matter: the file is a.jpg"),
        ("é.jpg,x\n", "another form of Unicode (NFD): write the table's paths in it"),
        ("a.jpg,x\no.jpg,y\n", "line 3 (o.jpg): no such file in images; there is one/o.jpg: write paths as they"),
        ("a.jpg,x\ne.jpg,y\n", "there are one/e.jpg, two/e.jpg: write which"),
        ("one\\e.jpg,y\n", "no such file in images; write / between folders, not \\."),
        ("link.jpg,x\n", "behind a link, which is not followed: set data.follow_links=true"),
        ("../../a.jpg,x\n", "line 2 (../../a.jpg): outside images; set data.root"),
        ("C:\\images\\a.jpg,x\n", "a path of Windows; write it relative to data.root, with / between folders"),
        ("a.jpg,x\nhttps://x.org/a.jpg,y\n", "line 3 (https://x.org/a.jpg): an address, not a file: images are not"),
        ("s3://x/a.jpg,x\n", "fetch them, and name the files"),
        ("gs://x/a.jpg,x\n", "an address"),
        ('"data:image/png;base64,AAAA",x\n', "an address"),
        ('a.jpg,"[""cat"", ""dog""]"\n', "line 2 ([\"cat\", \"dog\"]): several labels of an image (multi-label"),
        ("a.jpg,\"['cat']\"\n", "several labels of an image (multi-label classification) are not supported"),
        ("a.jpg,cat|dog\nb.jpg,cat\nc.png,dog\n", "line 2 (cat|dog): several labels"),
        ("a.jpg,cat; dog\nb.jpg,cat\nc.png,dog\n", "several labels"),
        (f"a.jpg,{'x' * 300}\n", "line 2 (a.jpg): a label with a null character, or too long"),
        ('a.jpg,"cat\nb.jpg,dog\n', "line 2: it is no valid CSV (unexpected end of data)"),
        (f'a.jpg,"{"x" * 300_000}\n', "line 2: it is no valid CSV (field larger than"),
        ("a.jpg,cat, dog\nb.jpg,dog\n", "line 2: 3 cells, but the header has 2; a cell that contains ',' must be"),
        ('"b.jpg\n",dog\n\na.jpg\n', "line 5: 1 cell, but the header has 2"),
        ('a.jpg,"two\nlines"\n\nb.jpg,dog\nz.jpg,dog\n', "line 6 (z.jpg): no such file"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named_by_their_lines(refusal: Refusal, rows: str, message: str) -> None:
    found = refusal(HEADER + rows)
    assert found.startswith("labels.csv, line ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "The table labels.csv is empty; it needs a header with the columns path and label."),
        (HEADER, "The table labels.csv has a header but names no image; fill it."),
        ("path,label", "has a header but names no image"),
        (
            "file,class\na.jpg,x\n",
            "labels.csv has no columns path and label; its columns are file, class; give it a header with these names,"
            " or name the columns by data.columns, as {path: file, label: class}.",
        ),
        ("id,Filename\n1,a.jpg\n", "as {path: Filename, label: …}."),
        ("path,name\na.jpg,x\n", "as {label: …}."),
        (
            "Label,LABEL,path\nx,y,a.jpg\n",
            "labels.csv has no column label (did you mean 'Label'?); its columns are",
        ),
        (
            "path,lable\na.jpg,x\n",
            "has no column label (did you mean 'lable'?); its columns are path, lable; give",
        ),
        (
            "a.jpg,cat\nb.jpg,dog\n",
            "its columns are a.jpg, cat; give it a header with these names, or name the",
        ),
        ("path,label,label\na.jpg,x,y\n", "labels.csv has several columns called label; rename all but one."),
        (
            "path,label,split\na.jpg,x,trian\n",
            "line 2 (trian): unknown split (did you mean 'train'?); it must be",
        ),
        (
            (HEADER + "a.jpg,café\n").encode("latin-1"),
            'is not UTF-8: byte 20 (line 2) belongs to another encoding; save it as UTF-8 (in Excel: "CSV UTF-8"),',
        ),
        (
            (HEADER + "a.jpg,x\n").encode("utf-16-le"),
            "labels.csv is no text in UTF-8; save it as CSV (UTF-8).",
        ),
        (codecs.BOM_UTF16_LE + b"odd", "The table labels.csv is not UTF-16: byte 4 (line 1)"),
    ],
)
def test_tables_that_cannot_be_read(refusal: Refusal, content: str | bytes, message: str) -> None:
    assert message in refusal(content)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"path": ["a.jpg"], "label": [["cat", "dog"]]},
            "column label: its labels are lists: multi-label class",
        ),
        ({"path": ["a.jpg"], "label": [0.5]}, "column label: its values must be text or whole numbers ("),
        ({"path": ["a.jpg", "b.jpg"], "label": [1.0, None]}, "row 2 (b.jpg): no label"),
        ({"path": [None], "label": ["x"]}, "row 1 (x): no path"),
        (
            {"path": [{"bytes": b"", "path": ""}], "label": [1]},
            "column path: its values must be text or whole",
        ),
        (
            {"path": [b"\xff.jpg"], "label": [1]},
            "column path: its values must be text or whole numbers (Invalid",
        ),
        ({"path": ["a.jpg"], "label": ["a\0"]}, "row 1 (a.jpg): a label with a null character, or too long"),
        ({"x": [1]}, "labels.parquet has no columns path and label; its columns are x;"),
        ({"path": NOTHING, "label": NOTHING}, "names no image"),
        (b"PAR1 and so on", "The table labels.parquet is no Parquet file, or it is damaged ("),
    ],
)
def test_parquet_tables(refusal: Refusal, columns: Any, message: str) -> None:
    assert message in refusal(columns, name="labels.parquet")


def test_tables_that_are_no_tables(refusal: Refusal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must be a .csv, .tsv or .parquet file" in refusal(HEADER, name="labels.xlsx")
    assert "no column species" in refusal(HEADER + "a.jpg,x\n", label="species")
    (folder / "folder.csv").mkdir()
    monkeypatch.chdir(folder)
    missing = f"There is no table no.csv in {folder}; correct data.table."
    for name, message in {f"{folder}/folder.csv": "folder.csv is a folder", "no.csv": missing}.items():
        with pytest.raises(UserError, match=message):
            list_table(None, DataConfig("folder", table=name))


def test_without_a_root_the_folders_of_the_images_are_looked_into(refusal: Refusal) -> None:
    unknown = partial(refusal, root=False)
    assert "images/A.jpg): no such file in " in (found := unknown(HEADER + "images/A.jpg,x\n"))
    assert "the file is images/a.jpg" in found
    assert "nowhere/a.jpg): no such file" in unknown(HEADER + "nowhere/a.jpg,x\n")
