"""A refused call leaves nothing, so that the corrected one goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memfold.audit.explained import calibrated
from memfold.audit.plan import Plan
from memfold.audit.run import run
from memfold.audit.scoring import Scoring
from memfold.types import InputError
from tests.text_to_image import tiny

pytestmark = tiny.QUIET


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, and twelve prompts."""
    root = tmp_path_factory.mktemp("world")
    tiny.pipeline("sd1 (eps)").save_pretrained(root / "model")
    (root / "few.txt").write_text("a red dog\n")
    (root / "all.txt").write_text("\n".join(f"a {word} by anna" for word in tiny.WORDS[:12]))
    return root


def call(world: Path, out: Path, name: str = "all.txt", scale: float = 4.0, **rest: Any) -> None:
    scoring = Scoring(model=str(world / "model"), images=1, steps=2, guidance_scale=scale)
    calibrated(scoring, world / name, out, alpha=0.3, progress=False, **rest)


def test_a_refused_calibration_leaves_nothing(world: Path, tmp_path: Path) -> None:
    """Before the first prompt, and at the first prompt; then the corrected call works."""
    out = tmp_path / "band.json"
    for options in (
        {"name": "few.txt"},
        {"scores": ("lid",)},
        {"scale": 1.0, "scores": ("cfg_norm",)},
    ):
        with pytest.raises(InputError):
            call(world, out, **options)
        assert list(tmp_path.iterdir()) == [], options
    call(world, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["band.json", "band.json.parts"]


def test_a_refused_audit_leaves_nothing(pipeline: Path, data: Path, tmp_path: Path) -> None:
    """In the plan, in the inputs, and where the directory is another's."""
    given: dict[str, Any] = {
        "model": str(pipeline), "data": str(data / "train.npz"), "train_points": True,
        "out": str(tmp_path / "a" / "out"), "noises": 2, "limit": 3,
    }  # fmt: skip
    for changes in ({"alpha": 7.0}, {"sigma": 1e9}, {"data": str(data / "none")}):
        with pytest.raises(InputError):
            run(Plan(**given | changes), progress=False)
        assert list(tmp_path.iterdir()) == []
    run(Plan(**given), progress=False)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="holds another audit"):
        run(Plan(**given | {"seed": 1}), progress=False)
    files = [(p, t) for p, t in before if p.is_file()]
    assert [(p, p.stat().st_mtime_ns) for p, _ in files] == files
    assert sorted(tmp_path.rglob("*")) == [p for p, _ in before]
