"""Several benchmarks in one run."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path


def commands(parts, names, peers):
    """Return the command of each part; one that compares with peers needs their Python."""
    found = {}
    for name in names:
        if "{peers}" in parts[name] and peers is None:
            raise ValueError(f"{name} compares with other libraries: pass --peer-python")
        script, *options = shlex.split(parts[name].replace("{peers}", shlex.quote(str(peers))))
        found[name] = [sys.executable, str(Path(__file__).with_name(script)), *options]
    return found


def run(doc, parts):
    """Run the parts that the command line names, all if none; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--peer-python", help="Python that has the other libraries")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    args = parser.parse_args()
    try:
        todo = commands(parts, args.only, args.peer_python)
    except ValueError as error:
        parser.error(str(error))
    for name, command in todo.items():
        print(f"## {name}\n", flush=True)
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}: {shlex.join(command)}")
        print(flush=True)
