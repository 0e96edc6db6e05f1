"""Point masses in latents have LID_* 0, scales look at held-out images alone, claims follow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.kit import Run
from experiments.latent.data import Training
from experiments.latent.run import share, spread, star, verdicts, without
from experiments.text_to_image.data import DATA_DIR


def plane(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows on a d-dimensional subspace of 16 dimensions, far from the origin."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=source) @ torch.eye(d, 16) + 50


def test_the_data_side_knows_a_repeated_image_from_a_plane():
    flat, spot = plane(400, 5, 0), torch.zeros(1, 16)
    names = np.repeat(["many", "one"], [400, 150])
    rows = Training(torch.cat([flat, spot.expand(150, -1)]), names, np.full(550, "control"))
    x = torch.cat([spot, flat[:1], plane(60, 5, 1)])
    at = torch.tensor([400, 0] + [1] * 60)
    groups = ["verbatim", "control"] + ["held out"] * 60
    found = star(rows, x, at, ["one", "many"] + ["nobody"] * 60, groups)
    assert found["star"][0] == 0
    assert found["star_lpca"][0] == 0
    assert found["star_c"][0] == 0
    assert found["star_empirical"][0] < 0.01
    assert found["star_c"][1] == pytest.approx(5, abs=4 * 5 / np.sqrt(18))
    assert np.median(found["star"][2:]) == pytest.approx(5, abs=1.5)
    assert np.isnan(found["star_c"][2:]).all()


def test_only_a_copy_of_its_own_is_left_out():
    rows = torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    left = without(rows, torch.tensor([[0.0], [1.4]]), torch.tensor([0, 2]))
    assert left.flatten().tolist() == [0.0, 1.0, 2.0]


def test_the_scale_comes_from_the_spacing_of_held_out_images():
    rows, held = plane(400, 5, 0), plane(50, 5, 1)
    assert spread(3 * rows, 3 * held) == pytest.approx(3 * spread(rows, held), rel=1e-5)


def measured(theta: float, star_lid: float) -> dict:
    """60 held-out images at LID 50 in both, and 30 of a group."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["subject", "held out"], [30, 200])
    mine = groups == "subject"
    noise = rng.standard_normal((2, len(groups)))
    return {
        "groups": groups, "complexity": rng.standard_normal((len(groups), 2)),
        "theta_c": np.where(mine, theta, 50) + noise[0], "theta_c_stderr": np.full(230, 0.1),
        "star": np.where(mine, star_lid, 50) + noise[1] * (star_lid > 0) * mine + noise[1] * ~mine,
        "star_stderr": np.full(230, 0.1) * ((star_lid > 0) | ~mine),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("theta", "star_lid", "kind"),
    [(10, 0, "data"), (10, 50, "overfitting"), (50, 50, "none"), (50, 0, "none")],
)
def test_the_verdict_follows_from_both_sides(theta, star_lid, kind):
    """At alpha = 0.05 on the data side: within three binomial standard errors of 95 %."""
    kinds = verdicts(measured(theta, star_lid)).kind
    assert (kinds == kind).mean() > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 30)


def test_each_group_has_its_claim(tmp_path):
    run, made = Run("latent", tmp_path), verdicts(measured(10, 0))
    share(run, "training images", "verbatim", made.kind, made)
    share(run, "training images", "private", made.kind, made)
    share(run, "training images", "control", made.kind, made)
    assert [c.outcome for c in run.claims] == ["holds", "fails", "fails"]


@pytest.mark.skipif(not DATA_DIR.is_dir(), reason="dataset-fashion-mnist")
@pytest.mark.slow
def test_the_quick_run_states_every_claim(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.latent.run", "--quick", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = {c["text"]: c["outcome"] for c in json.loads((tmp_path / "claims.json").read_text())}
    assert len(found) == 15
    for core in ("The model has few degrees of freedom at verbatim images",
                 "The data have few degrees of freedom at verbatim images",
                 "The verdict names data for verbatim, training images"):  # fmt: skip
        assert found[core] == "holds"
