import pytest
import torch

from memfold.denoisers.base import Conditioned, FunctionDenoiser, as_denoiser, select
from memfold.denoisers.exact import EmpiricalDenoiser
from memfold.types import InputError
from tests.oracles import gaussian, seeded, unchecked


def shrink(x, sigma, cond=1.0):
    return x * cond / (cond + sigma**2)


def test_callable_gets_a_sigma_that_broadcasts():
    x = torch.randn(3, 2, 4, 5, generator=seeded())
    sigma = torch.tensor([0.1, 1.0, 2.0])
    expected = torch.stack([shrink(row, s) for row, s in zip(x, sigma, strict=True)])
    torch.testing.assert_close(as_denoiser(shrink)(x, sigma), expected)


def test_denoiser_stays_itself():
    model, *_ = gaussian()
    assert as_denoiser(model) is model


def test_not_callable_is_refused():
    with unchecked(), pytest.raises(InputError, match=r"str is no denoiser; pass a memfold Denoi"):
        as_denoiser("model")


@pytest.mark.parametrize("out", [None, torch.zeros(2, 1), 3.0])
def test_callable_of_another_shape_is_refused(out):
    model = FunctionDenoiser(lambda x, sigma: out)
    with pytest.raises(InputError, match=r"the callable returned .* for points of shape \(2, 3\)"):
        model(torch.zeros(2, 3), 1.0)


@pytest.mark.parametrize("sigma", [0.05, 3.0, -1.0, float("nan"), float("inf"), 0.0])
def test_sigma_out_of_range_says_the_range(sigma):
    model = FunctionDenoiser(shrink, sigma_range=(0.1, 2.0))
    with pytest.raises(InputError, match=r"choose one from 0\.1 to 2"):
        model(torch.zeros(2, 3), sigma)


@pytest.mark.parametrize("sigma", [0.0, float("inf")])
def test_sigma_that_is_no_noise_is_refused(sigma):
    with pytest.raises(InputError, match="choose a number above 0"):
        FunctionDenoiser(shrink)(torch.zeros(2, 3), sigma)


def test_one_bad_sigma_of_a_batch_is_named():
    model = FunctionDenoiser(shrink, sigma_range=(0.1, 2.0))
    with pytest.raises(InputError, match=r"sigma = 7 lies outside"):
        model(torch.zeros(3, 2), torch.tensor([0.5, 7.0, 1.0]))


@pytest.mark.parametrize("sigma", [torch.ones(2), torch.ones(3, 1), torch.ones(0)])
def test_sigma_of_another_shape_is_refused(sigma):
    with pytest.raises(InputError, match=r"sigma has shape .* one for each of the 3 points"):
        FunctionDenoiser(shrink)(torch.zeros(3, 2), sigma)


def test_ends_of_the_range_in_single_precision_are_inside():
    low, high = 0.029190171386071697, 157.40713
    model = FunctionDenoiser(shrink, sigma_range=(low, high))
    ends = torch.tensor([low, high], dtype=torch.float32)
    x = torch.ones(2, 1)
    torch.testing.assert_close(model(x, ends), shrink(x, ends[:, None]))


def test_wrong_shape_names_both():
    model, *_ = gaussian(d=12)
    with pytest.raises(
        InputError, match=r"x has shape \(2, 5\), but the model takes \(batch, 12\)"
    ):
        model(torch.zeros(2, 5, dtype=torch.float64), 1.0)


def test_condition_is_fixed_unless_given():
    model = Conditioned(FunctionDenoiser(shrink), 3.0)
    x = torch.ones(1, 2)
    torch.testing.assert_close(model(x, 1.0), x * 3 / 4)
    torch.testing.assert_close(model(x, 1.0, 7.0), x * 7 / 8)


def test_select_takes_only_what_belongs_to_samples():
    own, shared = torch.arange(6.0).reshape(3, 2), torch.ones(5)
    picked = select({"a": own, "b": [shared, "words", None]}, torch.tensor([2, 0, 0, 1]), 3)
    torch.testing.assert_close(picked["a"], own[[2, 0, 0, 1]])
    assert picked["b"][0] is shared
    assert picked["b"][1:] == ["words", None]


def test_images_become_points_and_back():
    model = EmpiricalDenoiser(torch.zeros(2, 3, 4, 5))
    images = torch.rand(2, 3, 4, 5, generator=seeded())
    x = model.encode(images)
    torch.testing.assert_close(x, images * 2 - 1)
    torch.testing.assert_close(model.decode(x), images)


def test_points_of_a_half_precision_model_are_single_precision():
    model = FunctionDenoiser(shrink)
    model.dtype = torch.bfloat16
    assert model.encode(torch.rand(1, 1, 2, 2, generator=seeded())).dtype == torch.float32
