"""What memfold asks of a tokenizer changes nothing for the runs that share it."""

from __future__ import annotations

import pytest

import memfold
from memfold.denoisers.adapters.tokenizers import own_tokenizer
from memfold.mitigation.vocabulary import vocabulary
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
PROMPT = "a photo of the dog"


def states(pipe):
    """The padding and truncation that each fast tokenizer of a pipeline holds."""
    parts = pipe.components.items()
    backends = {k: v._tokenizer for k, v in parts if k.startswith("tokenizer") and v is not None}
    return {k: (v.padding, v.truncation) for k, v in backends.items()}


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "pixart"])
def test_the_pipelines_own_tokenizers_keep_their_state(family):
    """A run of another thread may stand between a tokenizer's set-up and its use."""
    model = memfold.TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))
    for name in states(model.pipe):  # as a run of another thread sets them up
        given = {"padding": "max_length", "truncation": True, "max_length": tiny.LENGTH}
        getattr(model.pipe, name)(PROMPT, **given)
    before = states(model.pipe)
    model.conditions(PROMPT)
    assert states(model.pipe) == before
    words = vocabulary(model)
    words.near("dog", 2)
    words.pooled([PROMPT, "red house"])
    assert states(model.pipe) == before
    memfold.attribute(model, PROMPT, seeds=[0], num_inference_steps=2)
    assert states(model.pipe) == before
    memfold.mitigate(model, PROMPT, method="padding", num_inference_steps=2)
    assert states(model.pipe) == before


def test_a_copy_is_made_once_a_thread_and_anew_when_tokens_are_added():
    tokenizer = tiny.clip_tokenizer()

    class Pipe:
        pass

    pipe = Pipe()
    pipe.tokenizer = tokenizer
    own = own_tokenizer(pipe, "tokenizer_2", "tokenizer")
    assert own is not tokenizer
    assert own(PROMPT).input_ids == tokenizer(PROMPT).input_ids
    assert own_tokenizer(pipe, "tokenizer") is own
    tokenizer.add_tokens(["zorvex"])
    again = own_tokenizer(pipe, "tokenizer")
    assert again(" zorvex").input_ids == tokenizer(" zorvex").input_ids
    assert own_tokenizer(pipe, "tokenizer_3") is None
