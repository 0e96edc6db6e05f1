"""Standard streams that do not end a command: a reader that left, no UTF-8, closed ones."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def guard_streams() -> None:
    """Make the process's own stdout and stderr outlive their readers; others are left alone.

    A pipe that nobody reads swallows the rest, so that the exit code stays the command's own.
    Characters that the encoding lacks are written as escapes. Descriptors 0 to 2 that are closed
    are opened on nothing: the next file opened would take their place, and be printed into.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one: this
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _guarded(stream, descriptor))


def _guarded(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(descriptor, "w", closefd=False)),  # type: ignore[type-var]
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=stream is not None and (descriptor == 2 or stream.isatty()),
        write_through=descriptor == 2,
    )


class _Pipe(io.FileIO):
    """A file whose reader may leave, or whose disk may be full."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Write, or swallow what nobody reads; a full disk is told once, on stderr."""
        try:
            return super().write(data)
        except OSError as error:
            empty = os.open(os.devnull, os.O_WRONLY)
            os.dup2(empty, self.fileno())
            os.close(empty)
            if isinstance(error, BrokenPipeError) or self.fileno() == 2:
                return len(data)
            raise OSError(error.errno, error.strerror, "standard output") from error
