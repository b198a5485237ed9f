"""Reads columns of text from a table: .csv, .tsv or .parquet. A place in it is named as people find it."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, joined, named, one_line, printable

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
"""Of the columns, by suffix; of several the one with which the header has the columns."""
LIKELY = {"path": "path|file|image|img|photo", "label": "label|class|categor|species|target|diagnos"}
"""What columns are often called, by role."""
Choose: TypeAlias = Callable[[Sequence[str]], Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of a table, as text (large_string, without nulls).

    Attributes:
        path: Of the table.
        columns: By role. Cells without a value are empty.
        names: What the table calls them.
        places: What to call rows with these indices, in ascending order: `line 2` of a file of lines, else `row 1`.
    """

    path: Path
    columns: Mapping[str, pa.LargeStringArray]
    names: Mapping[str, str]
    places: Callable[[Sequence[int]], list[str]] = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def refuse(self, mask: pa.BooleanArray | np.ndarray, problem: str, advice: str, role: str) -> None:
        """Raises `UserError` if a row is in the mask, with the first rows and their cells."""
        rows = np.flatnonzero(mask)
        if not len(rows):
            return
        cells = [self.columns[role][int(row)].as_py() for row in rows[:3]]
        shown = [
            f"{place} ({printable(one_line(cell, 80))})" if cell else place
            for place, cell in zip(self.places(rows[:3].tolist()), cells, strict=True)
        ]
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        raise UserError(f"{self.path}, {', '.join(shown)}{more}: {problem}; {advice}.")


def read_table(path: Path, choose: Choose) -> Table:
    """Read columns of a table.

    Args:
        path: The file.
        choose: Of the names of its columns those to read, by role.

    Raises `UserError` if it is no such file, is damaged, or is not UTF-8 or UTF-16, and for rows of another length.
    """
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, ".parquet"):
        raise UserError(f"The table {path} must be a .csv, .tsv or .parquet file; save it as CSV (UTF-8).")
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; data.table must be a file.")
        if not path.exists():
            raise UserError(f"There is no table {path.name} in {path.absolute().parent}; correct data.table.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The table {path} cannot be read ({error.strerror}); check its mode and disk."
        ) from None
    if not content.strip():
        raise UserError(f"The table {path} is empty; it needs a header with the columns path and label.")
    if suffix == ".parquet":
        return _read_parquet(path, content, choose)
    return _read_csv(path, _as_utf8(path, content), choose)


def columns_of(
    path: Path, names: Sequence[str], wanted: Mapping[str, str], needed: Iterable[str]
) -> dict[str, str]:
    """The names of columns by role: those of `wanted` that exist.

    Names may differ in case and in the spaces around them, if no other column is called so.

    Raises `UserError` if one of the roles in `needed` has none, or if one is there twice.
    """
    needed = list(needed)
    found = {role: name for role, name in wanted.items() if name in names}
    for role in (*needed, *(role for role in wanted if role not in needed)):
        alike = [name for name in names if _plain(name) == _plain(wanted[role])]
        if role not in found and len(alike) == 1 and alike[0] not in found.values():
            found[role] = alike[0]
    missing = [role for role in needed if role not in found]
    if missing:
        absent = [wanted[role] for role in missing]
        known = named([one_line(name, 60) for name in names], 20)
        raise UserError(
            f"{path} has no column{'s' * (len(missing) > 1)} {joined(absent)}{did_you_mean(absent[0], names)}; its"
            f" columns are {known}; give it a header with these names, or name the columns by data.columns, as"
            f" {{{_example(missing, names, found.values())}}}."
        )
    if doubled := [name for name in found.values() if names.count(name) > 1]:
        raise UserError(f"{path} has several columns called {joined(doubled)}; rename all but one.")
    return found


def _plain(name: str) -> str:
    return name.strip().casefold()


def _example(roles: Iterable[str], names: Iterable[str], taken: Collection[str]) -> str:
    """How to name the columns of these roles, by what columns are often called: `path: Filename, label: …`."""
    free = [name for name in names if name not in taken and not re.search(r"[./:,]", name)]
    likely = {
        role: [name for name in free if re.search(LIKELY.get(role, "$^"), _plain(name))] for role in roles
    }
    return ", ".join(f"{role}: {printable(one_line((*found, '…')[0], 60))}" for role, found in likely.items())


