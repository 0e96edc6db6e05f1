"""Every token belongs to the word whose characters it was made from."""

import time

import pytest

from memfold.explain.tokens import word_of_tokens, words_of
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
CLIP, WORDS = tiny.clip_tokenizer(), tiny.word_tokenizer()


def given(tokenizer, text, length=tiny.LENGTH):
    return tokenizer(text, padding="max_length", truncation=True, max_length=length)["input_ids"]


def of(tokenizer, prompt, **options):
    return word_of_tokens(tokenizer, given(tokenizer, prompt, **options), prompt)


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __call__(self, text, **options):
        return CLIP(text, **{k: v for k, v in options.items() if k != "return_offsets_mapping"})


@pytest.mark.parametrize("prompt", ["a  photo\tof\n the dog ", " É 😀 well-known", "a\u00a0b"])
def test_words_are_the_prompts_own_characters(prompt):
    words = words_of(prompt)
    assert [w.text for w in words] == prompt.split()
    assert [prompt[w.start : w.end] for w in words] == prompt.split()


def test_clip_has_a_start_and_padding_that_belong_to_no_word():
    assert of(CLIP, "a photo of the dog") == [None, 0, 1, 2, 3, 4, *[None] * 10]


def test_a_word_of_several_tokens():
    tokens = CLIP("a qqz dog", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 5
    assert of(CLIP, "a qqz dog")[:7] == [None, 0, 1, 1, 1, 2, None]


def test_a_hyphen_and_a_comma_stay_with_their_word():
    assert of(WORDS, "a dog-cat, red!")[:8] == [0, 1, 1, 1, 1, 2, 2, None]


def test_repeated_words_keep_their_places():
    assert of(WORDS, "dog dog a dog")[:5] == [0, 1, 2, 3, None]


@pytest.mark.parametrize("tokenizer", [CLIP, WORDS])
@pytest.mark.parametrize("prompt", ["  A Photo  of THE dog ", "a photo 😀 É dog", "İ a dog 'dog'"])
def test_case_space_and_strange_characters_do_not_shift_words(tokenizer, prompt):
    found = of(tokenizer, prompt)
    own = [w for w in found if w is not None]
    assert own == sorted(own)
    assert set(own) == set(range(len(prompt.split())))


def test_lower_case_given_by_the_pipeline_is_found():
    prompt = "  A Photo of THE Dog"
    assert word_of_tokens(WORDS, given(WORDS, prompt.lower().strip()), prompt)[:6] == [
        0, 1, 2, 3, 4, None,
    ]  # fmt: skip


@pytest.mark.parametrize("tokenizer", [CLIP, WORDS])
def test_text_around_the_prompt_belongs_to_no_word(tokenizer):
    ids = tokenizer("photo by anna a red", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("the red dog", add_special_tokens=False)["input_ids"]
    found = word_of_tokens(tokenizer, [*ids, *prompt, *ids], "the red dog")
    assert found == [None] * len(ids) + [0, 1, 2] + [None] * len(ids)


def test_a_first_token_that_merged_with_the_text_before_costs_that_word_alone():
    ids = WORDS("the red dog", add_special_tokens=False)["input_ids"]
    assert word_of_tokens(WORDS, [9, 99, *ids[1:]], "the red dog") == [None, None, 1, 2]


def test_words_beyond_the_tokenizers_length_have_no_token():
    prompt = " ".join(tiny.WORDS[:4] * 8)
    assert of(WORDS, prompt) == [*range(15), None]
    assert of(CLIP, prompt) == [None, *range(14), None]


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_has_no_words(prompt):
    assert words_of(prompt) == ()
    assert set(of(CLIP, prompt)) == {None}


def test_a_very_long_prompt_is_quick():
    ids, prompt = given(WORDS, "dog " * 20), "dog " * 50_000
    began = time.perf_counter()
    assert word_of_tokens(WORDS, ids, prompt) == [*range(15), None]
    assert time.perf_counter() - began < 5


def test_without_offsets_words_are_tokenized_one_by_one():
    prompt = "a qqz dog-cat of anna"
    ids = given(CLIP, prompt)
    assert word_of_tokens(Slow(), ids, prompt) == word_of_tokens(CLIP, ids, prompt)


@pytest.mark.parametrize(
    "prompt", ["a <b>dog</b> \x1b[31m", "\u202edog a", "\x00dog", "\uff1cdog\uff1e"]
)
def test_hostile_characters_reach_no_other_word(prompt):
    for tokenizer in (CLIP, WORDS):
        found = [w for w in of(tokenizer, prompt) if w is not None]
        assert found == sorted(found)
        assert all(0 <= w < len(prompt.split()) for w in found)
