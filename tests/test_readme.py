"""The README's Python runs as it stands, and its first result takes at most ten lines."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python_blocks() -> list[str]:
    """The README's Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_text_to_image_code_runs_and_names_the_word() -> None:
    """The caption's own word has the largest weight, and the CFG norm has four rows."""
    done = subprocess.run(
        [sys.executable, "-c", python_blocks()[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    weights = ast.literal_eval(re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)[0])
    assert max(weights, key=weights.__getitem__) == "sorzesha"
    norms, _ = done.stdout.split("{", 1)
    assert norms.count("[") == 1 + 4


def test_the_first_result_runs_and_takes_at_most_ten_lines() -> None:
    """It prints one LID and one standard error for each of eight images, without a download."""
    block = python_blocks()[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    lid, stderr = re.findall(r"tensor\(\[(.*?)\]\)", done.stdout.replace("\n", ""))
    assert len(lid.split(",")) == len(stderr.split(",")) == 8
    assert all(0 < float(v) < 256 for v in lid.split(","))
    assert done.stderr == ""


@pytest.mark.slow
def test_the_whole_method_tells_the_kinds_apart() -> None:
    """At least three quarters of each kind of the bundled model's memorized images are named."""
    done = subprocess.run(
        [sys.executable, "examples/whole_method.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"(\d+) of kind '(\w+)' called '(\w+)'", done.stdout)
    right = {kind: int(count) for count, kind, called in found if kind == called}
    assert right["data"] >= 15
    assert right["overfitting"] >= 15
    assert right["none"] >= 15
