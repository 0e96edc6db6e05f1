"""The direction of imports, and that `import memfold` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memfold

PACKAGE = Path(memfold.__file__).parent

# Data flows from left to right; a room imports only from rooms to its left.
ORDER = [
    {"types", "tensors", "files"},
    {"linalg", "datasets"},
    {"denoisers", "decoders"},
    {"sampling"},
    {"lid"},
    {"memorization"},
    {"explain", "mitigation"},
    {"audit"},
    {"cli", "ui"},
]
ALLOWED = {
    room: set().union(*ORDER[:i]) | {room} for i, rooms in enumerate(ORDER) for room in rooms
}
ALLOWED["tensors"] |= {"types"}
ALLOWED["citations"] = {"types", "citations"}
ALLOWED["report"] = {"types", "files", "citations", "report"}
for room in ("audit", "cli", "ui"):
    ALLOWED[room] |= {"report", "citations"}
# Python runs memfold/__main__.py for `python -m memfold`; it is a door to the command line.
ALLOWED["__main__"] = {"cli"}


def room_of(module):
    """The room of a dotted name within the package: memfold.lid.flipd -> lid."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(tree, module, is_package):
    """Yield (line, dotted name) for all that a module imports from memfold, wherever it does."""
    package = module if is_package else module.rpartition(".")[0]
    bare = {
        alias.asname or "memfold"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "memfold"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name != "memfold"]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in bare:
            found = [f"memfold.{node.attr}"]  # after a bare `import memfold`
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found = [f"{base}.{a.name}" for a in node.names] if base == "memfold" else [base]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found = [
                a.value
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
        else:
            continue
        for name in found:
            if name.partition(".")[0] == "memfold":
                yield node.lineno, name


def wrong_arrows(package):
    """All imports under a folder named memfold that point to the right, as readable lines."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package)
        if inner == Path("__init__.py"):
            continue
        is_package = path.name == "__init__.py"
        parts = inner.parent.parts if is_package else inner.with_suffix("").parts
        module = ".".join(["memfold", *parts])
        room = room_of(module)
        if room not in ALLOWED:
            wrong.append(f"{inner}: the room {room} has no place in the order")
            continue
        for line, name in imported(ast.parse(path.read_text("utf-8")), module, is_package):
            target = room_of(name)
            if target not in ALLOWED[room] and name != "memfold.__version__":
                wrong.append(f"{inner}:{line}: {room} imports {target} ({name})")
    return wrong


def test_no_import_points_back():
    assert wrong_arrows(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("lid/a.py", "from memfold.memorization.mmh import verdict", "lid imports memorization"),
        ("lid/a.py", "import memfold.audit", "lid imports audit"),
        ("lid/a.py", "import numpy, memfold.cli as c", "lid imports cli"),
        ("lid/a.py", "from memfold import mitigation", "lid imports mitigation"),
        ("lid/a.py", "from ..explain import tokens", "lid imports explain"),
        ("lid/a.py", "from .. import audit", "lid imports audit"),
        ("lid/deep/a.py", "from ...audit import plan", "lid imports audit"),
        ("lid/__init__.py", "from ..audit import plan", "lid imports audit"),
        (
            "lid/a.py",
            "def f():\n    if 1:\n        from memfold.audit import x",
            "lid imports audit",
        ),
        ("lid/a.py", "import importlib\nimportlib.import_module('memfold.audit')", "imports audit"),
        ("linalg/a.py", "from memfold.datasets import x", "linalg imports datasets"),
        ("types.py", "from memfold.tensors import expand", "types imports tensors"),
        ("tensors.py", "from memfold.linalg.trace import exact", "tensors imports linalg"),
        ("report/a.py", "from memfold.memorization.mmh import x", "report imports memorization"),
        ("memorization/a.py", "from memfold.report.model import x", "memorization imports report"),
        ("audit/a.py", "from memfold.cli import main", "audit imports cli"),
        ("report/a.py", "from memfold.ui import app", "report imports ui"),
        ("lid/a.py", "from memfold import flipd", "lid imports flipd"),
        ("lid/a.py", "import memfold\nmemfold.flipd(x)", "lid imports flipd"),
        ("lid/a.py", "import memfold as m\ndef f(x):\n    return m.audit.run", "lid imports audit"),
        ("attic/a.py", "x = 1", "the room attic has no place"),
    ],
)
def test_a_planted_arrow_is_found(tmp_path, file, source, found):
    path = tmp_path / "memfold" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (wrong,) = wrong_arrows(tmp_path / "memfold")
    assert found in wrong
    assert file in wrong


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "lid/a.py",
            "from memfold.denoisers.base import Denoiser\nfrom . import b\nfrom .c import d",
        ),
        ("lid/a.py", "from ..types import Estimate\nfrom ..linalg import trace\nimport datasets"),
        ("lid/__init__.py", "from .a import b"),
        ("denoisers/adapters/a.py", "from ..base import D\nfrom ...types import E"),
        ("audit/a.py", "from memfold.report.model import x\nfrom memfold.citations import cite"),
        ("report/a.py", "from memfold.types import Estimate\nfrom memfold.citations import cite"),
        ("cli/a.py", "from memfold import __version__\nfrom memfold.types import InputError"),
        ("audit/a.py", "import memfold\nversion = memfold.__version__"),
        ("tensors.py", "from memfold.types import InputError"),
        ("__init__.py", "from .audit import plan"),
    ],
)
def test_a_right_arrow_is_let_through(tmp_path, file, source):
    path = tmp_path / "memfold" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert wrong_arrows(tmp_path / "memfold") == []


def test_an_arrow_planted_in_a_copy_of_the_package_is_found(tmp_path):
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "memfold" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    tensors = tmp_path / "memfold" / "tensors.py"
    tensors.write_text(tensors.read_text() + "\nfrom memfold.lid import flipd\n")
    before, after = wrong_arrows(PACKAGE), wrong_arrows(tmp_path / "memfold")
    assert [line for line in after if line not in before] == [
        f"tensors.py:{len(tensors.read_text().splitlines())}: tensors imports lid (memfold.lid)"
    ]


HEAVY = {
    *("diffusers", "transformers", "datasets", "accelerate"),
    *("matplotlib", "sklearn", "scipy", "pandas", "pyarrow"),
}


def test_import_memfold_is_light():
    """Only modules are counted that torch does not bring along; the clock is the CPU's."""
    code = (
        "import sys, time, torch\n"
        "before, start = set(sys.modules), time.process_time()\n"
        "import memfold\n"
        "spent = time.process_time() - start\n"
        "print(spent, *{m.partition('.')[0] for m in set(sys.modules) - before})\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent, *modules = run.stdout.split()
    assert HEAVY.isdisjoint(modules)
    assert float(spent) < 0.5


def test_import_memfold_alone_brings_no_heavy_module():
    code = "import sys, memfold; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(run.stdout.split())
    assert "memfold" in run.stdout.split()
