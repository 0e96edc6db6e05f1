"""Dictionaries and tables out of files, with complaints that name the file and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from memfold.types import InputError

REMEDY = "pass a directory that `memfold audit` wrote, or run the audit again"


class Fields:
    """A dictionary out of a file, whose complaints name the file and the key."""

    def __init__(self, values: Mapping[str, Any], file: Path, path: str = "") -> None:
        self.values, self.file, self.path = values, file, path

    def fail(self, key: str, value: object, needed: str) -> InputError:
        """The error that says what stands under a key and what is needed there."""
        return InputError(
            f"{self.file}: {self.path}{key} is {str(value)[:80]!r}, {needed} is needed; {REMEDY}"
        )

    def get(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value under a key, of the given kind; the default where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self.fail(key, value, getattr(kind, "__name__", "a number"))
        return value

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        """A text; empty, or the default, where it is absent."""
        value = self.get(key, str, None)
        if value is None and required:
            raise self.fail(key, value, "a text")
        return default if value is None else str(value)

    def number(self, key: str, *, required: bool = False) -> float:
        """A number; NaN where it is absent."""
        value = self.get(key, (int, float), None)
        if required and (value is None or not math.isfinite(value)):
            raise self.fail(key, value, "a finite number")
        return math.nan if value is None else float(value)

    def count(self, key: str) -> int | None:
        """A whole number."""
        value = self.number(key)
        return int(value) if math.isfinite(value) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where it is absent."""
        return tuple(str(value) for value in self.get(key, list, []))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, NaN for null; empty where it is absent."""
        values = self.get(key, list, [])
        if not all(value is None or isinstance(value, int | float) for value in values):
            raise self.fail(key, values, "a list of numbers")
        return tuple(math.nan if value is None else float(value) for value in values)

    def fields(self, key: str) -> Fields:
        """A dictionary within this one; empty where it is absent."""
        return Fields(self.get(key, dict, {}), self.file, f"{self.path}{key}.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if not path.is_file():
        raise InputError(f"{path} is missing; {REMEDY}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; {REMEDY}")
    return value


def read_rows(path: Path, required: Iterable[str]) -> list[Fields]:
    """The rows of a Parquet file that must have the required columns."""
    if not path.is_file():
        raise InputError(f"{path} is missing; {REMEDY}")
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not a readable Parquet file ({error}); {REMEDY}") from error
    absent = [name for name in required if name not in table.column_names]
    if absent:
        raise InputError(f"{path} has no column {', '.join(absent)}; {REMEDY}")
    return [Fields(row, path, f"row {i}, ") for i, row in enumerate(table.to_pylist())]
