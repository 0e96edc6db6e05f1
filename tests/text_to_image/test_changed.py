"""What was recorded of a pipeline, or calibrated on it, ends with its weights and its adapters."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.calibrate import weights_digest
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET


def fresh():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.sd1()


def add_adapter(module, names):
    module.add_adapter(
        peft.LoraConfig(r=2, target_modules=names, init_lora_weights="gaussian"), "mine"
    )
    generator = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=generator)


def with_adapters():
    pipe = fresh()
    add_adapter(pipe.unet, ["to_q", "to_v"])
    add_adapter(pipe.text_encoder, ["q_proj", "v_proj"])
    return pipe


def table(pipe):
    return pipe.text_encoder.get_input_embeddings().weight


def another_encoder(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.text_encoder = tiny.clip_text(pipe.tokenizer)


def an_entry(pipe):
    with torch.no_grad():
        table(pipe)[pipe.tokenizer(PROMPT).input_ids[1], 3] += 1


def silently(pipe):
    table(pipe).data.mul_(1.5)  # leaves no version


def an_adapter(pipe):
    add_adapter(pipe.text_encoder, ["q_proj", "v_proj"])


def scale(pipe):
    pipe.set_adapters(["mine"], adapter_weights=[0.1])


def off(pipe):
    pipe.text_encoder.disable_adapters()


CHANGES = {
    "another encoder": (fresh, another_encoder),
    "an entry of the table": (fresh, an_entry),
    "all of it, by .data": (fresh, silently),
    "an adapter is loaded": (fresh, an_adapter),
    "its scale": (with_adapters, scale),
    "its switch": (with_adapters, off),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_condition_is_recorded_anew(change):
    make, alter = CHANGES[change]
    pipe = make()
    model = TextToImage(pipe)
    before = model.condition(PROMPT)
    assert model.condition(PROMPT) is before
    alter(pipe)
    after = model.condition(PROMPT)
    wanted = TextToImage(pipe).condition(PROMPT)
    name = "encoder_hidden_states"
    assert torch.equal(after.kwargs[name], wanted.kwargs[name])
    assert not torch.equal(after.kwargs[name], before.kwargs[name])
    assert model.condition(PROMPT) is after


def test_conditions_of_tensors_are_not_told_apart_by_their_print():
    model = TextToImage(fresh())
    one = torch.randint(1, 8, (1, 16, 32), generator=torch.Generator().manual_seed(0)) / 4
    other = one + 2**-20
    assert repr(one) == repr(other)
    for given in (one, other):
        found = model.conditions(PROMPT, negative_prompt_embeds=given)[1]
        assert torch.equal(found.kwargs["encoder_hidden_states"], given)


@pytest.mark.parametrize("change", [scale, off])
def test_the_digest_covers_what_adapters_do(change):
    pipe = with_adapters()
    before = [weights_digest(part) for part in (pipe.unet, pipe.text_encoder)]
    assert before == [weights_digest(part) for part in (pipe.unet, pipe.text_encoder)]
    change(pipe)
    assert weights_digest(pipe.text_encoder) != before[1]
    assert (weights_digest(pipe.unet) != before[0]) == (change is scale)
    assert before[0].startswith("blake2b:")
    assert len(before[0]) == len("blake2b:") + 32


def test_the_digest_of_a_copy_is_the_same():
    pipe = with_adapters()
    assert weights_digest(copy.deepcopy(pipe.unet)) == weights_digest(pipe.unet)
