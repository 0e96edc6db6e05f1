"""What every option allows, in one table; checked before any work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memfold.datasets.prompts import LONGEST
from memfold.tensors import check_device
from memfold.types import InputError

# Whole numbers from ... to ...; the upper ends are far beyond use, and below what overflows.
WHOLE = {
    "generate": (1, 10**7), "copies": (1, 10**7), "limit": (1, 10**9),
    "noises": (2, 10**5), "probes": (2, 10**5),
    "neighbors": (3, 10**6), "max_reference": (10, 10**9), "batch_size": (1, 10**6),
    "images": (1, 10**4), "steps": (2, 10**4), "shown": (0, 10**6), "workers": (1, 1024),
    "attacked": (0, 10**6), "height": (8, 2**16), "width": (8, 2**16), "seed": (0, 2**32 - 1),
    "class_label": (0, 10**9),
}  # fmt: skip
# Names of files and the like: none of them may be empty.
NAMED = (
    "model", "data", "out", "holdout", "samples", "truth", "embedding", "prompts", "ordinary",
    "estimator", "data_estimator", "device", "mitigate",
)  # fmt: skip


def check(settings: Mapping[str, Any]) -> None:
    """Refuse values that cannot be used, each in one line with its remedy.

    Args:
        settings: options by name; None where one was not given. Names that the table does not
            hold are left alone.

    Raises:
        InputError: with the option, its value and what it allows.
    """
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, str):
            _check_text(name, value)
        if name in WHOLE:
            _check_whole(name, value)
        if name == "alpha" and not (_is_number(value) and 0 < value < 1):
            raise InputError(f"--alpha = {value}; choose a rate between 0 and 1, such as 0.05")
        if name in ("sigma", "copy_limit") and not (_is_number(value) and 0 < value < math.inf):
            raise InputError(f"{option(name)} = {value}; choose a number above 0")
        if name == "guidance_scale" and not (_is_number(value) and 0 <= value <= 1000):
            raise InputError(f"--guidance-scale = {value}; choose a number from 0 to 1000")
        if name == "tolerance" and not (_is_number(value) and 0 <= value < 1):
            raise InputError(f"--tolerance = {value}; choose a share from 0 to 1, like 0.05")
    if settings.get("device") is not None:
        check_device(settings["device"])


def check_out(out: str) -> None:
    """Refuse a directory of results that cannot be written.

    Args:
        out: the directory.

    Raises:
        InputError: it is a file, or may not be written.
    """
    _check_text("out", str(out))
    if os.path.lexists(out) and not Path(out).is_dir():
        what = "a link to nowhere" if os.path.islink(out) else "a file"
        raise InputError(f"--out {out} is {what}; choose a directory")
    parent = Path(out).absolute()
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(
            f"--out {out} cannot be written: {parent} is a file; choose another directory"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written; choose another directory")


def check_file(name: str, path: str | None, suffixes: Sequence[str]) -> None:
    """Refuse a file of results that cannot be written.

    Args:
        name: of the option.
        path: the file; None for none.
        suffixes: those that it may have; any where empty.

    Raises:
        InputError: another suffix, a directory, or a place that is none.
    """
    if path is None:
        return
    _check_text(name, str(path))
    file, shown = Path(path), option(name)
    if suffixes and file.suffix not in suffixes:
        article = "an" if suffixes[0] == ".svg" else "a"
        raise InputError(f"{shown} {path}: write to {article} {' or '.join(suffixes)} file")
    if file.is_dir():
        example = f"results{suffixes[0] if suffixes else '.json'}"
        raise InputError(f"{shown} {path} is a directory; name a file, such as {example}")
    parent = file.absolute().parent
    if not parent.is_dir():
        raise InputError(
            f"{shown} {path} cannot be written: there is no directory {parent}; make it"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{shown} {path} cannot be written; choose another directory")


def check_prompt(prompt: str) -> None:
    """Refuse a prompt without words, or one that no report can hold.

    Args:
        prompt: the words.

    Raises:
        InputError: with the prompt and the remedy.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"--prompt {prompt!r}: the prompt has no words; write some")
    _check_text("prompt", prompt)
    if len(prompt) > LONGEST:
        raise InputError(
            f"--prompt {prompt[:40]!r}... has {len(prompt)} characters; take {LONGEST} or less"
        )


def option(name: str) -> str:
    """Give the option of the command line that a name belongs to."""
    return f"--{name.replace('_', '-')}"


def _check_whole(name: str, value: Any) -> None:
    low, high = WHOLE[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{option(name)} = {value!r}; take a whole number, {low} or more")
    if value < low:
        raise InputError(f"{option(name)} = {value}; take {low} or more")
    if value > high:
        raise InputError(f"{option(name)} = {value}; take {high} or less")


def _check_text(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{option(name)} {value!a} is no UTF-8 text; rename it") from error
    if "\0" in value:
        raise InputError(f"{option(name)} {value!r} holds a zero byte; take it out")
    if name in NAMED and not value.strip():
        raise InputError(f"{option(name)} {value!r} is empty; name one, or leave the option out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
