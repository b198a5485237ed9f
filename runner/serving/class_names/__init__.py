"""Names of classes in other languages, one CSV file a language: `class,name`."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from runner.utils.errors import UserError
from runner.utils.image_paths import expand_user
from runner.utils.text import printable

FOLDER = Path(__file__).parent
HEADER = ["class", "name"]
NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, halves of characters, and ends of lines."""


def languages() -> list[str]:
    """The languages that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def translations(language: str, classes: Sequence[str]) -> dict[str, str]:
    """What each class is called in a language.

    Args:
        language: One that comes along, as `zh`, or a CSV file of one's own with the header `class,name`.
        classes: The model's; one that the file does not know keeps its name.

    Raises `UserError` where there is no such language or file, or it names none of the classes.
    """
    own = FOLDER / f"{language}.csv"
    path = own if language in languages() else expand_user(language)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except FileNotFoundError:
        raise UserError(
            f"There are no names in {language!r}; give {' or '.join(languages())}, or a CSV file with the header"
            f" {','.join(HEADER)}."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no CSV file in UTF-8; save it as one.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a CSV file.") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file ({error}).") from None
    if not rows or [cell.strip() for cell in rows[0]] != HEADER or any(len(row) != 2 for row in rows):
        raise UserError(
            f"{path} must have the header {','.join(HEADER)} and two columns: a class of the model, and its name."
        )
    known: dict[str, str] = {}
    for label, name in ((label.strip(), name.strip()) for label, name in rows[1:]):
        if any(unicodedata.category(each) in NO_TEXT for each in name):
            raise UserError(
                f"{path}: the name {printable(name)[:80]!r} holds a line end or control character."
            )
        if name and known.setdefault(label, name) != name:
            raise UserError(f"{path} names the class {printable(label)[:80]!r} twice; one name is needed.")
    if not known.keys() & set(classes):
        raise UserError(f"{path} names none of the model's classes ({', '.join(classes[:3])}, …).")
    return {label: known.get(label, label) for label in classes}
