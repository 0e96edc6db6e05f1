"""The command line: a subcommand is a few lines over the library."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import lazy_loader as _lazy

from memfold.cli._boundary import bounded

if TYPE_CHECKING:
    from memfold.cli._app import app

# The commands import torch, which takes seconds: a Ctrl-C while they do must find the boundary.
__getattr__, __dir__, _ = _lazy.attach(__name__, submod_attrs={"_app": ["app"]})
__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; whatever goes wrong is one line and an exit code."""
    sys.exit(bounded(_run, sys.argv[1:]))


def _run() -> int:
    from memfold.cli._app import app

    return app(prog_name="memfold", standalone_mode=False) or 0