def _as_utf8(path: Path, content: bytes) -> bytes:
    """The text of a table in UTF-8, without a byte order mark."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if content.startswith(marks) else "utf-8"
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"The table {path} is not {encoding.upper()}: byte {error.start} (line {line}) belongs to another encoding;"
            ' save it as UTF-8 (in Excel: "CSV UTF-8"), or convert it, if it is of Windows by iconv -f CP1252 -t UTF-8.'
        ) from None
    if "\0" in text[:1000]:
        raise UserError(f"The table {path} is no text in UTF-8; save it as CSV (UTF-8).")
    content = content if encoding == "utf-8" else text.encode()
    return content if content.endswith((b"\n", b"\r")) else content + b"\n"


def _read_csv(path: Path, content: bytes, choose: Choose) -> Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    header, separator = _header(path, content)
    content = _without_empty_end(content, separator)
    names = choose(header)
    places = {role: f"f{header.index(name)}" for role, name in names.items()}
    ragged: list[object] = []

    def note(row: object) -> str:
        ragged.append(row)
        return "skip"

    def where(rows: Sequence[int]) -> list[str]:
        return _line_names(path, content, separator, rows)

    try:
        found = arrow_csv.read_csv(
            pa.BufferReader(content),
            arrow_csv.ReadOptions(autogenerate_column_names=True),
            arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(places.values(), pa.large_string()),
                include_columns=list(dict.fromkeys(places.values())),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        _check_records(path, content, separator)
        raise UserError(
            f"The table {path} cannot be read ({one_line(str(error), 200)}); repair it."
        ) from None
    if ragged:
        _check_records(path, content, separator)
    columns = {role: found[place].slice(1).combine_chunks() for role, place in places.items()}
    table = Table(path, columns, names, where)
    if any(_has_line_break(column) for column in columns.values()):  # perhaps by a quote that is not closed
        _check_records(path, content, separator)
    return table


def _without_empty_end(content: bytes, separator: str) -> bytes:
    """A table without the rows of empty cells that spreadsheets leave at its end. It ends with a line break."""
    end = len(content.rstrip(f"{separator}\t\r\n ".encode()))
    line_end = re.compile(rb"[\r\n]").search(content, end)
    rest = content[line_end.end() :] if line_end else b""
    return content.removesuffix(rest) if separator.encode() in rest else content


def _has_line_break(column: pa.LargeStringArray) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring(column, "\n")).as_py())


def _header(path: Path, content: bytes) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    best: tuple[list[str], str] = ([], "")
    for separator in SEPARATORS[path.suffix.lower()]:
        row = next((row for _, row in _records(path, content, separator)), [])
        names = [name.strip() for name in row]
        if len(names) > len(best[0]):
            best = names, separator
    return best


def _records(path: Path, content: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a table that are not empty, each with the number of its first line.

    Raises `UserError` for a quotation mark that is not closed.
    """
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")
    reader = csv.reader(text, delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: it is no valid CSV ({error}); a cell with quotation marks must be enclosed in them,"
            ' and each one inside doubled, as "a ""b"" c".'
        ) from None


def _check_records(path: Path, content: bytes, separator: str) -> None:
    """Raises `UserError` for the first record with another number of cells than the header, or that is no CSV."""
    width = None
    for line, row in _records(path, content, separator):
        width = len(row) if width is None else width
        if len(row) != width:
            raise UserError(
                f"{path}, line {line}: {counted(len(row), 'cell')}, but the header has {width}; a cell that contains"
                f" {'a tab' if separator == chr(9) else repr(separator)} must be quoted."
            )


def _line_names(path: Path, content: bytes, separator: str, rows: Sequence[int]) -> list[str]:
    names, wanted = [], iter(rows)
    row = next(wanted, None)
    for index, (line, _) in enumerate(_records(path, content, separator), -1):
        if row is None:
            break
        if index == row:
            names.append(f"line {line}")
            row = next(wanted, None)
    return names


def _read_parquet(path: Path, content: bytes, choose: Choose) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(content))
        names = choose(file.schema_arrow.names)
        found = file.read(list(dict.fromkeys(names.values())))
        found.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = one_line(str(error), 200)
        raise UserError(
            f"The table {path} is no Parquet file, or it is damaged ({reason}); write it again."
        ) from None
    columns = {role: as_text(path, role, found[name], name) for role, name in names.items()}
    return Table(path, columns, names, lambda rows: [f"row {row + 1}" for row in rows])


def as_text(path: Path, role: str, values: pa.ChunkedArray, name: str) -> pa.LargeStringArray:
    """A column's values as text; whole numbers without a fraction, also those of a column with missing values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_nested(kind) and not pa.types.is_struct(kind):
        what = (
            "labels are lists: multi-label classification is not supported"
            if role == "label"
            else "cells are lists"
        )
        raise UserError(f"{path}, column {printable(name)}: its {what}; give each image one {role}.")
    try:
        if pa.types.is_floating(kind):  # whole numbers, if some values are missing
            values = values.cast(pa.int64())
        elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
            raise pa.ArrowInvalid(f"it has values of type {kind}")
        text = values.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path}, column {printable(name)}: its values must be text or whole numbers"
            f" ({one_line(str(error), 100)}); change the column's type."
        ) from None
    return pc.fill_null(text, "").combine_chunks()


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are text, or all missing."""
    import pyarrow as pa

    types = pa.types
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_null,
    )
    return any(check(kind) for check in checks)
