"""Networks in half precision, and noise that floating-point numbers do not resolve."""

import pytest
import torch

from memfold.denoisers.adapters.diffusers import from_pipeline
from memfold.denoisers.adapters.edm import SigmaDenoiser
from memfold.denoisers.base import Conditioned, FunctionDenoiser
from memfold.denoisers.exact import EmpiricalDenoiser, GaussianDenoiser
from memfold.denoisers.guidance import Guided
from memfold.denoisers.parameterizations import (
    EDMDenoiser,
    EpsDenoiser,
    FlowDenoiser,
    ScoreDenoiser,
    VDenoiser,
    X0Denoiser,
)
from memfold.denoisers.schedules import flow_schedule, ve_schedule, vp_schedule
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.resolution import ResolutionWarning
from memfold.lid.spectral import spectral_lid
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, seeded, tiny_unet

D, SIGMA = 16384, 0.03
HALVES = [torch.bfloat16, torch.float16]
POINT = torch.rand(1, D, generator=seeded()) * 2 - 1
VP = vp_schedule(torch.linspace(1 - 1e-4, 1e-3, 400, dtype=torch.float64))
GRID = torch.linspace(1, 999, 999, dtype=torch.float64) / 1000


def networks(dtype):
    """The perfect memory of one point, as each kind of network in half precision answers."""

    def time_of(t, schedule):
        return schedule.sigma(t.double()).float()[:, None]

    def net(predict, schedule):
        def call(z, t, cond):
            z = z.to(dtype).float()  # what any network of this precision starts from
            return predict(z, time_of(t, schedule)).to(dtype).float()

        return call

    def eps(z, s):
        return (z * (1 + s**2).sqrt() - POINT) / s

    def v(z, s):  # a n - (sigma a) x0
        a = (1 + s**2).rsqrt()
        return a * (eps(z, s) - s * POINT)

    def velocity(z, s):
        return (z * (1 + s) - POINT) / s - POINT

    def score(z, s):
        return (POINT - z) / s**2

    def raw(z, s):  # F of D = c_skip x + c_out F, sigma_data = 1/2
        total = s**2 + 0.25
        x = z * total.sqrt()
        return (POINT - 0.25 / total * x) / (s * 0.5 / total.sqrt())

    flow, ve = flow_schedule(GRID, GRID), ve_schedule(0.001, 50.0)
    return {
        "eps": EpsDenoiser(net(eps, VP), VP),
        "v": VDenoiser(net(v, VP), VP),
        "flow": FlowDenoiser(net(velocity, flow), flow),
        "score": ScoreDenoiser(net(score, ve), ve),
        "edm": EDMDenoiser(net(raw, ve), ve),
    }


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["eps", "v", "flow", "score", "edm"])
def test_a_point_mass_has_no_dimension(kind, dtype):
    model = networks(dtype)[kind]
    model.dtype = dtype
    sigma = max(SIGMA, model.sigma_min)
    # what a half-precision prediction is rounded by: eps^2 / 21 of |prediction|^2, in units of
    # sigma: |n|^2 = D, and for v and F some multiple of the point beside it
    eps = torch.finfo(dtype).eps
    bound = 4 * eps**2 / 12 * (D + float(POINT.square().sum()))
    for wrapped in (model, Conditioned(model, None), Guided(model, 3.0)):
        result = dsm_lid(wrapped, POINT, sigma, n_noises=4, generator=seeded())
        assert 0 <= float(result.lid) < bound, wrapped
    model.dtype = torch.float32  # an adapter that does not say what its network computes in
    assert float(dsm_lid(model, POINT, sigma, n_noises=4, generator=seeded()).lid) > 4 * bound


def test_the_image_itself_cannot_be_predicted_in_bfloat16():
    # D is then rounded by eps |x|, and no reading of the input mends that: 16 dimensions here
    model = FunctionDenoiser(lambda x, s: POINT.bfloat16().expand(x.shape))
    with pytest.raises(InputError, match=r"returned torch\.bfloat16, which rounds D by about"):
        dsm_lid(model, POINT, SIGMA, generator=seeded())


@pytest.mark.parametrize("dtype", HALVES)
def test_an_edm_network(dtype):
    class Precond(torch.nn.Module):
        """As NVlabs writes it: D from F in float32, F in half precision on c_in x."""

        sigma_data = 0.5

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

        def forward(self, x, sigma):
            s = sigma.reshape(-1, 1)
            total = s**2 + 0.25
            z = (x * total.rsqrt()).to(dtype).float()
            f = (POINT - 0.25 / total * z * total.sqrt()) / (s * 0.5 * total.rsqrt())
            return 0.25 / total * x + s * 0.5 * total.rsqrt() * f.to(dtype).float()

    model = SigmaDenoiser(Precond(), shape=(D,), sigma_range=(0.002, 80.0))
    assert model.dtype == dtype
    lid = float(dsm_lid(model, POINT, SIGMA, n_noises=4, generator=seeded()).lid)
    assert lid < 4 * torch.finfo(dtype).eps ** 2 / 12 * 2 * D


