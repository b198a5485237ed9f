"""Class names in other languages: one CSV file per language, with the columns `class,name`."""

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
NOT_PRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


def languages() -> list[str]:
    """The languages that have a file here."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def translations(language: str, classes: Sequence[str]) -> dict[str, str]:
    """The name of each class in a language.

    Args:
        language: One of `languages()`, or the path of a CSV file with the header `class,name`.
        classes: The model's classes. Those that the file does not have keep their name.

    Raises `UserError` if there is no such language or file, or if the file has none of the classes.
    """
    path = FOLDER / f"{language}.csv" if language in languages() else expand_user(language)
    names: dict[str, str] = {}
    for label, name in _read_rows(path, language):
        if any(unicodedata.category(character) in NOT_PRINTABLE for character in name):
            raise UserError(
                f"{path}: the name {printable(name)[:80]!r} has a line break or control character; remove it."
            )
        if name and names.setdefault(label, name) != name:
            raise UserError(f"{path} names the class {printable(label)[:80]!r} twice; keep one name.")
    if not names.keys() & set(classes):
        raise UserError(
            f"{path} has none of the model's classes ({', '.join(classes[:3])}, …); check its first column."
        )
    return {label: names.get(label, label) for label in classes}


def _read_rows(path: Path, language: str) -> list[tuple[str, str]]:
    """The rows after the header, without spaces around the cells. Raises `UserError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError:
        raise UserError(
            f"There are no class names for {language!r}; --lang takes {' or '.join(languages())}, or a CSV file with"
            f" the header {','.join(HEADER)}."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a CSV file in UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a CSV file.") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise UserError(f"{path} is not a valid CSV file ({error}); correct it.") from None
    if not rows or [cell.strip() for cell in rows[0]] != HEADER or any(len(row) != 2 for row in rows):
        raise UserError(
            f"{path} must have the header {','.join(HEADER)} and two columns: a class of the model and its name."
        )
    return [(label.strip(), name.strip()) for label, name in rows[1:]]
