"""Seals: hashes inside an audit's files, by which any change of a byte is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memfold.files import file_hash, table_bytes, write_text

Columns = dict[str, list[Any]]

_MARK = b"memfold-sha256:"
_BLANK = b"0" * 64
_OWNER = "memfold.owner"
RECORDS = ("audit.json", "bench.json", "mitigation.json")


def sealed_part(columns: Mapping[str, Any], owner: str) -> bytes:
    """Give columns as a Parquet file that holds its own SHA-256.

    The hash is that of the file with 64 zeros in the hash's place, within the metadata.

    Args:
        columns: lists of one length, by name.
        owner: what the part belongs to: its plan and its name.

    Returns:
        The bytes of the file.
    """
    mark = (_MARK + _BLANK).decode()
    data = table_bytes(columns, {_OWNER: owner, "memfold.seal": mark})
    return _stamped(data, hashlib.sha256(data).hexdigest().encode())


def read_part(path: Path, owner: str) -> tuple[Columns, str]:
    """Read a part, and say what is wrong with it.

    Args:
        path: the file.
        owner: what it must belong to.

    Returns:
        Its columns, as lists, and "": or no columns, and what is wrong.
    """
    if path.is_symlink():
        return {}, "is a symbolic link"
    try:
        data = path.read_bytes()
    except OSError as error:
        return {}, f"cannot be read ({error.strerror})"
    place = data.rfind(_MARK)
    if place < 0:
        return {}, "holds no hash"
    found = data[place + len(_MARK) :][: len(_BLANK)]
    if hashlib.sha256(_stamped(data, _BLANK)).hexdigest().encode() != found:
        return {}, "does not match its hash"
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException:
        return {}, "is no Parquet file"
    if (table.schema.metadata or {}).get(_OWNER.encode()) != owner.encode():
        return {}, "belongs to another plan"
    return table.to_pydict(), ""


def _stamped(data: bytes, digest: bytes) -> bytes:
    start = data.rfind(_MARK) + len(_MARK)
    return data[:start] + digest + data[start + len(digest) :]


def digest_of(value: Any) -> str:
    """Hash plain data: the SHA-256 of its JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, facts: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Write a run's summary with the hash of every file that belongs to it, and of itself.

    Args:
        path: one of `RECORDS`, in the directory of the files.
        facts: plain data.
        names: the files, relative to the directory.

    Returns:
        What the file holds.
    """
    body = {**facts, "files": {name: file_hash(path.parent / name) for name in names}}
    found = {**body, "sha256": _own(body)}
    write_text(path, _text(found))
    return found


def read_record(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run's summary, and check its own hash and those of its files.

    Args:
        path: one of `RECORDS`.

    Returns:
        What it holds, empty where it cannot be read, and a line for each thing that differs.
    """
    try:
        text = path.read_bytes().decode()
        found = json.loads(text)
        body = {k: v for k, v in found.items() if k != "sha256"}
        files = {str(k): str(v) for k, v in body["files"].items()}
    except OSError as error:
        return {}, [f"{path.name} cannot be read ({error.strerror})"]
    except (ValueError, RecursionError):
        return {}, [f"{path.name} is damaged: it is no JSON"]
    except (AttributeError, KeyError, TypeError):
        return {}, [f"{path.name} holds no hashes of its files"]
    differs = []
    if found.get("sha256") != _own(body) or _text(found) != text:
        differs.append(f"{path.name} does not match its own hash")
    differs += [line for k, v in files.items() if (line := _differs(path.parent, k, v))]
    return found, differs


def _own(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()


def _text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1)


def _differs(directory: Path, name: str, wanted: str) -> str:
    path = directory / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name} lies outside the directory"
    if path.is_symlink():
        return f"{name} is a symbolic link"
    if not path.is_file():
        return f"{name} is missing"
    return "" if file_hash(path) == wanted else f"{name} does not match its hash"
