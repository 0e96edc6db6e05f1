"""The propositions: data with known copies, a law in closed form, and the whole in short."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from experiments.kit import Run
from experiments.propositions import exact, learned, prompts
from experiments.propositions.digits import digits, repeated, scale, split
from experiments.propositions.run import experiment
from memfold.denoisers.guidance import Guided
from memfold.lid.flipd import flipd


def test_rows_stand_as_often_as_they_are_said_to():
    data = repeated((1, 3, 7), each=2, singles=50, seed=1)
    assert len(data.x) == 2 * (1 + 3 + 7) + 50
    assert data.copies.tolist() == [1, 1, 3, 3, 7, 7]
    counted = [int((data.x == row).all(1).sum()) for row in data.x[data.chosen]]
    assert counted == data.copies.tolist()


def test_a_split_shares_no_row():
    train, held = split(100, 3)
    assert len(train) == 100
    assert len(train) + len(held) == len(digits())
    assert len(torch.cat([train, held]).unique(dim=0)) == len(digits())


def test_at_the_scale_a_row_and_all_others_weigh_alike():
    x = 3.0 * torch.eye(100, 100)  # every other row at the distance 3 sqrt 2
    sigma = scale(torch.cat([x, x[:5]]))
    assert 100 * math.exp(-18 / (2 * sigma**2)) == pytest.approx(1, rel=1e-5)


def test_copies_end_in_a_point_mass():
    made = learned.duplicates(0, counts=(1, 100), each=3, singles=200, n_steps=5)
    once, often = made["copies"] == 1, made["copies"] == 100
    assert (made["star_mle"][often] == 0).all()
    assert (made["star_lpca"][often] == 0).all()
    assert (made["star_mle"][once] > 1).all()
    assert made["star_empirical"][often].mean() < made["star_empirical"][once].mean()


def test_over_training_measures_every_checkpoint():
    made = learned.over_training(0, 50, checkpoints=(2, 40), points=10)
    assert made["theta"].shape == (2, 2)
    assert made["theta"][1, 0] < made["theta"][0, 0]  # the noise is learned away first of all


@pytest.fixture(scope="module")
def law():
    return exact.ClassMixture(torch.Generator().manual_seed(0))


def test_the_law_is_that_of_its_classes(law):
    """D_0 is the mean of the D_c under the posterior of the class."""
    x = law.draw(3, 4, torch.Generator().manual_seed(1)) + 0.3
    sigma = torch.full((4, 1), 0.5, dtype=torch.float64)
    logs = []
    for c, weight in enumerate(law.weights):
        part = law.parts[c]
        l, basis = part.components[0][1], part.components[0][2]
        covariance = basis @ torch.diag(l) @ basis.T + 0.25 * torch.eye(
            exact.DIM, dtype=torch.float64
        )
        density = torch.distributions.MultivariateNormal(law.means[c], covariance)
        logs.append(weight.log() + density.log_prob(x))
    posterior = torch.stack(logs).softmax(0)
    each = torch.stack([law.denoise(x, sigma, c) for c in range(len(law.means))])
    mixed = (posterior[..., None] * each).sum(0)
    assert torch.allclose(law.denoise(x, sigma, None), mixed, atol=1e-9)


def test_a_class_has_the_trace_of_its_gaussian(law):
    x = law.draw(40, 5, torch.Generator().manual_seed(2))
    assert exact._flipd(law, x, 0, 40).tolist() == pytest.approx([3 * 4 / (4 + exact.SIGMA**2)] * 5)
    spot = law.n_ordinary
    x = law.draw(spot, 2, torch.Generator().manual_seed(2))
    assert exact._flipd(law, x, 0, spot).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_a_class_only_takes_freedom_away():
    made = exact.conditioning(5, n=4, points=4)
    assert ((made["without"] - made["with"]) > 0).all()
    assert made["memorized"].tolist() == [False] * 4 + [True] * exact.COPIES


def test_the_guided_trace_is_linear_in_the_scale(law):
    """tr J_w = tr J_0 + w (tr J_c - tr J_0), with the same noises."""
    x = law.draw(10, 3, torch.Generator().manual_seed(4))

    def lid(model, cond):
        source = torch.Generator().manual_seed(0)
        return flipd(model, x, exact.SIGMA, cond=cond, generator=source).lid

    without, own = lid(law, None), lid(law, 10)
    for w in (0.0, 1.0, 7.5):
        assert torch.allclose(lid(Guided(law, w), 10), without + w * (own - without), atol=1e-8)


def test_prompts_are_chosen_by_their_labels():
    texts, known = prompts.choose(5, 7, 0)
    assert known.tolist() == [True] * 5 + [False] * 7
    assert len(set(texts)) == 12
    assert prompts.choose(5, 7, 0)[0] == texts
    assert prompts.choose(5, 7, 1)[0] != texts


@pytest.mark.slow
def test_the_short_setting_holds_its_core_claims(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    run = Run("propositions", tmp_path, quick=True)
    experiment(run)
    run.finish(0)
    facts = json.loads((tmp_path / "claims.json").read_text("utf-8"))
    assert len(facts) == 18
    core = {
        "Copies make LID_* 0",
        "Copies lower the LID_* of a perfect denoiser",
        "Copies lower the LID_θ of a trained network",
        "A class takes freedom away: exact law",
        "A prompt takes freedom away: memorized prompts",
        "Guidance lowers the LID: exact law",
        "LID_θ falls as training goes on",
        "LID_θ rises with the data, at the same compute",
    }
    held = {fact["text"] for fact in facts if fact["outcome"] == "holds"}
    assert core <= held
    assert np.all([(tmp_path / f"{n}.png").exists() for n in
                   ("duplicates", "conditioning", "guidance", "training")])  # fmt: skip
