"""Rows of Excel workbooks, by openpyxl: of every sheet whose header has a wanted column."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

from ftkit.data.readers.rows import Reading, Refusal
from ftkit.data.readers.text import LONGEST, Unreadable

TITLES = 20
LARGEST_PART = 1 << 30
"""Bytes of an unpacked part of the workbook, such as its table of texts, from which it is refused."""


def workbook_rows(reading: Reading) -> Iterator[tuple[int, Any]]:
    """Row number (a second sheet's go on where the first one's end), and the row's values or a refusal.

    Raises:
        Unreadable: it is no workbook, or no sheet has a row.
    """
    import openpyxl

    _check_size(reading)
    try:
        book = openpyxl.load_workbook(reading.path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl lets errors of zipfile, XML and its own types through
        raise Unreadable(f"not a readable Excel workbook: {error or type(error).__name__}") from error
    try:
        yield from _sheets(book.worksheets, reading)
    finally:
        book.close()


def _check_size(reading: Reading) -> None:
    try:
        with zipfile.ZipFile(reading.path) as archive:
            largest = max((part.file_size for part in archive.infolist()), default=0)
    except (OSError, zipfile.BadZipFile) as error:
        raise Unreadable(f"not a readable Excel workbook: {error}") from error
    if largest > LARGEST_PART:
        raise Unreadable(f"the workbook holds {largest / 2**30:.1f} GiB in one part", "save it as CSV UTF-8")


def _sheets(sheets: Any, reading: Reading) -> Iterator[tuple[int, Any]]:
    for sheet in sheets:
        sheet.reset_dimensions()  # some programs write a wrong one, and rows beyond it would be lost
    found = [(sheet, *_header(sheet, reading)) for sheet in sheets]
    wanted = [entry for entry in found if set(entry[2]) & set(reading.columns)]
    filled = [entry for entry in found if any(entry[2])]
    if not filled:
        raise Unreadable("no sheet of the workbook has a row")
    before = 0
    for sheet, at, header in wanted or filled[:1]:
        last = 0
        for last, row in enumerate(sheet.iter_rows(), start=1):
            filled_cells = [cell for cell in row if cell.value is not None]
            if last == at or not filled_cells:
                continue
            yield before + last, ("stands above the header", "") if last < at else _values(row, header)
        before += last
    for sheet, _, _ in filled:
        if wanted and all(sheet is not other for other, _, _ in wanted):
            reading.say(f"{reading.path.name}: sheet {sheet.title} (no wanted column)")


def _header(sheet: Any, reading: Reading) -> tuple[int, list[str]]:
    """Row number and names of the columns: the first row with a wanted one, else the first that is not empty."""
    first = (0, [])
    for number, row in enumerate(sheet.iter_rows(max_row=TITLES), start=1):
        names = [str(cell.value).strip() if cell.value is not None else "" for cell in row]
        if set(names) & set(reading.columns):
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise Unreadable(f"the header of sheet {sheet.title} has the column {twice[0]!r} twice")
            return number, names
        if any(names) and not first[0]:
            first = (number, names)
    return first


def _values(row: Any, header: list[str]) -> dict[str, Any] | Refusal:
    values: dict[str, Any] = {}
    for i, cell in enumerate(row):
        name = (header[i] if i < len(header) else "") or f"unnamed {i + 1}"
        named = i < len(header) and header[i]
        if cell.value is None:
            if named:
                values[name] = ""
        elif cell.data_type == "e":
            return "a cell holds an error of Excel", f"{cell.value} in {cell.coordinate}"
        else:
            values[name] = _text(cell)
            if isinstance(values[name], str) and len(values[name]) > LONGEST:
                return f"a cell is longer than {LONGEST >> 20} MiB", cell.coordinate
    return values


def _text(cell: Any) -> Any:
    """A cell as text; a number whose format shows something else than its digits, or a date, stays what it is."""
    value = cell.value
    if isinstance(value, str):
        from openpyxl.utils.escape import unescape

        return unescape(value).replace("\r\n", "\n").replace("\r", "\n") if "_x" in value or "\r" in value else value
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float) and cell.number_format in ("General", "0", "@"):
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)
    return value
