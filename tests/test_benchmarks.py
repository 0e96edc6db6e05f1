"""The benchmarks' own yardsticks: they count right, and compare with the right thing."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from tests.oracles import gaussian, gaussian_points, seeded

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import networks

    yield networks
    for name in ("networks", "speed_model", "accuracy_model"):
        sys.modules.pop(name, None)


def example(n=3):
    model, mean, variances, basis = gaussian(40, 6)
    return model, gaussian_points(mean, variances, basis, n)


def test_passes_and_products_are_counted(networks):
    model, x = example()
    counted = networks.Counted(model)
    flipd(counted, x, 0.1, at="x", trace="hutchinson", n_probes=5, generator=seeded())
    # one point measures the memory; once a network, J v is held against a central difference
    assert (counted.forward, counted.backward) == (3 + 1 + 2 * 3, 3 * 5 + 3)
    counted.reset()
    flipd(counted, x, 0.1, at="x", trace="hutchinson", n_probes=5, generator=seeded())
    assert (counted.forward, counted.backward) == (3 + 1, 3 * 5)
    counted.reset()
    dsm_lid(counted, x, 0.1, n_noises=7, generator=seeded())
    assert (counted.forward, counted.backward) == (21, 0)
    # products of single rows of a batch count as such: the first of two points stops early
    two = networks.Counted(model)
    flipd(two, x[:1], 0.1, at="x", generator=seeded())
    assert two.backward >= 6
    counted.reset()
    jacobian_rank(counted, x[:1], 0.1, n_noises=2, generator=seeded())
    counted.reset()  # the way of J v is known now: one pass forward each, as for J^T v one back
    jacobian_rank(counted, x[:1], 0.1, n_noises=2, generator=seeded())
    assert (counted.forward, counted.backward) == (1 + 2 + 2 * 32, 2 * 32)


def test_gaussian_probes_are_flipd_as_published(networks):
    from speed_model import gaussian_probes

    model, x = example(1)
    exact = flipd(model, x, 0.3, at="x", trace="exact").lid
    draws = torch.stack([gaussian_probes(model, x, 0.3, 4, seeded(i)) for i in range(400)])
    error = draws.std() / 400**0.5
    assert abs(float(draws.mean() - exact)) < 4 * float(error)
    # Var v^T S v = 2 |S|_F^2 for normal v, S = J - I with 34 eigenvalues -1
    assert float(draws.var()) == pytest.approx(2 * 34 / 4, rel=0.3)


def test_a_network_learns_its_manifold(networks):
    x = torch.randn(2000, 2, generator=seeded()) @ torch.eye(2, 8)
    net, _ = networks.train(x, steps=800, seed=0, width=64, blocks=1)
    model = networks.as_denoiser(net.requires_grad_(False), networks.linear_table(), 8)
    out = model(x[:200] + 0.5 * torch.randn(200, 8, generator=seeded(1)), 0.5)
    assert float(out[:, 2:].square().mean()) < 0.5 * 0.25  # half of the noise is gone, at least


@pytest.mark.parametrize("name", ["accuracy", "speed"])
def test_one_command_runs_parts_that_there_are(monkeypatch, name):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module, parts = importlib.import_module(name), importlib.import_module("parts")
    with pytest.raises(ValueError, match="pass --peer-python"):
        parts.commands(module.PARTS, module.PARTS, None)
    found = parts.commands(module.PARTS, module.PARTS, "/a b/python")
    for part, (_, script, *options) in found.items():
        text = Path(script).read_text("utf-8")
        for option in options:  # an option or a choice of its own, or a value of one
            known = option in text or option.isdigit() or option == "/a b/python"
            assert known, (part, option)
    for module in (name, "parts"):
        sys.modules.pop(module)
