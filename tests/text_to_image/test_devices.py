"""Half precision, slicing and off-loading of parts do not break what is read off a pipeline."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import accelerate
import pytest
import torch

from memfold import Guard, attribute, mitigate
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.calibrate import calibrate, weights_digest
from memfold.sampling.monitor import Monitor
from memfold.sampling.trajectory import generate_watched
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import ALL, PROMPT

pytestmark = [
    *tiny.QUIET,
    pytest.mark.filterwarnings("ignore:.*(GPU|CUDA|gpu).*"),
]


def fresh(family):
    """A pipeline of its own, with the weights of `tiny.pipeline`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (tiny.FAMILIES | tiny.MORE)[family]()


@functools.cache
def reference(family):
    model = TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))
    return model, model.denoiser(PROMPT, guidance_scale=2.0)(points(model), 1.0)


def points(model):
    return torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0)) * 2**0.5


def off_by(family, pipe):
    """Root mean square distance of the guided D from the reference's, over its own size."""
    model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    found = model.denoiser(PROMPT, guidance_scale=2.0)(points(model), 1.0)
    assert found.dtype == torch.float32
    there, wanted = reference(family)
    assert model.layout.calls == there.layout.calls
    assert model.layout.conditional == there.layout.conditional
    assert model.layout.output == there.layout.output
    assert model.layout.louder == pytest.approx(there.layout.louder, rel=0.02)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ALL)
def test_bfloat16(family):
    pipe = fresh(family).to(torch.bfloat16)
    assert off_by(family, pipe) < 0.03
    model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    found = generate_watched(model, PROMPT, [0, 1], num_inference_steps=3)
    there = generate_watched(reference(family)[0], PROMPT, [0, 1], num_inference_steps=3)
    assert found.x.dtype == torch.float32
    for a, b in zip(found.views, there.views, strict=True):
        assert a.sigma == pytest.approx(b.sigma, rel=1e-3)  # not rounded with the network's time
        assert a.x.dtype == torch.float32


@pytest.mark.parametrize("family", ALL)
def test_float16(family):
    assert off_by(family, fresh(family).to(torch.float16)) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision(dtype):
    model = TextToImage(fresh("sd1 (eps)").to(dtype))
    x = points(model).requires_grad_()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (g,) = torch.autograd.grad(model.denoiser(PROMPT)(x, 1.0), x, v)
    there, _ = reference("sd1 (eps)")
    y = points(model).requires_grad_()
    (wanted,) = torch.autograd.grad(there.denoiser(PROMPT)(y, 1.0), y, v)
    assert g.dtype == torch.float32
    assert float((g - wanted).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl"])
def test_attention_and_vae_slicing(family):
    pipe = fresh(family)
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    assert off_by(family, pipe) < 1e-5
    model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    options = {"num_inference_steps": 2}
    bare = model.generate(PROMPT, [0, 1], **options)
    with Monitor(model, attention=True) as monitor:
        assert torch.equal(model.generate(PROMPT, [0, 1], **options), bare)
    there = reference(family)[0]
    with Monitor(there, attention=True) as other:
        there.generate(PROMPT, [0, 1], **options)
    for name, value in other.scores.items():
        torch.testing.assert_close(monitor.scores[name], value, rtol=1e-3, atol=1e-4)


def used(family, pipe):
    """Look at it, ask it, generate, watch, decode, and look at it again."""
    assert off_by(family, pipe) < 1e-5
    model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    bare = model.generate(PROMPT, [0, 1], num_inference_steps=2)
    with Monitor(model) as monitor:
        assert torch.equal(model.generate(PROMPT, [0, 1], num_inference_steps=2), bare)
    assert all(bool(v.isfinite().all()) for v in monitor.scores.values())
    image = model.decode(bare).clamp(0, 1)
    wanted = model.generate(PROMPT, [0, 1], num_inference_steps=2, output_type="pt")
    torch.testing.assert_close(image, wanted, rtol=0, atol=1e-5)
    model.encode(image)
    x = points(model)[:1].requires_grad_()
    (g,) = torch.autograd.grad(model.denoiser(PROMPT)(x, 1.0).sum(), x)
    assert bool(g.isfinite().all())
    assert off_by(family, pipe) < 1e-5


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_model_cpu_offload(family):
    """The same hooks as with a GPU, which take each part there and back; here both are the CPU."""
    pipe = fresh(family)
    pipe.enable_model_cpu_offload(device="cpu")
    assert len(pipe._all_hooks) > 1
    used(family, pipe)
    assert len(pipe._all_hooks) > 1
    assert all(hasattr(hook.model, "_hf_hook") for hook in pipe._all_hooks)


def off_loaded(pipe, kind):
    """Off-load the parts of a pipeline; between two calls the weights stand on the meta device."""
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    if kind == "sequential":
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                accelerate.cpu_offload(part, execution_device="cpu")
    return pipe


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_sequential_cpu_offload(family):
    """Weights stand on the meta device between two calls of their module."""
    pipe = off_loaded(fresh(family), "sequential")
    network = reference(family)[0].network.__class__
    found = next(p for p in pipe.components.values() if isinstance(p, network))
    assert next(found.parameters()).device.type == "meta"
    used(family, pipe)
    assert next(found.parameters()).device.type == "meta"


def numbers(model):
    """What reads weights by itself: the digest, a band and its guard, rewrites, masked words."""
    options = {"num_inference_steps": 2}
    prompts = [f"the dog {i} house" for i in range(11)]
    band = calibrate(model, prompts, alpha=0.1, images=1, **options)
    guarded = Guard(model, replace(band, threshold=1e9))
    image = guarded(
        prompts[0], generator=torch.Generator().manual_seed(0), output_type="latent", **options
    ).images
    found = mitigate(model, PROMPT, method="rewrite", seeds=[0], **options)
    weights = attribute(model, PROMPT, seeds=[0], **options)
    return {
        "digest": weights_digest(model.network), "band": band.centre, "image": image,
        "prompt": found.prompt, "x": found.generate([0]).x, "weights": weights.weights,
        "embedded": model.embedded(PROMPT).leaves[0].embeddings.detach(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sequential", "model"])
def test_off_loading_changes_no_number(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten prompts calibrate nothing
        wanted = numbers(TextToImage(fresh("sd1 (eps)")))
        found = numbers(TextToImage(off_loaded(fresh("sd1 (eps)"), kind)))
    for name, value in wanted.items():
        same = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        assert same(found[name], value), name
