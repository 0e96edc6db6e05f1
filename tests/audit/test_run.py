"""The audit as a whole, on a tiny random model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from memfold.audit import measure
from memfold.audit.plan import Plan
from memfold.audit.run import run
from memfold.report.html import write
from memfold.types import InputError


def plan(pipeline: Path, data: Path, out: Path, **changes: Any) -> Plan:
    """Make the plan of an audit of the training images."""
    options: dict[str, Any] = {
        "model": str(pipeline),
        "data": str(data / "train.npz"),
        "holdout": str(data / "holdout.npz"),
        "out": str(out),
        "train_points": True,
        "noises": 4,
        "sigma": 0.3,
    }
    return Plan(**options | changes)


def results(out: Path) -> dict[str, list[Any]]:
    """Read results.parquet."""
    return pq.read_table(out / "results.parquet").to_pydict()


@pytest.fixture(scope="module")
def audited(pipeline: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run one audit that many tests read."""
    out = tmp_path_factory.mktemp("audited") / "out"
    run(plan(pipeline, data, out, truth=str(data / "truth.json")), progress=False)
    return out


def test_every_distinct_training_image_has_a_row(audited: Path) -> None:
    """50 rows hold 40 different images; the copied one counts its 11 rows."""
    found = results(audited)
    assert len(found["id"]) == len(set(found["id"])) == 40
    assert found["copies_in_data"][0] == 11
    assert found["copies_in_data"][1:] == [1] * 39


def test_the_copied_image_is_a_point_mass_of_the_data(audited: Path) -> None:
    """Its data-side LID is 0; its nearest other image is not itself."""
    found = results(audited)
    assert found["lid_data"][0] == pytest.approx(0, abs=1e-6)
    assert min(found["lid_data"][1:]) > 1e-3
    assert found["near_duplicates"][0] == 10
    assert found["nearest_l2"][0] == 0


