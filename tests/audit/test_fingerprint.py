"""What a run depends on: an edit of the model's files is another audit, another place is not."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from memfold.audit import digest
from memfold.audit.digest import conditions, model_digest
from memfold.audit.plan import Plan, recorded
from memfold.audit.run import run
from memfold.audit.scoring import Scoring
from memfold.report.html import write
from memfold.types import InputError


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


EDITS: dict[str, Any] = {
    "scheduler": lambda m: edit(
        m / "scheduler" / "scheduler_config.json", prediction_type="sample"
    ),
    "network": lambda m: edit(m / "unet" / "config.json", norm_eps=1e-3),
    "class": lambda m: edit(m / "model_index.json", _class_name="DDIMPipeline"),
    "tokenizer": lambda m: (m / "merges.txt").write_text("a b"),
    "weights": lambda m: _flip(m / "unet" / "diffusion_pytorch_model.safetensors"),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def model(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "model"))


@pytest.mark.parametrize("name", EDITS)
def test_every_file_that_changes_numbers_changes_the_digest(model: Path, name: str) -> None:
    before = model_digest(str(model)), Scoring(model=str(model)).fingerprint()
    EDITS[name](model)
    assert model_digest(str(model)) != before[0]
    assert Scoring(model=str(model)).fingerprint() != before[1]


def test_place_and_texts_do_not_change_the_digest(model: Path, tmp_path: Path) -> None:
    before = model_digest(str(model))
    (model / "README.md").write_text("words")
    (model / ".cache").mkdir()
    (model / ".cache" / "x.json").write_text("{}")
    moved = model.rename(tmp_path / "elsewhere")
    assert model_digest(str(moved)) == before


def test_names_and_contents_cannot_be_confused(tmp_path: Path) -> None:
    for i, files in enumerate(({"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "", "b": "c"})):
        (tmp_path / str(i)).mkdir()
        for name, text in files.items():
            (tmp_path / str(i) / name).write_text(text)
    assert len({model_digest(str(tmp_path / str(i))) for i in range(4)}) == 4


def test_a_hub_id_is_hashed_by_its_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(model / name)
    )
    before = model_digest("some/model")
    assert before == model_digest(str(model))
    EDITS["scheduler"](model)
    assert model_digest("some/model") != before
    monkeypatch.undo()
    assert model_digest("surely-no/such-model") == "surely-no/such-model"


def test_other_conditions_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conditions("cuda:1") == conditions("cuda") != conditions("cpu")
    before = conditions("cpu")
    monkeypatch.setattr(digest.importlib.metadata, "version", lambda name: "0")
    assert conditions("cpu") != before


def plan(model: Path, data: Path, out: Path, **changes: Any) -> Plan:
    """Make the plan of a small audit."""
    options: dict[str, Any] = {
        "model": str(model), "data": str(data / "train.npz"), "out": str(out), "sigma": 0.3,
        "holdout": str(data / "holdout.npz"), "train_points": True, "noises": 2, "limit": 6,
    }  # fmt: skip
    return Plan(**options | changes)


def test_an_edited_prediction_type_does_not_resume_with_old_numbers(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(plan(model, data, out), progress=False)
    before = pq.read_table(out / "results.parquet")["lid_model"].to_pylist()
    EDITS["scheduler"](model)
    with pytest.raises(InputError, match=r"holds another audit \(hashes differ\)"):
        run(plan(model, data, out), progress=False)
    run(plan(model, data, out, overwrite=True), progress=False)
    assert pq.read_table(out / "results.parquet")["lid_model"].to_pylist() != before


def test_a_moved_audit_goes_on_and_no_path_stands_in_it(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """No folder of this machine, and no user's name, unless it is asked for."""
    out = tmp_path / "out"
    run(plan(model, data, out, truth=str(data / "truth.json")), progress=False)
    write(out)
    texts = [(out / name).read_text() for name in ("audit.json", "report.html", "plan.json")]
    for secret in (str(tmp_path), str(data), str(Path.home()) + "/", f"/{getpass.getuser()}/"):
        assert not any(secret in text for text in texts), secret
    facts = json.loads(texts[0])
    assert facts["arguments"]["data"] == "train.npz"
    assert facts["title"] == "Memorization audit of model"
    moved = out.rename(tmp_path / "moved")
    kept = {p: p.stat().st_mtime_ns for p in (moved / "parts").iterdir()}
    again = plan(model.rename(tmp_path / "m2"), data, moved, record_paths=True)
    assert run(again, progress=False)["arguments"]["data"] == str(data / "train.npz")
    assert {p: p.stat().st_mtime_ns for p in (moved / "parts").iterdir()} == kept
    write(moved)
    assert str(data) in (moved / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/anna/models/ddpm/", "ddpm"),
        ("org/model", "org/model"),
        ("memfold-demo/model", "memfold-demo/model"),
        ("../anna/data.npz", "data.npz"),
        ("~/x", "x"),
    ],
)
def test_of_a_path_the_last_name_is_recorded(given: str, shown: str) -> None:
    assert recorded(given, whole=False) == shown
    assert recorded(given, whole=True) == given
