"""What the commands print."""

from __future__ import annotations

import json
import math
from typing import Any

import typer


def printable(text: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def print_json(value: Any) -> None:
    """Print the one document of --json; NaN and infinity, which JSON has not, become null."""
    typer.echo(json.dumps(_finite(value), indent=1))


def note_half(half: bool, command: str, quiet: bool) -> None:
    """Say that --half changes nothing where no network runs."""
    if half and not quiet:
        typer.echo(f"Note: {command} runs no network; --half changes nothing here", err=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    table: dict[str, list[Any]], title: str, as_json: bool, limit: int | None = None
) -> None:
    if as_json:
        print_json({"title": title, "rows": table})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [k for k, v in table.items() if not (v and isinstance(v[0], list))]
    typer.echo(title)
    shown = Table()
    for name in names:
        shown.add_column(name, justify="left" if name == "id" else "right")
    rows = list(zip(*(table[k] for k in names), strict=True))
    for row in rows[:limit]:
        shown.add_row(*(Text(_cell(value)) for value in row))
    Console().print(shown)
    if limit is not None and len(rows) > limit:
        typer.echo(f"{len(rows) - limit} more; --out FILE writes all, --limit prints more.")


def _cell(value: Any) -> str:
    """Write a value; what a terminal would obey (escape sequences in file names) is replaced."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(text)
