"""Files that appear whole or not at all, and CSV cells that no spreadsheet takes for formulas."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PREFIX, _SUFFIX = ".memfold-", ".tmp"
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it appears whole or not at all, even if power fails.

    The bytes go to a temporary file of an unforeseeable name beside it, onto the disk, and only
    then take the file's name. A symbolic link of that name is replaced, not followed.

    Args:
        path: where.
        data: the contents.

    Raises:
        OSError: it cannot be written (`filename` is `path`); what stood there stays.
    """
    target = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX, suffix=_SUFFIX)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    _sync(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: where.
        text: the contents.
    """
    write_bytes(path, text.encode())


def table_bytes(columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """Give columns as the bytes of a Parquet file.

    Args:
        columns: lists or arrays of one length, by name.
        metadata: key-value metadata of the file.

    Returns:
        The bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if metadata is not None:
        table = table.replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Any]) -> None:
    """Write columns to a Parquet file, whole or not at all.

    Args:
        path: where.
        columns: lists or arrays of one length, by name.
    """
    write_bytes(path, table_bytes(columns))


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as CSV; a text that a spreadsheet would run as a formula gets an apostrophe.

    Such a text begins with = + - @, a tab or a line break. Numbers, negative ones too, stay what
    they are.

    Args:
        rows: the rows, the heading first.

    Returns:
        The text.

    Example:
        >>> print(csv_text([["id", "lid"], ["=1+1", -2.5]]).strip())
        id,lid
        '=1+1,-2.5
    """
    buffer = io.StringIO()
    csv.writer(buffer).writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hash a file's bytes: "sha256:" and 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Remove temporary files that killed writers left; only where no other writes meanwhile.

    Args:
        directory: where to look.
    """
    for path in Path(directory).glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(directory: Path) -> None:
    """Bring a directory's names onto the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
