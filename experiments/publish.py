"""Copy what a full run found into the docs: figures, tables and claims.

    python -m experiments.publish out/reproduce/circle

The page docs/gallery/NAME.md includes them, and stands beside the folder that this fills.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

LARGEST = 400_000  # bytes of a figure
GALLERY = Path(__file__).parent.parent / "docs" / "gallery"


def publish(out: Path, gallery: Path = GALLERY) -> Path:
    """Copy the results of a full run; of each figure the smaller of .svg and .png."""
    made = json.loads((out / "run.json").read_text("utf-8"))
    if made["quick"]:
        raise ValueError(f"{out} is a quick run; the docs show full ones: run it without --quick")
    target = gallery / made["name"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(out.iterdir()):
        if path.name in {"run.json", "claims.json"} or path.suffix == ".md":
            shutil.copy(path, target)
        elif path.suffix == ".svg":
            smaller = min(path, path.with_suffix(".png"), key=lambda p: p.stat().st_size)
            if smaller.stat().st_size > LARGEST:
                raise ValueError(f"{smaller} has more than {LARGEST} bytes; draw it smaller")
            shutil.copy(smaller, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="+", help="directories of full runs")
    for folder in parser.parse_args().out:
        try:
            print(publish(folder))
        except (OSError, ValueError) as error:
            sys.exit(f"publish: {error}")
