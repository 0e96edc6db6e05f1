"""The user's pipeline is left as it was, whatever happens in between."""

from __future__ import annotations

import copy

import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.sampling.monitor import Monitor
from memfold.sampling.steering import conditioned, steered
from memfold.sampling.trajectory import generate_watched, has_cross_attention
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import ALL, PROMPT

pytestmark = tiny.QUIET
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@pytest.fixture(params=ALL)
def family(request):
    return request.param


def modules(pipe):
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, torch.nn.Module)}


def state(pipe):
    """Everything of a pipeline that memfold might touch, in values that can be compared."""
    found = {"scheduler": copy.deepcopy(vars(pipe.scheduler))}
    found["bar"] = copy.deepcopy(getattr(pipe, "_progress_bar_config", "none"))
    for name, part in modules(pipe).items():
        found[f"{name} flags"] = [p.requires_grad for p in part.parameters()]
        found[f"{name} grads"] = [p.grad for p in part.parameters()]
        found[f"{name} weights"] = [p._version for p in part.parameters()]
        found[f"{name} modes"] = [m.training for m in part.modules()]
        found[f"{name} hooks"] = [len(getattr(m, h)) for m in part.modules() for h in _HOOKS]
        found[f"{name} forwards"] = [m for m, sub in part.named_modules() if "forward" in vars(sub)]
        processors = getattr(part, "attn_processors", {})
        found[f"{name} attention"] = {k: id(v) for k, v in processors.items()}
    return found


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name != "scheduler":
            assert value == after[name], name
            continue
        assert value.keys() == after[name].keys()
        for key, old in value.items():
            assert repr(old) == repr(after[name][key]), key


def everything(model, *, on_step=None, w=2.0):
    """Use all that memfold offers on a pipeline."""
    d = model.denoiser(PROMPT, guidance_scale=w)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.autograd.grad(d(x, 1.0).sum(), x)
    model.embedded(PROMPT)
    before = copy.deepcopy(vars(model.pipe.scheduler))
    views = Monitor(model, attention=has_cross_attention(model), on_step=on_step)
    with views, conditioned(model, model.condition("the dog")):
        model.generate(PROMPT, [0], num_inference_steps=2)
    with steered(model, lambda view: view.conditional):
        model.generate(PROMPT, [0], num_inference_steps=2)
    generate_watched(model, PROMPT, [0], num_inference_steps=2)
    vars(model.pipe.scheduler).clear()  # the generations are the user's own: they move it on
    vars(model.pipe.scheduler).update(before)


def test_the_pipeline_stays_as_it_was(family):
    pipe = tiny.pipeline(family)
    pipe.set_progress_bar_config(disable=True)
    # transformers hooks its own encoders when they are first asked for hidden states
    pipe(PROMPT, num_inference_steps=2, **tiny.OPTIONS.get(family, {}))
    before = state(pipe)
    everything(TextToImage(pipe, **tiny.OPTIONS.get(family, {})))
    assert_same(before, state(pipe))


def test_flags_of_parameters_stay(family):
    pipe = tiny.pipeline(family)
    parts = modules(pipe)
    before = {n: [p.requires_grad for p in part.parameters()] for n, part in parts.items()}
    try:
        for part in parts.values():  # every second one is frozen
            for i, p in enumerate(part.parameters()):
                p.requires_grad_(i % 2 == 0)
        mixed = state(pipe)
        everything(TextToImage(pipe, **tiny.OPTIONS.get(family, {})))
        assert_same(mixed, state(pipe))
    finally:
        for n, part in parts.items():
            for p, flag in zip(part.parameters(), before[n], strict=True):
                p.requires_grad_(flag)


class Boom(Exception):
    pass


def test_an_exception_in_mid_run_leaves_nothing(family):
    pipe = tiny.pipeline(family)
    model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    before = state(pipe)

    def explode(view):
        raise Boom

    scheduler = copy.deepcopy(vars(pipe.scheduler))
    for _ in range(2):
        with pytest.raises(Boom):
            everything(model, on_step=explode)
        if model.layout.calls == 1:
            with pytest.raises(Boom), steered(model, explode):
                model.generate(PROMPT, [0], num_inference_steps=2)
    vars(pipe.scheduler).clear()
    vars(pipe.scheduler).update(scheduler)
    assert_same(before, state(pipe))


def test_a_network_that_breaks_while_it_is_looked_at(family):
    pipe = tiny.pipeline(family)
    network = getattr(pipe, "unet", None) or pipe.transformer
    before = state(pipe)

    def explode(module, args, output):
        raise Boom("the network broke")

    handle = network.register_forward_hook(explode)
    with pytest.raises(ValueError, match="cannot be run: Boom: the network broke"):
        TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    handle.remove()
    assert_same(before, state(pipe))


@pytest.mark.parametrize("config", [None, {"disable": False, "desc": "mine"}])
def test_the_progress_bar_is_hidden_and_comes_back(config, capsys):
    pipe = tiny.sd1()
    if config is not None:
        pipe.set_progress_bar_config(**config)
    model = TextToImage(pipe)
    model.generate(PROMPT, [0], num_inference_steps=1)
    assert capsys.readouterr().err == ""
    assert getattr(pipe, "_progress_bar_config", None) == config
    pipe(PROMPT, num_inference_steps=1)
    assert ("mine" if config else "1/1") in capsys.readouterr().err


def test_a_step_that_someone_else_has_replaced_stays_theirs():
    pipe = tiny.sd1()
    calls, own = [], pipe.scheduler.step

    def theirs(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    pipe.scheduler.step = theirs
    model = TextToImage(pipe)
    with Monitor(model):
        model.generate(PROMPT, [0], num_inference_steps=2)
    assert pipe.scheduler.step is theirs
    assert len(calls) == 4 + 2  # four while the pipeline is looked at
