"""The gate: found, passed, inconclusive; exact copies planted in small audits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from memfold.audit import inputs
from memfold.audit.forecast import forecast
from memfold.audit.gate import outcome
from memfold.audit.plan import Plan
from memfold.audit.run import run
from memfold.denoisers.base import Denoiser
from memfold.memorization.conformal import share_interval
from memfold.report.html import write
from memfold.types import InputError

SHAPE, SPREAD, COPIES = (1, 8, 8), 0.35, 10
BOTH = ("overfitting", "data")


class Memory(Denoiser):
    """Half of the mass on ten images, half Gaussian with independent pixels: exact."""

    shape, sigma_min, sigma_max = SHAPE, 0.01, 10.0

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the posterior mean."""
        s2, flat = sigma.flatten(1).double() ** 2, x.flatten(1).double()
        wide = SPREAD**2 + s2
        near = -((flat[:, None] - self.known) ** 2).sum(-1) / (2 * s2)
        near = near - flat.shape[1] / 2 * s2.log() - np.log(len(self.known))
        far = -(flat**2).sum(1, keepdim=True) / (2 * wide) - flat.shape[1] / 2 * wide.log()
        share = torch.softmax(torch.cat([near, far], 1), 1)
        mean = share[:, :-1] @ self.known + share[:, -1:] * flat * SPREAD**2 / wide
        return mean.reshape(x.shape).to(x.dtype)


