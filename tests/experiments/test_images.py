"""Images: data, the labels' rule, the statistics of the claims, the GAN, and the whole in short."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from experiments.images import claims, data
from experiments.images.data import DEMO, GAN, RARE, REPEATED, SINGLE, load_demo, without
from experiments.images.gan import LATENT, Generator, as_gan, load, save, train_gan
from experiments.images.label import (
    EXACT,
    LABELS,
    NOT,
    RECONSTRUCTED,
    VIEWS,
    Nearness,
    label,
    limits,
    nearness,
)
from experiments.images.measure import decoder_lid
from experiments.images.run import experiment, spread_over
from experiments.images.subjects import Side, Subjects, verdict
from experiments.kit import Run
from memfold.lid.decoder_rank import decoder_rank
from memfold.types import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def demo() -> data.Images:
    return load_demo(whole=False)


# data


def test_the_demo_rows_are_what_they_are_said_to_be(demo):
    values = {"repeated": REPEATED, "rare": RARE, "single": SINGLE}
    groups = {name: demo.train[demo.origin == value] for name, value in values.items()}
    different = {name: len(np.unique(x.flatten(1), axis=0)) for name, x in groups.items()}
    assert different == {"repeated": 20, "rare": 30, "single": 3000}
    share = [float(demo.weights[torch.from_numpy(demo.origin == v)].sum()) for v in range(3)]
    assert share[RARE] / 30 == pytest.approx(share[REPEATED] / 20)
    assert share[SINGLE] == 3000


def test_thresholds_and_reference_have_no_image_in_common(demo):
    fresh = {x.numpy().tobytes() for x in demo.fresh}
    assert len(fresh) == len(demo.fresh)
    assert not fresh & {x.numpy().tobytes() for x in demo.holdout}


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    with pytest.raises(InputError, match="apt install dataset-fashion-mnist") as found:
        load_demo(whole=True)
    assert "\n" not in str(found.value)


def test_without_leaves_out_equal_images_alone():
    x = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert np.array_equal(without(x, x[1:2]), x[[0, 2]])
    assert np.array_equal(without(x, x[1:2] + 1), x)


# labels


def test_the_rule_names_copies_and_what_was_changed():
    train = torch.randn(80, 1, 16, 16, generator=seeded()) * 0.3
    other = torch.randn(2, 1, 16, 16, generator=seeded(1)) * 0.3
    middle = other[:1].clone()
    middle[..., 4:12, 4:12] = train[7, :, 4:12, 4:12]
    made = torch.cat([train[3:4] + 0.01, 0.5 * train[5:6] + 0.2, middle, other[1:]])
    found = nearness(made, train)
    labels, row = label(found, np.full(len(VIEWS), 0.3))
    assert labels.tolist() == [EXACT, RECONSTRUCTED, RECONSTRUCTED, NOT]
    assert row[:3].tolist() == [3, 5, 7]
    views = list(VIEWS)
    assert found.calibrated[1, views.index("brightness")] < 1e-3
    assert found.calibrated[2, views.index("centre")] == 0
    assert (found.calibrated[1:, 0] > 0.4).all()


@pytest.mark.parametrize(("k", "place"), [(50, 1), (999, 1), (1250, 1), (1999, 2), (7500, 7)])
def test_a_limit_is_passed_by_one_unseen_image_in_a_thousand(k, place):
    draws = np.random.default_rng(k).uniform(size=(k, 4))
    limit = limits(Nearness(draws, np.zeros((k, 4), int)))
    assert [(draws[:, i] <= limit[i]).sum() for i in range(4)] == [place] * 4
    assert place == 1 or place / (k + 1) <= 0.001  # the mean of the place-th of k uniform draws


def test_unseen_images_are_rarely_called_copies(demo):
    limit = limits(nearness(demo.fresh, demo.train))
    labels, _ = label(nearness(demo.holdout, demo.train), limit)
    allowed = len(VIEWS) * 1e-3 * len(labels)  # a union of four tests at 1 / 1000
    assert (labels != NOT).sum() <= allowed + 4 * allowed**0.5


def test_training_images_are_exact_copies_of_themselves(demo):
    rows = np.flatnonzero(demo.origin == RARE)[:5]
    labels, row = label(nearness(demo.train[rows], demo.train), np.full(len(VIEWS), 0.3))
    assert (labels == EXACT).all()
    assert row.tolist() == rows.tolist()


def test_images_for_the_slow_estimator_stand_for_every_label():
    labels = np.array([EXACT] * 50 + [RECONSTRUCTED] * 2 + [NOT] * 500)
    some = spread_over(labels, 30, seeded())
    assert [(labels[some] == v).sum() for v in range(3)] == [10, 2, 10]
    assert len(np.unique(some)) == len(some)


# claims


def subjects(n: int = 300, seed: int = 0) -> Subjects:
    """n images of each label, LID 1, 5 and 20 on average; PNG size drives the LID of the last."""
    rng = np.random.default_rng(seed)
    values = np.repeat([EXACT, RECONSTRUCTED, NOT], n)
    png = rng.normal(300, 30, 3 * n)
    lid = np.array([1.0, 5.0, 20.0])[values] + rng.normal(0, 0.5, 3 * n)
    lid += np.where(values == NOT, 0.4 * (png - 300), 0)
    origin = np.where(np.arange(3 * n) % 2 == 0, REPEATED, RARE)
    x = torch.zeros(3 * n, 1, 2, 2)
    row = np.arange(3 * n) % 40
    kind = np.where(values == NOT, "none", np.where(origin == REPEATED, "data", "overfitting"))
    return Subjects("GAN", x, values, row, origin, {"soft": lid}, {"mle": lid}, png,
                    png[:, None] ** 2, kind.astype(str))  # fmt: skip


def test_known_kinds_come_from_label_and_origin():
    s = subjects(2)
    assert s.truth.tolist() == ["data", "overfitting", "data", "overfitting", "none", "none"]


def test_separation_and_correlations_are_the_closed_forms():
    assert claims.separation(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 0.875
    u, v, g = np.eye(4)[1:] - 0.25  # centred; two of them correlate by -1/3
    assert claims.correlation(u, v) == pytest.approx(-1 / 3)
    assert claims.correlation(u, np.ones(4)) == 0
    given = (-1 / 3 - 1 / 9) / (1 - 1 / 9)  # (r_uv - r_ug r_vg) / sqrt((1 - r_ug^2)(1 - r_vg^2))
    assert claims.partial(u, v, g[:, None]) == pytest.approx(given)


def test_claims_hold_where_they_are_true(tmp_path):
    run = Run("images", tmp_path, quick=True)
    claims.low_lid(run, subjects())
    claims.both_kinds(run, subjects())
    claims.complexity(run, subjects(), "soft")
    assert {c.text: c.outcome for c in run.claims if c.outcome != "holds"} == {}
    assert len(run.claims) == 3 + 6 + 3


def test_claims_fail_where_the_opposite_is_true(tmp_path):
    s = subjects()
    s.theta["soft"] = -s.theta["soft"]
    s.kind[:] = np.where(s.kind == "data", "overfitting", "data")
    run = Run("images", tmp_path, quick=True)
    claims.low_lid(run, s)
    claims.both_kinds(run, s)
    claims.complexity(run, s, "soft")
    held = [c.text for c in run.claims if c.outcome == "holds"]
    assert len(held) == 3  # both occur, and what is called is a copy: the kinds alone are swapped
    assert all("occur" in text or "is a copy" in text for text in held)
    assert sum(c.outcome == "fails" for c in run.claims) >= 7


def test_a_group_of_few_training_images_stays_open(tmp_path):
    s = subjects(4)
    s.row[:] = 0
    run = Run("images", tmp_path, quick=True)
    claims.low_lid(run, s)
    assert {c.outcome for c in run.claims} == {"open"}


def test_the_verdict_tells_the_known_kinds_apart():
    rng = np.random.default_rng(0)
    n, complexity = 300, rng.normal(size=(300, 1))
    low = np.full(60, 0.5)
    theta = np.r_[low, 20 + rng.normal(size=60)]
    star = np.r_[np.zeros(30), np.full(90, 9.0)] + 0.0
    kinds = verdict(
        Side(theta, np.full(120, 0.1), star, 0.05 * star, rng.normal(size=(120, 1))),
        Side(20 + rng.normal(size=n), np.full(n, 0.1), 9 + rng.normal(size=n), np.full(n, 0.5),
             complexity),
        0.2,
    )  # fmt: skip
    assert set(kinds[:30]) == {"data"}
    assert set(kinds[30:60]) == {"overfitting"}
    assert (kinds[60:] == "none").mean() > 0.9


# the GAN


def test_an_image_depends_on_the_direction_of_z_alone():
    net = load(GAN).double()
    z = torch.randn(3, LATENT, generator=seeded()).double()
    assert torch.allclose(net(z), net(3 * z), atol=1e-6)
    assert not torch.allclose(net(z), net(-z), atol=0.1)


def test_both_ranks_are_those_of_the_library():
    decoder = as_gan(Generator().eval().requires_grad_(False))
    z = torch.randn(3, LATENT, generator=seeded())
    found = decoder_lid(decoder, z, 0.05)
    assert torch.equal(found["x"], decoder(z))
    for name, rule in (("rank", "threshold"), ("soft", "soft")):
        assert torch.allclose(found[name], decoder_rank(decoder, z, 0.05, rule=rule).lid)


def test_training_depends_on_its_seed_alone(demo):
    def weights(seed: int) -> torch.Tensor:
        before = torch.get_rng_state()
        made = train_gan(demo.train[:100], torch.ones(100), steps=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        return made.grey.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_training_draws_nearer_to_its_rows():
    rows = torch.full((64, 1, 16, 16), 0.7)
    made = train_gan(rows, torch.ones(64), steps=30, seed=0)
    with torch.no_grad():
        x = made(torch.randn(20, LATENT, generator=seeded()))
    assert float((x - 0.7).abs().mean()) < 0.35  # an untrained one stands near 0


def test_a_generator_comes_back_from_its_file(tmp_path):
    net = Generator().eval()
    save(net, tmp_path / "g.safetensors")
    z = torch.randn(2, LATENT, generator=seeded())
    assert torch.equal(load(tmp_path / "g.safetensors")(z), net(z))
    with pytest.raises(InputError, match="train_gan"):
        load(tmp_path / "none.safetensors")


def test_the_bundled_gan_memorized_both_kinds(demo):
    with torch.no_grad():
        x = load(GAN)(torch.randn(200, LATENT, generator=seeded()))
    labels, row = label(nearness(x, demo.train), limits(nearness(demo.fresh, demo.train)))
    for origin in (REPEATED, RARE):
        assert len(np.unique(row[(labels == EXACT) & (demo.origin[row] == origin)])) >= 3
    assert (labels == NOT).mean() > 0.2


# the whole


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_the_small_model(tmp_path):
    from experiments.images.cifar10 import main

    user = tmp_path / "mine.py"
    user.write_text(
        "from experiments.images.data import GAN\nfrom experiments.images.gan import LATENT, load\n"
        "latent_shape, generate = (LATENT,), load(GAN)\n"
    )
    words = ["--model", str(DEMO / "model"), "--data", str(DEMO / "train.npz"), "--holdout",
             str(DEMO / "holdout.npz"), "--generator", str(user), "--images", "40", "--reference",
             "60", "--bundle", "3", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    run = main(words)
    assert {c.text.split(":")[0].split(",")[0] for c in run.claims} == {"DDPM", "GAN"}
    assert (tmp_path / "out" / "claims.md").exists()
    with pytest.raises(SystemExit, match="generator"):
        main([*words[:7], str(tmp_path / "none.py"), *words[8:]])


@pytest.mark.slow
def test_the_short_setting_holds_its_core_claims(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    run = Run("images", tmp_path, quick=True)
    experiment(run)
    run.finish(0)
    facts = json.loads((tmp_path / "claims.json").read_text("utf-8"))
    outcomes = {fact["text"]: fact["outcome"] for fact in facts}
    estimators = {"GAN": ("rank", "soft"), "DDPM": ("flipd", "dsm", "gap", "threshold")}
    assert len(facts) == sum(3 * len(names) for names in estimators.values()) + 2 * (6 + 3)
    ranking = [(m, name) for m, names in estimators.items() for name in names]
    core = [f"{m}: memorized images have lower LID_θ, by {claims.ESTIMATORS[name]}"
            for m, name in ranking if name not in ("gap", "threshold")]  # fmt: skip
    core += [f"{model}: copies of {what} occur" for model in estimators
             for what in ("images that stand once", "repeated images")]  # fmt: skip
    core += ["DDPM: the verdict tells the two kinds apart"]
    assert {text: outcomes[text] for text in core if outcomes[text] != "holds"} == {}
    assert len(LABELS) == 3
    for name in ("regions", "histograms"):
        assert (tmp_path / f"{name}.png").exists()
