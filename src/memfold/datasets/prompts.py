"""Prompt lists from the files that people keep them in: tables, JSON, plain text.

What is read is refused rather than repaired: a prompt that is missing or no text ends in an error
that names its row. Prompts stay as they stand, duplicates included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfold.types import InputError

from ._tables import decoded, parse_separated
from .families import prompt_families

PROMPT_COLUMNS = ("prompt", "caption", "text", "prompts", "captions")
LONGEST = 20_000  # characters of a prompt: text encoders read 77 to 512 tokens
KIND_COLUMNS = ("overfit_type", "type", "kind")
# Names of the kinds in published lists: Webster (2023) and Hintersdorf et al. (2024). RV is
# verbatim too (the image of another caption); N is none.
_KINDS = {
    "verbatim": "verbatim", "vm": "verbatim", "mv": "verbatim", "rv": "verbatim",
    "template": "template", "tm": "template", "tv": "template",
    "memorized": "memorized", "near": "near", "none": "none", "n": "none",
}  # fmt: skip
Rows = Sequence[tuple[str, dict[str, Any]]]  # where each row stands, and its values


@dataclass(frozen=True)
class Prompts:
    """A list of prompts, in the order of its file.

    Attributes:
        prompts: the words, as they stand in the file.
        kinds: "verbatim", "template", "memorized" (kind unknown), "near" (draws a variation of
            something memorized, no copy) or "none" (not memorized) where
            the file says so, None where it does not.
        families: near-duplicates share a label; the file's column `family`, or `prompt_families`.
        columns: every other column of the file, by its own name.
        source: the file.
        notes: what was left out or is worth to know, one sentence each.
    """

    prompts: list[str]
    kinds: list[str | None]
    families: list[str]
    columns: dict[str, list[Any]]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.prompts)


def read_prompts(path: str | Path, *, column: str | None = None) -> Prompts:
    """Read a list of prompts.

    By suffix: `.csv` and `.tsv` with `;`, `,` or tab between the columns; `.jsonl`, `.ndjson` and
    `.json` (a list, or a line each) of objects or strings; `.parquet`; `.txt`, a prompt a line.
    Text is UTF-8, or UTF-16 with its byte order mark. The prompts are the column named prompt,
    caption, text, prompts or captions (the first of these, upper or lower case); kinds that of
    overfit_type, type or kind, if it holds verbatim (VM, MV, RV), template (TM, TV), memorized or
    none (N); families that of family. Duplicates are kept: they are of one family. Blank lines of
    plain text are skipped; an empty prompt anywhere else is an error.

    Args:
        path: the file.
        column: the column of the prompts, if it has another name.

    Returns:
        The prompts.

    Raises:
        InputError: the file is missing, damaged, of an unknown kind, holds no prompts, has no such
            column, or a prompt is no text; the message names the row and the remedy.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{path} is a directory; pass a file of prompts")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise InputError(f"{path}: the suffix {file.suffix!r} is unknown; name the file {known}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the name") from error
    rows = reader(content, str(path))
    if not rows:
        raise InputError(f"{path} holds no prompts; write one a line")
    return _assembled(rows, str(path), column)


def _assembled(rows: Rows, source: str, column: str | None) -> Prompts:
    """Find the columns, and check every prompt."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    own = _named(names, (column,) if column else PROMPT_COLUMNS)
    if own is None:
        looked = repr(column) if column else ", ".join(PROMPT_COLUMNS)
        raise InputError(
            f"{source}: no column of prompts among {', '.join(map(repr, names)) or 'none'}; "
            f"looked for {looked}; rename one of them to prompt"
        )
    prompts = [_text(row.get(own), f"{source}, {where}") for where, row in rows]
    values = {name: [row.get(name) for _, row in rows] for name in names if name != own}
    kind, family = _named(list(values), KIND_COLUMNS), _named(list(values), ("family",))
    found = None if kind is None else _kinds(values[kind], [w for w, _ in rows], source, kind)
    if kind is not None and found is not None:
        del values[kind]
    families = prompt_families(prompts) if family is None else _families(rows, family, source)
    if family is not None:
        del values[family]
    twice = len(prompts) - len(set(prompts))
    notes = (f"{twice} of {len(prompts)} prompts repeat an earlier one",) if twice else ()
    return Prompts(prompts, found or [None] * len(prompts), families, values, source, notes)


def _named(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the first wanted name that is there: exactly, or else in upper or lower case."""
    for want in wanted:
        if want in names:
            return want
        for name in names:
            if name.strip().casefold() == want.casefold():
                return name
    return None


def _text(value: Any, where: str) -> str:
    if _missing(value):
        raise InputError(f"{where}: the prompt is missing; fill it in or remove the row")
    if not isinstance(value, str):
        what = f"{str(value)[:40]!r}, a {type(value).__name__}"
        raise InputError(f"{where}: the prompt is {what} and no text; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the prompt holds half a character; write it anew") from error
    if "\0" in value:
        raise InputError(f"{where}: the prompt holds a zero byte; take it out")
    if len(value) > LONGEST:
        raise InputError(f"{where}: the prompt has {len(value)} characters; take {LONGEST} or less")
    return value


def _missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kinds(
    values: Sequence[Any], where: Sequence[str], source: str, name: str
) -> list[str | None] | None:
    """Translate the kinds; None if the column holds something else altogether."""
    known = [None if _missing(v) else _KINDS.get(str(v).strip().casefold(), "?") for v in values]
    if "?" not in known:
        return known
    if not any(k not in (None, "?") for k in known):
        return None
    i = known.index("?")
    raise InputError(
        f"{source}, {where[i]}: {name} = {str(values[i])[:40]!r} is unknown beside kinds that are "
        "known; write verbatim, template, memorized or none, or leave it empty"
    )


def _families(rows: Rows, name: str, source: str) -> list[str]:
    for where, row in rows:
        if _missing(row.get(name)):
            raise InputError(
                f"{source}, {where}: {name} is missing; fill it in for every row, or remove the "
                "column"
            )
    return [str(row[name]).strip() for _, row in rows]


def _read_separated(content: bytes, source: str) -> Rows:
    header, rows = parse_separated(decoded(content, source), source)
    return [(where, dict(zip(header, row, strict=True))) for where, row in rows]


def _read_json(content: bytes, source: str) -> Rows:
    text = decoded(content, source)
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and text.lstrip()[0] == "[":
        values = _parsed(text, source)
        return [_row(v, f"entry {i}", source) for i, v in enumerate(values, 1)]
    return [_row(_parsed(v, f"{source}, line {i}"), f"line {i}", source) for i, v in lines]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{where} is no JSON ({reason}); write a list, or an object or string a line"
        ) from error


def _row(value: Any, where: str, source: str) -> tuple[str, dict[str, Any]]:
    if isinstance(value, dict):
        return where, value
    if isinstance(value, str):
        return where, {"prompt": value}
    raise InputError(
        f"{source}, {where} is a {type(value).__name__}; write an object with a key prompt, or a "
        "string"
    )


def _read_lines(content: bytes, source: str) -> Rows:
    lines = decoded(content, source).split("\n")
    return [(f"line {i}", {"prompt": line}) for i, line in enumerate(lines, 1) if line.strip()]


def _read_parquet(content: bytes, source: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        return [(f"row {i}", row) for i, row in enumerate(table.to_pylist(), 1)]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{source} is no Parquet file ({reason}); write it again") from error


_READERS: dict[str, Callable[[bytes, str], Rows]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".txt": _read_lines,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
