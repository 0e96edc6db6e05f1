"""The circle: its training sets, its references, its six exact cases, and the whole in short."""

from __future__ import annotations

import json
import math

import pytest
import torch

from experiments.circle.data import APART, ARC, Rows, copies, law, reference, scale, split
from experiments.circle.data import training_rows as draw_rows
from experiments.circle.panels import cases, draw, measure, verdict
from experiments.circle.run import experiment
from experiments.kit import Run
from experiments.mlp import as_points, seeded, steps, train
from memfold.denoisers.exact import GaussianDenoiser


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1)


ORIGIN = torch.zeros(2, 2)


def test_a_training_set_has_one_isolated_row_and_the_origin():
    rows = draw_rows(80, torch.Generator().manual_seed(0))
    circle, origin = rows.x[: -rows.n_origin], rows.x[-rows.n_origin :]
    assert len(rows.x) == 80
    assert torch.equal(origin, torch.zeros_like(origin))
    assert torch.allclose(circle.norm(dim=1), torch.ones(len(circle)))
    inside = torch.atan2(circle[:, 1], circle[:, 0]).abs() > math.pi - ARC
    assert inside.tolist() == [True] + [False] * (len(circle) - 1)
    assert (circle[1:] - circle[0]).norm(dim=1).min() >= APART
    assert torch.equal(rows.places, torch.cat([circle[:1], torch.zeros(1, 2), circle[1:]]))


@pytest.mark.parametrize(
    "x",
    [
        torch.cat([on_circle(0, 10), ORIGIN]),  # none in the arc
        torch.cat([on_circle(0, 170, 190), ORIGIN]),  # two in the arc
        torch.cat([on_circle(0, 140, 133), ORIGIN]),  # one, but not apart
        on_circle(0, 10, 180),  # no origin
    ],
)
def test_other_sets_are_drawn_again(x):
    assert split(x) is None


def test_scale_is_between_the_spacing_and_the_radius():
    x = torch.cat([on_circle(180, 0, 1, 2, 3), ORIGIN])
    chord = 2 * math.sin(math.pi / 360)
    assert scale(Rows(x, 2)) == pytest.approx(math.sqrt(chord), rel=1e-4)


def test_the_reference_holds_no_near_copy_of_a_lone_row():
    rows = split(torch.cat([on_circle(180, *range(-60, 61, 5)), ORIGIN]))
    assert rows is not None
    kept = reference(rows, 4000, 0.1, torch.Generator().manual_seed(0))
    assert (kept.norm(dim=1) > 0.5).all()
    assert (kept[:, 0] > 0.39).all()  # none beside the lone row, none in the gap
    assert ((torch.cdist(kept, rows.places) < 0.2).sum(1) >= 2).all()
    assert len(kept) > 1000


def test_copies_count_what_is_near_the_isolated_row():
    rows = split(torch.cat([on_circle(180, 0, 20, -20), ORIGIN]))
    samples = torch.cat([on_circle(180, 179, 130, 5), torch.zeros(1, 2)])
    assert copies(samples, rows) == (3, 2)


def test_the_law_is_a_circle_and_a_point():
    x = law(20_000, torch.Generator().manual_seed(1))
    share = float((x.norm(dim=1) < 0.5).float().mean())
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 20_000))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.title)
def test_each_exact_case_is_named_as_it_was_built(case):
    found = measure(case, torch.Generator().manual_seed(3))
    assert found["verdict"] == case.expected


@pytest.mark.parametrize(
    ("theta", "star", "gap", "kind"),
    [
        (0.0, 2.0, 0.0, "overfitting"),
        (0.0, 0.0, 0.0, "data"),
        (2.0, 2.0, 0.0, "none"),
        (0.0, 2.0, 9.0, "undetermined"),
    ],
)
def test_the_framework_s_definitions(theta, star, gap, kind):
    assert verdict(theta, star, gap) == kind


def test_samples_of_an_exact_model_lie_on_it():
    spots = cases()[3].model
    x = draw(spots, 200, torch.Generator().manual_seed(0))
    left = x[x[:, 0] < -0.5]
    assert len(left) > 50
    assert (torch.cdist(left, cases_left()).amin(1) < 0.01).all()


def cases_left() -> torch.Tensor:
    return torch.tensor([[-1.0, 0.6], [-1.0, 0.0], [-1.0, -0.6]], dtype=torch.float64)


def test_the_network_learns_a_gaussian_denoiser():
    source = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(4000, 2, generator=source) * torch.tensor([1.0, 0.2])
    net = seeded(2, 0, width=64)
    train(net, x=x, n=600, seed=1)
    truth = GaussianDenoiser(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.04]))
    at = x[:500] + 0.5 * torch.randn(500, 2, generator=source)
    with torch.no_grad():
        error = (as_points(net)(at, 0.5) - truth(at, 0.5)).square().mean().sqrt()
        blank = (at - truth(at, 0.5)).square().mean().sqrt()
    assert error < 0.1 * blank


def test_training_depends_on_its_seed_alone():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)  # the global generator has no say
        for _, kept in steps(seeded(2, 0, width=16), x, n=5, seed=seed):
            last = kept.last.weight.clone()
        return last

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.slow
def test_the_short_setting_holds_its_core_claims(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    run = Run("circle", tmp_path, quick=True)
    experiment(run)
    run.finish(0)
    facts = json.loads((tmp_path / "claims.json").read_text("utf-8"))
    assert len(facts) == 10
    core = {
        "The model has no freedom left at the isolated row",
        "Nor at the point mass",
        "Elsewhere it has learned a line",
        "The ground truth is a line at the isolated row",
        "It is a point at the origin",
        "The six cases are told apart",
    }
    held = {fact["text"] for fact in facts if fact["outcome"] == "holds"}
    assert core <= held
    assert (tmp_path / "circle.png").exists()
    assert (tmp_path / "six_panels.svg").exists()