def images(n: int, seed: int) -> np.ndarray:
    """Draw from the Gaussian half, as 8-bit images."""
    x = np.random.default_rng(seed).normal(scale=SPREAD, size=(n, *SHAPE))
    return np.clip(np.round(127.5 * (x + 1)), 0, 255).astype(np.uint8)


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Audit m images, the first of which are copies, against n held-out ones."""
    train = images(60, 0)
    known = torch.from_numpy(train[:COPIES].reshape(COPIES, -1) / 127.5 - 1)
    monkeypatch.setattr(inputs, "load_images_model", lambda *_, **__: Memory(known))
    np.savez(tmp_path / "train.npz", images=train)

    def make(planted: int, m: int, n: int, do: Any = run, **changes: Any) -> dict[str, Any]:
        fresh = np.concatenate([train[:planted], images(m - planted, 5)])
        np.savez(tmp_path / "samples.npz", images=fresh)
        np.savez(tmp_path / "holdout.npz", images=images(n, 12))
        options: dict[str, Any] = {
            "model": "m", "data": str(tmp_path / "train.npz"), "sigma": 0.1, "noises": 4,
            "holdout": str(tmp_path / "holdout.npz"), "samples": str(tmp_path / "samples.npz"),
            "out": str(tmp_path / "out"), "fail_on": BOTH, "overwrite": True,
        }  # fmt: skip
        plan = Plan(**options | changes)
        return do(plan) if do is forecast else do(plan, progress=False)

    return make


@pytest.mark.parametrize(
    ("copies", "m", "n", "k", "said"),
    [
        (5, 40, 150, 1, "inconclusive"),  # 6 are needed: 40 / (.05 * 151) = 5.3
        (8, 40, 150, 1, "found"),
        (0, 40, 150, 1, "inconclusive"),
        (0, 40, 150, 6, "passed"),
        (0, 7, 150, 1, "passed"),
        (1, 7, 150, 1, "found"),
        (0, 8, 150, 1, "inconclusive"),
        (3, 20, 18, 1, "inconclusive"),  # 1 / 19 > alpha: nothing can be called at all
        (1, 1, 19, 1, "found"),
        (0, 1, 18, 1, "inconclusive"),
    ],
)
def test_the_three_outcomes(audit, tmp_path, copies, m, n, k, said):
    """Whatever the sizes, a planted copy is found or the gate is not passed."""
    facts = audit(copies, m, n, copies=k)
    assert facts["exit"]["outcome"] == said
    assert facts["exit"]["code"] == {"found": 1, "passed": 0, "inconclusive": 3}[said]
    assert facts["exit"]["failed"] == (said == "found")
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    assert ("No memorization was found" in page) == (said == "passed")
    assert ('<p class="exit passed">' in page) == (said == "passed")
    if said == "inconclusive":
        assert facts["exit"]["reason"]
        assert facts["exit"]["remedy"]
        assert "What to do:" in page


def test_five_exact_copies_that_cannot_be_called(audit, tmp_path):
    """They are undetermined, come first with pictures, and count into the upper bound."""
    facts = audit(5, 40, 150)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [r["verdict"] for r in rows[:5]] == ["undetermined"] * 5
    unclear = sum(r["verdict"] == "undetermined" for r in rows)
    assert facts["rates"]["memorized"]["high"] == share_interval(unclear, 40)[1]
    assert facts["rates"]["memorized"]["low"] == 0
    assert facts["power"]["smallest"] == 6
    assert "6 copies or more would be found among 40" in facts["power"]["sentence"]
    for remedy in ("799 held-out images", "--limit 7", "--copies 6"):
        assert remedy in facts["exit"]["remedy"]
    pictures = pq.read_table(tmp_path / "out" / "pictures.parquet").to_pydict()["id"]
    assert set(pictures[:5]) == {f"subject:{r['id']}" for r in rows[:5]}
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    assert page.index('<section id="undetermined"') < page.index('<section id="all"')
    assert page.count('data-verdict="undetermined" id=') == 0
    assert page.count('<article class="card v-undetermined') == unclear


def test_the_remedies_work(audit):
    """Each way out that the message names ends in a verdict on a single copy."""
    assert audit(1, 40, 799)["exit"]["outcome"] == "found"
    assert audit(0, 40, 799)["exit"]["outcome"] == "passed"
    assert audit(1, 7, 150)["exit"]["outcome"] == "found"
    assert audit(6, 40, 150)["exit"]["outcome"] == "found"


def test_without_a_gate_there_is_no_outcome(audit):
    """The exit code stays 0; the doubt is told all the same."""
    facts = audit(5, 40, 150, fail_on=())
    assert (facts["exit"]["outcome"], facts["exit"]["code"]) == (None, 0)
    assert "could not have been called" in facts["doubt"]["reason"]


def test_a_copy_that_is_undetermined_for_another_reason_does_not_pass(audit, tmp_path, monkeypatch):
    """The power suffices, but one subject looks like a copy and is not trusted: inconclusive."""
    from memfold.memorization import comparison

    def unfit(self, misfit, reference_misfit):
        return np.arange(len(self.z)) == 0 if len(self.z) == 7 else np.zeros(len(self.z), bool)

    monkeypatch.setattr(comparison.Comparison, "unfit", unfit)
    facts = audit(1, 7, 150)
    assert facts["power"]["suffices"]
    row = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()[0]
    assert (row["verdict"], row["reason"]) == ("undetermined", "the model does not fit here")
    assert facts["exit"]["outcome"] == "inconclusive"
    assert "the model does not fit here" in facts["exit"]["reason"]


def test_more_copies_than_subjects_are_refused(audit):
    with pytest.raises(InputError, match="--copies 9 of 7 subjects"):
        audit(0, 7, 150, copies=9)
    with pytest.raises(InputError, match="--copies = 0; take 1 or more"):
        audit(0, 7, 150, copies=0)


@pytest.mark.parametrize(("m", "n", "source"), [(40, 150, "samples"), (30, 300, "generate")])
def test_a_plan_foresees_the_power_and_writes_nothing(audit, tmp_path, m, n, source):
    """Nearly the number that the run simulates, from a pilot; no file, no directory."""
    subjects = {} if source == "samples" else {"samples": None, "generate": m}
    found = audit(0, m, n, do=forecast, **subjects)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 3
    assert found["rows"]["reference"] == n * 4
    assert found["rows"]["subjects"] == m * 4
    assert found["rows"]["generated"] == (m * 60 if source == "generate" else 0)
    rows = sum(found["rows"].values())
    assert found["seconds"] >= rows * found["seconds_per_row"] > 0
    least = np.ceil(m / (0.05 * (n + 1)))  # Benjamini-Hochberg; every copy stands out here
    assert found["power"]["smallest"] == least
    assert "could not have been called" in found["doubt"]["reason"]
    if source == "samples":
        assert audit(0, m, n)["power"]["smallest"] == least


def test_a_plan_on_the_command_line(pipeline, data, tmp_path, monkeypatch, capsys):
    """Exit code 0, a line each on work, time and power; --json is one document."""
    from memfold import cli

    out = tmp_path / "deep" / "out"
    argv = [
        "memfold", "audit", str(pipeline), "--data", str(data / "train.npz"), "--holdout",
        str(data / "holdout.npz"), "--train-points", "--noises", "2", "--sigma", "0.3",
        "--out", str(out), "--fail-on", "data", "--plan",
    ]  # fmt: skip
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", argv + more)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        said = capsys.readouterr().out
        if not more:
            for word in ("Nothing was written", "rows through the network", "estimate", "Power"):
                assert word in said
    assert json.loads(said)["subjects"]["n"] == 40
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("fail_on", "counts", "unknown", "reason", "said"),
    [
        (BOTH, {"data": 1}, 0, "", "found"),
        (BOTH, {"data": 1}, 0, "weak", "found"),  # what is found is found, weak or not
        (("overfitting",), {"data": 1}, 0, "", "passed"),
        (("overfitting",), {"data": 1}, 0, "weak", "inconclusive"),
        (BOTH, {"undetermined": 1}, 1, "doubt", "found"),  # memorized, of one of both kinds
        (("data",), {"undetermined": 1}, 1, "doubt", "inconclusive"),
        (("undetermined",), {"undetermined": 1}, 0, "doubt", "found"),
        (BOTH, {"none": 3}, 0, "", "passed"),
        ((), {"data": 1}, 0, "weak", None),
    ],
)
def test_the_rule(fail_on, counts, unknown, reason, said):
    done = outcome(fail_on, counts, unknown, reason, "more images")
    assert done["outcome"] == said
    assert done["code"] == {"found": 1, "passed": 0, "inconclusive": 3, None: 0}[said]
    assert bool(done["reason"]) == bool(done["remedy"]) == (said == "inconclusive")
