"""What the executed examples of these pages need: run a command, and show it with its output."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "100",
    "TERM": "dumb",
    "PYTHONWARNINGS": "ignore",
}


def shell(command: str, code: int = 0) -> str:
    """Run a command of a page; return it with what it prints, without progress bars.

    Args:
        command: words as in a shell; `memfold` and `python` are those of this environment.
        code: the exit code that the page speaks of.

    Returns:
        Text for the page.

    Raises:
        RuntimeError: it ended with another one, which ends a strict build.
    """
    words = shlex.split(command.replace("\\\n", " "))
    argv = {"memfold": [sys.executable, "-m", "memfold"], "python": [sys.executable]}[words[0]]
    done = subprocess.run(
        [*argv, *words[1:]], env=os.environ | _ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode != code:
        raise RuntimeError(f"{command}\nended with {done.returncode}: {done.stderr[-2000:]}")
    errors = re.findall(r"^memfold: .*$", done.stderr, re.MULTILINE)
    shown = [f"$ {command}", done.stdout.strip("\n"), *errors]
    return "\n".join(part for part in shown if part)
