"""How a command ends: its exit code, and one line on stderr for whatever went wrong.

Exit codes: 0 done, 1 found what `--fail-on` names, 2 the input cannot be used (or the disk is full,
or memory runs out), 3 inconclusive, 70 a fault of memfold's own, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from memfold.cli._streams import guard_streams

FOUND, BAD_INPUT, INCONCLUSIVE, CRASH, INTERRUPTED, TERMINATED = 1, 2, 3, 70, 130, 143

# Commands that keep finished work in --out, and go on with it when they are run again.
RESUMED = frozenset({"audit", "bench", "calibrate", "reproduce"})
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDY = {
    **dict.fromkeys(_FULL, "make room there, or choose another place"),
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a file stands in the way; choose another place",
    errno.EACCES: "mend the permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.EPERM: "mend the permissions, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the name",
    errno.ELOOP: "mend the links, or choose another place",
}


class Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way up takes it for a fault."""


def bounded(work: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        work: does it and gives its exit code.
        arguments: those of the command line, without the program's name.

    Returns:
        The exit code.
    """
    guard_streams()
    try:
        with _terminable():
            code = _checked(arguments) or work()
            sys.stdout.flush()
        if code == INTERRUPTED:  # typer makes an exit code of KeyboardInterrupt
            _say(_stopped("Ctrl-C", arguments))
        return code
    except SystemExit as stop:
        if isinstance(stop.__context__, OSError):  # typer exits with 1 where a pipe broke
            return _end(stop.__context__, arguments)
        return BAD_INPUT if stop.code not in (None, 0) else 0
    except BaseException as error:
        return _end(error, arguments)


def _checked(arguments: Sequence[str]) -> int:
    """Refuse arguments that no report can hold."""
    for argument in arguments:
        if any("\ud800" <= c <= "\udfff" for c in argument):
            _say(
                f"the argument {argument!a} is no UTF-8 text here; rename the file, or set "
                "PYTHONUTF8=1 where the locale has no UTF-8"
            )
            return BAD_INPUT
    return 0


def _end(error: BaseException, arguments: Sequence[str]) -> int:
    """Say in one line what ended the command; give the exit code."""
    if type(error).__name__ == "Abort" and error.__cause__ is not None:
        error = error.__cause__  # typer takes an EOFError for a user who left
    code, line = _read(error, arguments)
    asked = "--debug" in arguments or os.environ.get("MEMFOLD_DEBUG", "0") not in ("", "0")
    if asked and code in (BAD_INPUT, CRASH):
        with suppress(OSError, ValueError, AttributeError):
            traceback.print_exception(error, file=sys.stderr)
    _say(line)
    return code


def _read(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    """Give the exit code of an error, and its line."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, _stopped("Ctrl-C", arguments)
    if isinstance(error, Terminated):
        return TERMINATED, _stopped("SIGTERM", arguments)
    line = _bad_input(error, arguments) or _no_memory(error) or _system(error) or _worker(error)
    if line is not None:
        return BAD_INPUT, line
    place = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(place[-1].filename)}:{place[-1].lineno}" if place else ""
    return CRASH, (
        f"a fault of memfold's own, not yours: {_named(error)}{where}; please report this line "
        "with the command and `memfold --version`; --debug shows the traceback"
    )


def _bad_input(error: BaseException, arguments: Sequence[str]) -> str | None:
    """Read what memfold, or the parser of the command line, says of the input."""
    from memfold.types import InputError

    if isinstance(error, InputError):
        return str(error)
    told = getattr(error, "format_message", None)  # of the parser
    if told is None:
        return None
    context = getattr(error, "ctx", None)
    place = "memfold" if context is None else context.command_path
    value = _given(getattr(error, "param", None), arguments)
    text = told().replace("Invalid value for", f"Invalid value{value} for").rstrip(".")
    return f"{text or 'a command is missing'}; see {place} -h"


def _given(parameter: object, arguments: Sequence[str]) -> str:
    """Find what stands behind an option; the parser's message leaves it out."""
    for name in getattr(parameter, "opts", ()):
        for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
            if word == name or word.startswith(f"{name}="):
                return f" {after if word == name else word.removeprefix(f'{name}=')!r}"
    return ""


def _no_memory(error: BaseException) -> str | None:
    from memfold.tensors import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    return (
        f"memory ran out ({_named(error)}); take smaller numbers (--batch-size, --noises, "
        "--images, --workers), a smaller model or a larger machine, and run the command again"
    )


def _system(error: BaseException) -> str | None:
    """Read what the operating system says of a file; what names none is no fault of a file's."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and error.errno not in _FULL | {errno.EMFILE, errno.EIO}:
        return None
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    remedy = _REMEDY.get(error.errno, "mend that")
    return f"{place}{os.strerror(error.errno)}; {remedy}, and run the same command again"


def _worker(error: BaseException) -> str | None:
    if type(error).__name__ != "BrokenProcessPool":
        return None
    return (
        "a process of --workers was ended from outside, perhaps for want of memory; take fewer "
        "--workers, and run the same command again to go on where it was"
    )


def _named(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _stopped(by: str, arguments: Sequence[str]) -> str:
    command = next((a for a in arguments if not a.startswith("-")), "")
    more = "; run the same command again to go on where it was" if command in RESUMED else ""
    return f"stopped by {by}{more}"


def _say(line: str) -> None:
    """Print one line; what a terminal would obey is replaced."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))
    with suppress(OSError, ValueError, AttributeError):  # stderr may be full, closed or none
        print(f"memfold: {shown}", file=sys.stderr, flush=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM inside the block; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
