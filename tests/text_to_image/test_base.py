"""A fine-tune beside the model that it was made from: another pipeline, or adapters off."""

from __future__ import annotations

import peft
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

FAMILIES = ("sd1 (eps)", "sdxl", "sd3", "flux", "sana")
pytestmark = tiny.QUIET


def fresh(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.FAMILIES[family]()


def tuned(family, *, text=False):
    """A pipeline of the same weights with a random LoRA."""
    pipe = fresh(family)
    network = getattr(pipe, "unet", None) or pipe.transformer
    parts = [(network, ["to_q", "to_k", "to_v"])]
    if text:
        parts.append((pipe.text_encoder, ["q_proj", "v_proj"]))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for part, names in parts:
            part.add_adapter(
                peft.LoraConfig(r=2, target_modules=names, init_lora_weights="gaussian")
            )
            for name, p in part.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(p, std=0.3)
    return pipe


def adapted(pipe, family, **more):
    return TextToImage(pipe, **tiny.OPTIONS.get(family, {}), **more)


def points(model):
    return torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0)) * 2**0.5


def layers(pipe):
    parts = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]
    return [m for p in parts for m in p.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_off_is_the_model_before_it(family):
    before = adapted(fresh(family), family)
    model = adapted(tuned(family), family, base="adapter off")
    x = points(model)
    wanted = before.denoiser(PROMPT, guidance_scale=2.0)(x, 1.0)
    found = model.base.denoiser(PROMPT, guidance_scale=2.0)(x, 1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    own = model.denoiser(PROMPT, guidance_scale=2.0)(x, 1.0)
    assert float((own - wanted).norm() / wanted.norm()) > 1e-3
    again = model.denoiser(PROMPT, guidance_scale=2.0)(x, 1.0)
    assert torch.equal(again, own)  # switched on again


def test_adapters_of_the_text_encoder_are_off_too():
    before = adapted(fresh("sd1 (eps)"), "sd1 (eps)")
    model = adapted(tuned("sd1 (eps)", text=True), "sd1 (eps)", base="adapter off")
    name = "encoder_hidden_states"
    wanted = before.condition(PROMPT).kwargs[name]
    torch.testing.assert_close(model.base.condition(PROMPT).kwargs[name], wanted)
    assert float((model.condition(PROMPT).kwargs[name] - wanted).abs().max()) > 1e-3
    x = points(model)
    torch.testing.assert_close(
        model.base.denoiser(PROMPT)(x, 1.0), before.denoiser(PROMPT)(x, 1.0), rtol=1e-5, atol=1e-5
    )


def test_another_pipeline_as_the_base():
    base = fresh("sd1 (eps)")
    model = adapted(tuned("sd1 (eps)"), "sd1 (eps)", base=base)
    x = points(model)
    wanted = adapted(base, "sd1 (eps)").denoiser(PROMPT)(x, 1.0)
    assert torch.equal(model.base.denoiser(PROMPT)(x, 1.0), wanted)
    assert not torch.equal(model.denoiser(PROMPT)(x, 1.0), wanted)
    given = adapted(base, "sd1 (eps)")
    assert adapted(tuned("sd1 (eps)"), "sd1 (eps)", base=given).base is given
    assert adapted(base, "sd1 (eps)").base is None


def test_gradients_go_through_the_base():
    model = adapted(tuned("sd1 (eps)"), "sd1 (eps)", base="adapter off")
    before = adapted(fresh("sd1 (eps)"), "sd1 (eps)")
    grads = []
    for d in (model.base.denoiser(PROMPT), before.denoiser(PROMPT)):
        x = points(model).requires_grad_()
        grads += torch.autograd.grad(d(x, 1.0).square().sum(), x)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("off", [False, True])
def test_switches_and_flags_stay_as_the_user_set_them(off):
    pipe = tuned("sd1 (eps)", text=True)
    if off:
        pipe.disable_lora()
    for i, p in enumerate(pipe.unet.parameters()):
        p.requires_grad_(i % 3 == 0)
    flags = [p.requires_grad for p in pipe.unet.parameters()]
    switches = [layer.disable_adapters for layer in layers(pipe)]
    assert switches == [off] * len(switches)
    model = adapted(pipe, "sd1 (eps)", base="adapter off")
    x = points(model).requires_grad_()
    model.base.denoiser(PROMPT)(x, 1.0).sum().backward()
    with pytest.raises(InputError, match="takes no colour"):
        model.base.condition(PROMPT, colour="red")
    handle = pipe.unet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.base.denoiser(PROMPT)(x, 1.0)
    handle.remove()
    assert [layer.disable_adapters for layer in layers(pipe)] == switches
    assert [p.requires_grad for p in pipe.unet.parameters()] == flags
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_refusals():
    with pytest.raises(InputError, match=r"'adapter off', but StableDiffusionPipeline has no adap"):
        adapted(fresh("sd1 (eps)"), "sd1 (eps)", base="adapter off")
    with pytest.raises(InputError, match=r"base's latents have shape \(16, 8, 8\), the pipeline's"):
        adapted(fresh("sd1 (eps)"), "sd1 (eps)", base=fresh("sd3"))
    with pytest.raises(InputError, match="no such directory"):
        adapted(fresh("sd1 (eps)"), "sd1 (eps)", base="nowhere")
    pipe = tuned("sd1 (eps)")
    for layer in layers(pipe):
        layer.merge()
    with pytest.raises(InputError, match=r"fused with the weights.*unfuse_lora"):
        adapted(pipe, "sd1 (eps)", base="adapter off")
