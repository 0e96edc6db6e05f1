"""`memfold reproduce all --quick` as a user runs it: all experiments end and state their claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memfold.audit.reproduce import available

ROOT = Path(__file__).parents[2]


def test_every_experiment_has_its_page_and_published_claims():
    names = list(available(ROOT))
    assert names == [
        "circle", "detection", "finetune", "images", "latent", "mitigation", "propositions"
    ]  # fmt: skip
    for name in names:
        page = (ROOT / "docs" / "gallery" / f"{name}.md").read_text("utf-8")
        assert f'--8<-- "docs/gallery/{name}/claims.md"' in page
        folder = ROOT / "docs" / "gallery" / name
        made = json.loads((folder / "run.json").read_text("utf-8"))
        assert made["name"] == name
        assert made["quick"] is False
        assert json.loads((folder / "claims.json").read_text("utf-8"))


@pytest.mark.slow
def test_all_short_settings_end_and_print_every_claim(tmp_path):
    argv = ["reproduce", "all", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "memfold", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "claims.json").read_text("utf-8"))
    for name in available(ROOT):
        assert facts[name]["code"] == 0
        assert facts[name]["claims"]
        for claim in facts[name]["claims"]:
            assert f"{name}: {claim['outcome']:>5}: {claim['text']}" in done.stdout
