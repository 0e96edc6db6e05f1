"""Text of files, and tables with separators."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence

from memfold.types import InputError

DELIMITERS = {";": "semicolon", ",": "comma", "\t": "tab"}
_NONE = "\x1f"  # between units, and in no one's text: the separator of a table of one column
Table = tuple[list[str], list[tuple[str, list[str]]]]  # header; where each row stands, its fields


def decoded(content: bytes, source: str) -> str:
    r"""Decode UTF-8, or UTF-16 with its byte order mark; lines end in "\n" alone.

    Args:
        content: the file.
        source: its name, for errors.

    Returns:
        The text, without a byte order mark.

    Raises:
        InputError: it is no such text.
    """
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is no UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{source} holds zero bytes: it is no text; save it as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_separated(text: str, source: str) -> Table:
    """Parse a table with a header, whatever stands between its columns.

    Of semicolon, comma and tab those count that part the header; of these the one with which every
    row has as many fields as the header; of several, the one with the most. If none parts the
    header, the table has one column. Nothing is guessed from samples.

    Args:
        text: the table.
        source: the file's name, for errors.

    Returns:
        The header, and each row's place and fields.

    Raises:
        InputError: no separator fits, two fit equally, or two columns have one name.
    """
    found, reasons = {}, {}
    for delimiter in [d for d in DELIMITERS if len(_header(text, d)) > 1] or [_NONE]:
        try:
            found[delimiter] = _parse(text, delimiter)
        except ValueError as error:
            reasons[delimiter] = str(error)
    if not found:
        best = max(reasons, key=lambda d: len(_header(text, d)))
        name = DELIMITERS.get(best, "line end")
        raise InputError(
            f"{source}, read with the separator {name}: {reasons[best]}; put fields that hold "
            'the separator, quotes or line ends in "quotes", and double inner quotes'
        )
    widest = max(len(header) for header, _ in found.values())
    best_ones = [d for d, (header, _) in found.items() if len(header) == widest]
    if len(best_ones) > 1:
        names = " and ".join(DELIMITERS[d] for d in best_ones)
        raise InputError(
            f"{source} can be read with {names} between its columns; quote the fields that hold "
            "either"
        )
    header, rows = found[best_ones[0]]
    _refuse_twice(header, source)
    return header, rows


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


def _parse(text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for row in reader:
            if row:
                lines.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {start} is damaged ({error})") from error
    if not lines:
        return [], []
    header = [name.strip() for name in lines[0][1]]
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(f"line {line} has {len(row)} fields, the header {len(header)}")
    return header, [(f"line {line}", row) for line, row in lines[1:]]


def _refuse_twice(header: Sequence[str], source: str) -> None:
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise InputError(f"{source} has two columns named {twice[0]!r}; rename one of them")
