"""Where an audit keeps its results: small Parquet parts, written atomically, so that it resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memfold.types import InputError

Columns = dict[str, list[Any]]


class Store:
    """An audit's directory.

    Finished pieces of work stand in `parts/`, one Parquet file each, named by stage and first
    item. A piece that exists is never computed again; a file appears whole or not at all.

    Args:
        directory: where; created if need be.
        fingerprint: what the results depend on; a directory that holds another audit is refused.
        overwrite: discard what another audit left there.
    """

    def __init__(
        self, directory: str | Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.directory = Path(directory)
        self.parts = self.directory / "parts"
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._claim(json.loads(json.dumps(fingerprint)), overwrite)
        except OSError as error:
            raise InputError(
                f"{directory} cannot be written to ({error.strerror or error}): "
                "choose another --out"
            ) from error

    def _claim(self, fingerprint: dict[str, Any], overwrite: bool) -> None:
        path = self.directory / "plan.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(
                    f"{path} is damaged; choose another --out, or --overwrite"
                ) from error
            changed = sorted(
                k for k in {*found, *fingerprint} if found.get(k) != fingerprint.get(k)
            )
            if changed and not overwrite:
                raise InputError(
                    f"{self.directory} holds another audit ({', '.join(changed)} differ); choose "
                    "another --out, or --overwrite to discard it"
                )
            if changed:
                for part in self.parts.glob("*.parquet"):
                    part.unlink()
        write_text(path, json.dumps(fingerprint, indent=1))

    def piece(self, stage: str, start: int, compute: Callable[[], Columns]) -> Columns:
        """Read one piece of work, or compute it and keep it.

        Args:
            stage: a name of the program's own, never of the user's.
            start: the first item of the piece.
            compute: makes the columns.

        Returns:
            The columns, as lists.

        Raises:
            InputError: the file of an earlier run is damaged.
        """
        path = self.parts / f"{stage}-{start:08d}.parquet"
        if not path.exists():
            write_table(path, compute())
        return read_table(path)

    def has(self, stage: str, start: int) -> bool:
        """Tell whether a piece is there already."""
        return (self.parts / f"{stage}-{start:08d}.parquet").exists()


def concat(pieces: Sequence[Columns]) -> Columns:
    """Join pieces of the same columns."""
    return {k: [v for piece in pieces for v in piece[k]] for k in (pieces[0] if pieces else {})}


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns to a Parquet file, atomically.

    Args:
        path: where.
        columns: lists or arrays of one length.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.table(dict(columns)), temporary)
    os.replace(temporary, path)


def read_table(path: Path) -> Columns:
    """Read a Parquet file.

    Args:
        path: where.

    Returns:
        Its columns, as lists.

    Raises:
        InputError: it is damaged.
    """
    try:
        return pq.read_table(path).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is damaged; delete this file and run the same command again: "
            "only this piece is computed anew"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically.

    Args:
        path: where.
        text: its contents.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
