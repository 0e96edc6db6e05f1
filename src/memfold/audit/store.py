"""Where an audit keeps its results: small sealed Parquet parts, so that it resumes."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from memfold.files import remove_leftovers, write_bytes, write_table, write_text
from memfold.types import InputError

from .seal import RECORDS, Columns, digest_of, read_part, sealed_part, write_record

PLAN = "plan.json"
_LOCK = ".memfold.lock"
PART = re.compile(r"[a-z0-9-]+-\d{8}\.parquet")
_LINES = 5  # parts that are named one by one before they are counted


class Store:
    """An audit's directory, which is this run's alone until it ends.

    Finished pieces of work stand in `parts/`, one Parquet file each, named by stage and first
    item, sealed by a hash and tied to the plan. A piece that exists is never computed again; one
    that does not match its hash or the plan is, and a line says so.

    Use it in a `with` block, which lets go of the directory at its end. A run that is refused
    before its first piece leaves nothing behind.

    Args:
        directory: where; created if need be.
        fingerprint: what the results depend on, plain data; a directory that holds another audit
            is refused.
        overwrite: discard what another audit left there.

    Raises:
        InputError: it cannot be written to, another run is at work there, or it holds another
            audit.
    """

    def __init__(
        self, directory: str | Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.directory = Path(directory)
        self.parts = self.directory / "parts"
        self.plan: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self._digest = digest_of(self.plan)
        self._made: list[Path] = []
        self._fresh = False
        self._lock = FileLock(self.directory / _LOCK, timeout=0)
        try:
            self._begin(overwrite)
        except OSError as error:
            self._end(discard=True)
            raise InputError(
                f"{directory} cannot be written to ({error.strerror or error}): "
                "choose another --out"
            ) from error
        except BaseException:
            self._end(discard=True)
            raise

    def __enter__(self) -> Store:
        """Give the store."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Let go of the directory; where nothing was done in it, leave no trace."""
        self._end(discard=kind is not None)

    def piece(self, stage: str, start: int, compute: Callable[[], Columns]) -> Columns:
        """Read one piece of work, or compute it and keep it.

        Args:
            stage: a name of the program's own, never of the user's.
            start: the first item of the piece.
            compute: makes the columns.

        Returns:
            The columns, as lists.

        Raises:
            InputError: the file was changed during this run.
        """
        path = self.path(stage, start)
        if not self.has(stage, start):
            write_bytes(path, sealed_part(compute(), self._owner(path)))
        columns, wrong = read_part(path, self._owner(path))
        if wrong:
            raise InputError(
                f"{path} {wrong}: something else writes there; run the same command again"
            )
        return columns

    def has(self, stage: str, start: int) -> bool:
        """Tell whether a piece is there already."""
        return self.path(stage, start).exists()

    def path(self, stage: str, start: int) -> Path:
        """Give the file of a piece."""
        return self.parts / f"{stage}-{start:08d}.parquet"

    def finish(self, name: str, facts: Mapping[str, Any], outputs: Iterable[str]) -> dict[str, Any]:
        """Write the summary of the run, with the hashes of its outputs, plan and parts.

        Args:
            name: of the file, one of `RECORDS`.
            facts: plain data.
            outputs: names of the files that the run wrote.

        Returns:
            What the file holds: `facts`, `files` (hashes by name), and its own `sha256`.
        """
        parts = sorted(f"parts/{p.name}" for p in self._kept())
        return write_record(self.directory / name, facts, [PLAN, *outputs, *parts])

    def _begin(self, overwrite: bool) -> None:
        for path in (self.directory, *self.directory.parents):
            if not path.exists():
                self._made.append(path)
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in (self.parts, self.directory / PLAN, self.directory / _LOCK):
            _refuse_link(path)
        try:
            self._lock.acquire()
        except Timeout as error:
            self._made = []
            raise InputError(
                f"another run is at work in {self.directory}; wait for it, or choose another --out"
            ) from error
        self._claim(overwrite)

    def _claim(self, overwrite: bool) -> None:
        """Make the directory this plan's, or refuse; drop what cannot be used."""
        differs = self._differs(overwrite)
        if differs and not overwrite and not self._empty():
            raise InputError(
                f"{self.directory} holds another audit ({', '.join(differs)} differ); choose "
                "another --out, or --overwrite to discard it"
            )
        if not self.parts.exists():
            self._made.insert(0, self.parts)
            self.parts.mkdir()
        remove_leftovers(self.directory)
        remove_leftovers(self.parts)
        if differs and overwrite:
            self._discard_outputs()
        self._drop_parts(say=not (differs and overwrite))
        path, text = self.directory / PLAN, json.dumps(self.plan, indent=1)
        self._fresh = bool(differs) or not path.exists()
        if self._fresh or path.read_text("utf-8") != text:
            write_text(path, text)

    def _differs(self, overwrite: bool) -> list[str]:
        """Name what differs from the plan that stands there; nothing where none does."""
        path = self.directory / PLAN
        if not path.exists():
            return []
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            names = {*found.keys(), *self.plan}
            same = lambda k: digest_of(found.get(k)) == digest_of(self.plan.get(k))  # noqa: E731
            return sorted(k for k in names if not same(k))
        except (ValueError, RecursionError, AttributeError, OSError) as error:
            if not overwrite:
                raise InputError(
                    f"{path} is damaged; choose another --out, or --overwrite"
                ) from error
            if path.is_dir():
                raise InputError(f"{path} is a directory; choose another --out") from error
            return [PLAN]

    def _empty(self) -> bool:
        """Tell whether a plan stands there alone, of a run that ended before its first piece."""
        others = {p.name for p in self.directory.iterdir()} - {PLAN, "parts", _LOCK}
        return not self._kept() and all(name.startswith(".memfold-") for name in others)

    def _drop_parts(self, *, say: bool) -> None:
        """Remove parts that are damaged or of another plan; they are computed again."""
        wrong = {p: read_part(p, self._owner(p))[1] for p in self._kept()}
        dropped = [(path, why) for path, why in wrong.items() if why]
        for path, why in dropped:
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path} {why}; remove it, or choose another --out")
            path.unlink()
        lines = [f"parts/{p.name} {why}; it is computed again" for p, why in dropped[:_LINES]]
        if len(dropped) > _LINES:
            lines.append(f"{len(dropped) - _LINES} more parts likewise")
        for line in lines if say else ():
            tqdm.write(f"memfold: {line}", file=sys.stderr)

    def _discard_outputs(self) -> None:
        """Remove the summary, tables and report of another audit."""
        for record in RECORDS:
            path = self.directory / record
            with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, KeyError):
                names = json.loads(path.read_text(encoding="utf-8"))["files"].keys()
                for name in names:
                    if Path(name).name == name and name != PLAN:
                        (self.directory / name).unlink(missing_ok=True)
            if path.is_file():
                path.unlink()
        (self.directory / "report.html").unlink(missing_ok=True)

    def _kept(self) -> list[Path]:
        if not self.parts.is_dir():
            return []
        return sorted(p for p in self.parts.iterdir() if PART.fullmatch(p.name))

    def _end(self, *, discard: bool) -> None:
        if not self._lock.is_locked:
            self._remove_made()
            return
        with contextlib.suppress(OSError):
            if discard and self._fresh and not self._kept():
                (self.directory / PLAN).unlink(missing_ok=True)
            (self.directory / _LOCK).unlink(missing_ok=True)
        if discard:
            self._remove_made()
        self._lock.release()

    def _remove_made(self) -> None:
        """Remove the directories that this run made, as far as they are empty."""
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()

    def _owner(self, path: Path) -> str:
        return f"{self._digest}:{path.stem}"


def concat(pieces: Sequence[Columns]) -> Columns:
    """Join pieces of the same columns."""
    return {k: [v for piece in pieces for v in piece[k]] for k in (pieces[0] if pieces else {})}


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
        raise InputError(f"{path} is damaged; delete it and run the same command again") from error


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link; remove it, or choose another --out")


__all__ = ["PART", "PLAN", "Columns", "Store", "concat", "read_table", "write_table", "write_text"]