@pytest.mark.parametrize("dtype", HALVES)
def test_a_diffusers_pipeline_is_handed_what_its_network_sees(dtype):
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = tiny_unet()
    model = from_pipeline(DDPMPipeline(unet, DDPMScheduler()), dtype=dtype)
    handed = []
    unet.register_forward_pre_hook(lambda m, a: handed.append(a[0].float()))
    x = torch.randn(2, 2, 8, 8, generator=seeded())
    sigma, s = 0.5, torch.full((2, 1, 1, 1), 0.5)
    with torch.no_grad():
        model(x, sigma)
        seen = model.seen(x, s)
        one, two = model(seen, sigma), model(x, sigma)
    # rounding is idempotent: the point that the network sees is seen as it is
    assert torch.equal(one, two)
    torch.testing.assert_close(handed[0], seen / 1.25**0.5, rtol=1e-6, atol=1e-6)
    assert float((seen - x).abs().max()) > 0


def test_rounding_is_no_part_of_the_derivative():
    model = EpsDenoiser(lambda z, t, c: z.to(torch.bfloat16).float() * 0, VP)
    model.dtype = torch.bfloat16
    x = torch.randn(2, 40, generator=seeded()).requires_grad_(True)
    v = torch.randn(2, 40, generator=seeded(1))
    (g,) = torch.autograd.grad(model(x, 0.5), x, v)
    torch.testing.assert_close(g, v, rtol=0, atol=0)  # J = 1, to the last digit
    double = EpsDenoiser(lambda z, t, c: 0 * z, VP)
    double.dtype = torch.bfloat16
    assert torch.autograd.gradcheck(lambda y: double(y, 0.5).sum() * 0 + y.sum(), x.double())


# --- sigma that the numbers do not resolve


ALL = {
    "loss": (dsm_lid, {}),
    "flipd": (flipd, {}),
    "flipd at x": (flipd, {"at": "x"}),
    "spectral": (spectral_lid, {}),
    "rank": (jacobian_rank, {}),
    "bundle": (normal_bundle, {}),
}


@pytest.mark.parametrize("name", ALL)
def test_sigma_below_the_resolution_is_refused_with_the_smallest_that_is_not(name):
    f, options = ALL[name]
    mean = torch.full((40,), 50.0)
    model = GaussianDenoiser(mean, torch.ones(5))
    x, size = mean[None], 50 * 40**0.5
    eps = torch.finfo(torch.float32).eps
    with pytest.raises(InputError, match=r"below what float32 resolves at \|x\| = 316.2; take"):
        f(model, x, 1e-5, generator=seeded(), **options)
    with pytest.warns(ResolutionWarning, match="close to what float32 resolves"):
        f(model, x, 1.01 * eps * size / 2, generator=seeded(), **options)
    f(model, x, 2.01 * eps * size, generator=seeded(), **options)  # a warning is an error here
    f(GaussianDenoiser(mean.double(), torch.ones(5).double()), x.double(), 1e-5, **options)


def test_the_bound_is_that_of_the_error():
    # the loss of a point mass is what was rounded: eps^2 |x|^2 / 21 for each rounding, of x and D
    eps, d = torch.finfo(torch.float32).eps, 1000
    x = torch.randn(20, d, generator=seeded())
    for ratio in (0.1, 0.45):
        lid = []
        for row in x.split(1):
            sigma = eps * float(row.norm()) / ratio
            lid.append(dsm_lid(EmpiricalDenoiser(row), row, sigma, generator=seeded()).lid)
        assert float(torch.cat(lid).mean()) < ratio**2 / 10
    model, mean, variances, basis = gaussian(100, 5, dtype=torch.float32)
    x = gaussian_points(mean, variances, basis, 60)
    sigma = eps * float(x.norm(dim=1).max()) / 0.49
    result = dsm_lid(model, x, sigma, n_noises=64, generator=seeded())
    assert abs(float(result.lid.mean()) - 5) < 0.1 + 4 * float(result.stderr.mean()) / 60**0.5


@pytest.mark.parametrize("dtype", HALVES)
def test_a_network_in_half_precision_whose_input_drowns(dtype):
    model = FunctionDenoiser(lambda x, s: 0 * x, dtype=dtype)
    x = torch.ones(1, 40)
    rounding = torch.finfo(dtype).eps / 12**0.5
    with pytest.raises(InputError, match="drowns in the rounding of the network's input to"):
        dsm_lid(model, x, 0.9 * rounding, generator=seeded())
    with pytest.warns(ResolutionWarning, match="close to the rounding of the network's input"):
        dsm_lid(model, x, 5 * rounding, generator=seeded())
    dsm_lid(model, x, 11 * rounding, generator=seeded())


def test_predicting_the_image_is_read_at_the_rounded_point():
    model = X0Denoiser(lambda z, t, c: z * 0 + POINT, VP)
    model.dtype = torch.bfloat16
    assert float(dsm_lid(model, POINT, 0.03, n_noises=4, generator=seeded()).lid) < 1e-6