def test_audit_json_records_everything(audited: Path, pipeline: Path, data: Path) -> None:
    """Arguments, command, versions, hashes, rates and the comparison with the truth are there."""
    facts = json.loads((audited / "audit.json").read_text())
    assert sum(facts["counts"].values()) == 40
    assert facts["arguments"]["noises"] == 4
    assert "memfold audit ddpm --data train.npz" in facts["command"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hashes"]["model"].startswith("sha256:")
    assert set(facts["hashes"]) == {"model", "data", "holdout"}
    for rate in facts["rates"].values():
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    truth = facts["ground_truth"]["confusion"]
    assert sum(truth["data"].values()) == 1
    assert sum(truth["overfitting"].values()) == 1


def test_the_audit_says_how_much_it_can_see(audited: Path) -> None:
    """40 subjects against 40 reference images: m / (k 41) <= .05 takes k >= 19.5."""
    warnings = json.loads((audited / "audit.json").read_text())["warnings"]
    (told,) = [w for w in warnings if "must be memorized before any can be called" in w]
    assert "at least 20 subjects" in told
    assert "799 reference images" in told


def test_the_report_is_written_from_the_directory_alone(audited: Path) -> None:
    """No model is needed to draw it."""
    html = write(audited).read_text()
    assert "distinct training images" in html
    assert "<svg" in html


@pytest.mark.parametrize("changes", [{"batch_size": 7}, {"batch_size": 1000}])
def test_the_batch_size_changes_rounding_only(
    audited: Path, pipeline: Path, data: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    """Noise is keyed by image, so that only the order of float32 sums differs."""
    run(plan(pipeline, data, tmp_path, **changes), progress=False)
    for name in ("lid_model", "lid_model_stderr", "misfit"):
        torch.testing.assert_close(
            torch.tensor(results(tmp_path)[name]),
            torch.tensor(results(audited)[name]),
            rtol=1e-3,
            atol=1e-3,
        )


def test_a_killed_run_goes_on_and_gives_identical_results(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first pieces; the same command then gives the numbers of a whole run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    argv = plan(pipeline, data, killed, noises=64, batch_size=16).command().split()[1:]
    process = subprocess.Popen(
        [sys.executable, "-c", "from memfold.cli import main; main()", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("parts/reference-*.parquet")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in killed.glob("parts/*.parquet")}
    assert kept
    assert not (killed / "audit.json").exists()
    run(plan(pipeline, data, killed, noises=64, batch_size=16), progress=False)
    run(plan(pipeline, data, whole, noises=64, batch_size=16), progress=False)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert repr(results(killed)) == repr(results(whole))


def test_a_damaged_part_is_named_and_only_it_is_computed_anew(
    pipeline: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated Parquet file is named in a line and computed again; the others stay."""
    run(plan(pipeline, data, tmp_path), progress=False)
    before = repr(results(tmp_path))
    part = tmp_path / "parts" / "subject-00000000.parquet"
    part.write_bytes(part.read_bytes()[:200])
    kept = {p: p.stat().st_mtime_ns for p in part.parent.iterdir() if p != part}
    (tmp_path / "results.parquet").unlink()
    run(plan(pipeline, data, tmp_path), progress=False)
    assert "subject-00000000.parquet holds no hash; it is computed again" in capsys.readouterr().err
    assert repr(results(tmp_path)) == before
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_directory_of_another_audit_is_refused_unless_overwritten(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """The message names what differs."""
    run(plan(pipeline, data, tmp_path), progress=False)
    with pytest.raises(InputError, match=r"holds another audit \(sigma differ\)"):
        run(plan(pipeline, data, tmp_path, sigma=0.4), progress=False)
    run(plan(pipeline, data, tmp_path, sigma=0.4, overwrite=True), progress=False)
    assert json.loads((tmp_path / "audit.json").read_text())["sigma"] == 0.4


def test_generated_images_depend_on_their_own_seed(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """More images, or another batch size, do not change the first ones."""
    few, many = tmp_path / "few", tmp_path / "many"
    options: dict[str, Any] = {"train_points": False}
    run(plan(pipeline, data, few, generate=3, **options), progress=False)
    run(plan(pipeline, data, many, generate=5, batch_size=2, **options), progress=False)
    a, b = (np.load(d / "samples.npz")["images"] for d in (few, many))
    assert a.shape == (3, 1, 8, 8)
    assert np.abs(a.astype(int) - b[:3].astype(int)).max() <= 1
    warnings = json.loads((few / "audit.json").read_text())["warnings"]
    assert any("Generated images are compared with real ones" in w for w in warnings)


def test_hostile_names_stay_text(pipeline: Path, data: Path, tmp_path: Path) -> None:
    """A file called <script> is a subject like any other; no path is built from it."""
    options = {"train_points": False, "samples": str(data / "samples")}
    run(plan(pipeline, data, tmp_path / "out", **options), progress=False)
    found = results(tmp_path / "out")
    hostile = next(name for name in found["id"] if "script" in name)
    assert found["nearest_l2"][found["id"].index(hostile)] == 0
    html = write(tmp_path / "out").read_text()
    assert "alert(1)" in html
    assert "<script>alert(1)" not in html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_near_copy_has_the_data_side_of_the_image_it_copies(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """One grey level apart from training row 3, it stands on that row, which is left out."""
    train = np.load(data / "train.npz")["images"]
    near = train[3].astype(int) + np.where(train[3] > 0, -1, 1)
    np.savez(tmp_path / "near.npz", images=near[None].astype(np.uint8))
    options: dict[str, Any] = {"train_points": False, "samples": str(tmp_path / "near.npz")}
    run(plan(pipeline, data, tmp_path / "near", **options), progress=False)
    run(plan(pipeline, data, tmp_path / "train"), progress=False)
    copied, itself = results(tmp_path / "near"), results(tmp_path / "train")
    assert copied["nearest_id"] == ["3"]
    assert copied["lid_data"][0] == pytest.approx(itself["lid_data"][3])
    assert copied["lid_data"][0] > 2


def test_without_held_out_images_the_audit_says_what_it_loses(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """The training images themselves are the reference, each distinct one once."""
    facts = run(plan(pipeline, data, tmp_path, holdout=None), progress=False)
    assert facts["reference"] == {
        "source": "train",
        "n": 40,
        "note": facts["reference"]["note"],
    }
    assert "No held-out images were given" in facts["reference"]["note"]
    assert facts["reference"]["note"] in facts["warnings"]
    smallest = min(p for p in results(tmp_path)["p_value"] if p == p)
    assert smallest >= 1 / 40


def test_fail_on_sets_the_exit_code(
    pipeline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate of 99 % the lowest image is called; a kind that is absent does not fail."""
    from memfold import cli

    base = plan(pipeline, data, tmp_path, alpha=0.99)
    facts = run(base, progress=False)
    found = [kind for kind in ("overfitting", "data", "undetermined") if facts["counts"][kind]]
    absent = [kind for kind in ("overfitting", "data", "undetermined") if not facts["counts"][kind]]
    assert found
    for kinds, code in ((found, 1), (absent, 0)):
        argv = plan(pipeline, data, tmp_path, alpha=0.99, fail_on=tuple(kinds)).command().split()
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code


def test_the_batch_size_is_halved_when_memory_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    """64, 32, 16: the first that fits is used; another error is not swallowed."""
    tried = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert measure.with_less_memory(64, work) == "done"
    assert tried == [64, 32, 16]
    assert "halving" in capsys.readouterr().err

    def broken(size: int) -> str:
        raise RuntimeError(f"shape mismatch at {size}")

    with pytest.raises(RuntimeError, match="shape mismatch at 64"):
        measure.with_less_memory(64, broken)


def test_every_estimator_can_be_chosen(pipeline: Path, data: Path, tmp_path: Path) -> None:
    """Model and data side, each by name; the record says which."""
    for i, (model, side) in enumerate(
        [("flipd", "mle"), ("spectral", "lpca"), ("dsm", "twonn"), ("dsm", "empirical")]
    ):
        out = tmp_path / str(i)
        options: dict[str, Any] = {"estimator": model, "data_estimator": side, "noises": 2}
        facts = run(
            plan(pipeline, data, out, limit=12, max_reference=30, **options), progress=False
        )
        assert (facts["estimator"], facts["data_estimator"]) == (model, side)
        assert np.isfinite(results(out)["lid_model"]).all()


class _Mean(torch.nn.Module):
    """An embedding: brightness and its slope."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed (b, 3, h, w)."""
        return torch.stack([x.mean((1, 2, 3)), x[:, 0, :, :4].mean((1, 2))], 1)


def test_an_embedding_gives_its_own_nearest_image(
    pipeline: Path, data: Path, tmp_path: Path
) -> None:
    """A TorchScript file is evidence beside the pixels; a file that is none is refused."""
    file = tmp_path / "embedding.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its successor
        torch.jit.script(_Mean()).save(str(file))
    options: dict[str, Any] = {"train_points": False, "samples": str(data / "samples")}
    options |= {"embedding": str(file), "allow_code": True}
    run(plan(pipeline, data, tmp_path / "a", **options), progress=False)
    found = results(tmp_path / "a")
    copied = next(i for i, name in enumerate(found["id"]) if "script" in name)
    assert found["embedding_nearest_id"][copied] == "3"
    assert found["embedding_distance"][copied] == 0
    file.write_bytes(b"no module")
    with pytest.raises(InputError, match=r"embedding\.pt is no TorchScript module"):
        run(plan(pipeline, data, tmp_path / "b", **options), progress=False)
