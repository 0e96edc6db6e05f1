"""Attributions whose answer is known: scores that are linear in what they hang on."""

import ast
import inspect
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import memfold
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.exact import GaussianDenoiser
from memfold.explain.attribution import attribute
from memfold.explain.gradients import Embedding, gradient_of
from memfold.explain.states import keyed_noises
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import generate_watched
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
PROMPT = "a red dog"
OWNER = [None, 0, 1, 1, 2, None]  # start, three words of which the second has two tokens, padding


def leaf(width=5):
    return torch.zeros(1, len(OWNER), width, dtype=torch.float64, requires_grad=True)


def slopes(seed=0, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, len(OWNER), width, generator=generator, dtype=torch.float64)


def weights(value, *leaves):
    return gradient_of(value, Embedding(None, leaves, tuple([OWNER] * len(leaves))), 3)


def by_hand(a):
    norms = a[0].norm(dim=1)
    return torch.stack([norms[1], norms[2] + norms[3], norms[4]])


def test_a_linear_score_has_the_norms_of_its_slopes():
    e, a = leaf(), slopes()
    torch.testing.assert_close(weights((a * e).sum() + 7.0, e), by_hand(a))


@pytest.mark.parametrize("factor", [0.0, 1.0, -3.0, 1e6])
def test_weights_scale_with_the_score(factor):
    e, a = leaf(), slopes()
    torch.testing.assert_close(weights(factor * (a * e).sum(), e), abs(factor) * by_hand(a))


def test_a_word_without_influence_has_none_and_the_template_around_counts_for_nobody():
    e, a = leaf(), slopes()
    a[0, 4] = 0
    found = weights((a * e).sum(), e)
    assert float(found[2]) == 0.0
    a[0, 0] *= 100
    a[0, 5] *= 100
    torch.testing.assert_close(weights((a * e).sum(), e), found)


def test_encoders_add_up_and_one_that_is_not_used_adds_nothing():
    e, f, idle, a, b = leaf(), leaf(3), leaf(), slopes(0), slopes(1, 3)
    value = (a * e).sum() - (b * f).sum()
    torch.testing.assert_close(weights(value, e, f, idle), by_hand(a) + by_hand(b))


def test_a_score_linear_in_the_prompts_embedding_through_the_whole_of_it(monkeypatch):
    """Weights, errors and the fall without a word, all by hand; two states, three seeds."""
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    run = generate_watched(model, PROMPT, (1, 2, 3), num_inference_steps=3, guidance_scale=3.0)
    shape = run.cond.kwargs["encoder_hidden_states"].shape
    a = torch.randn(shape, generator=torch.Generator().manual_seed(5))

    def linear(network, x, sigma, cond, uncond):
        return (a * cond.kwargs["encoder_hidden_states"]).sum().expand(len(x))

    monkeypatch.setitem(SCORES, "cfg_norm", linear)
    found = attribute(
        model, PROMPT, score="cfg_norm", wrt="prompt", steps=(0, 2), generation=run,
        leave_one_out=True,
    )  # fmt: skip
    torch.testing.assert_close(found.weights, a[0].norm(dim=1)[1:4])
    torch.testing.assert_close(found.stderr, torch.zeros(3), atol=1e-6, rtol=0)
    full = (a * run.cond.kwargs["encoder_hidden_states"]).sum()
    for i, shorter in enumerate(("red dog", "a dog", "a red")):
        cut = (a * model.condition(shorter).kwargs["encoder_hidden_states"]).sum()
        assert float(found.left_out[i]) == pytest.approx(float(full - cut), rel=1e-4, abs=1e-4)


def test_the_prompts_embedding_against_differences():
    """wrt="prompt" in double precision: each place of the second word moved along each axis."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = TextToImage(tiny.FAMILIES["sd1 (eps)"]().to(torch.float64))
    run = generate_watched(model, PROMPT, (4,), num_inference_steps=4, guidance_scale=3.0)
    found = attribute(model, PROMPT, score="cfg_norm", wrt="prompt", steps=(1,), generation=run)
    view, h = run.views[1], 1e-4

    @torch.no_grad()
    def score(axis, h):
        def move(name, tensor):
            tensor = tensor.clone()
            if name == "encoder_hidden_states":
                tensor[:, 2, axis] += h
            return tensor

        with_, without = (
            model.model(view.x, view.sigma, c) for c in (run.cond.map(move), run.uncond)
        )
        return float((with_ - without).norm()) / view.sigma

    width = run.cond.kwargs["encoder_hidden_states"].shape[2]
    by_hand = np.linalg.norm([(score(k, h) - score(k, -h)) / (2 * h) for k in range(width)])
    assert by_hand > 0
    assert float(found.weights[1]) == pytest.approx(by_hand, rel=1e-4)


def test_noises_are_keyed_by_the_number_of_the_seed_alone():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    seeds = (7, -1, 2**40 + 7)
    whole = keyed_noises(x, seeds, 2, 11)
    for i, seed in enumerate(seeds):
        torch.testing.assert_close(keyed_noises(x[i : i + 1] + 1e-7, (seed,), 2, 11)[0], whole[i])
    flat = whole.flatten(2).flatten(0, 1)
    correlation = torch.corrcoef(flat).fill_diagonal_(0).abs().max()
    assert correlation < 0.9  # six different draws of 20 numbers
    assert not torch.equal(keyed_noises(x, seeds, 2, 12), whole)
    many = keyed_noises(torch.zeros(500, 64), range(500), 4, 3)
    assert float(many.mean()) == pytest.approx(0.0, abs=4 / 128_000**0.5)
    assert float(many.var()) == pytest.approx(1.0, abs=4 * (2 / 128_000) ** 0.5)


@pytest.fixture(scope="module")
def cut():
    """A prompt of two thousand words, of which 14 fit; with the seconds that it took."""
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    began = time.perf_counter()
    found = attribute(
        model, " ".join([*tiny.WORDS[:7], *tiny.WORDS[:7]]) + " dog" * 2000, seeds=(0,),
        score="cfg_norm", steps=(1,), num_inference_steps=2, leave_one_out=True,
    )  # fmt: skip
    return found, time.perf_counter() - began


def test_words_that_were_cut_off_cost_no_pass_when_left_out(cut):
    found, seconds = cut
    assert seconds < 60  # four thousand passes of the text encoder take minutes
    assert (found.weights[:14] > 0).all()
    for fall in (found.left_out, found.masked):
        assert fall[14:].abs().max() == 0.0
        assert fall[:14].abs().min() > 0


def test_words_that_were_cut_off_do_not_count_in_the_rank_correlation(cut):
    """Their zeros stand on both sides by construction."""
    found, _ = cut
    for value, fall in (
        (found.rank_correlation, found.left_out),
        (found.masked_correlation, found.masked),
    ):
        assert value == pytest.approx(spearmanr(found.weights[:14], fall[:14]).statistic)
        assert value != pytest.approx(spearmanr(found.weights, fall).statistic)  # with the zeros


def test_two_words_have_no_rank_correlation():
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    found = attribute(
        model, "dog " + "x" * 4000 + " red red", seeds=(0,), score="cfg_norm", steps=(1,),
        num_inference_steps=2, leave_one_out=True,
    )  # fmt: skip
    assert found.weights[2:].abs().max() == 0.0
    assert np.isnan(found.rank_correlation)
    assert np.isnan(found.masked_correlation)


@pytest.mark.parametrize("name", list(SCORES))
def test_a_misspelt_option_of_a_score_is_an_error(name):
    """None of the scores takes, and drops, an option that it does not use."""
    x, model = torch.zeros(1, 2), GaussianDenoiser(torch.zeros(2), torch.ones(2))
    for wrong in ("guidance", "guidance_scales", "nois", "probe"):
        with pytest.raises(TypeError, match=wrong):
            SCORES[name](model, x, 1.0, None, None, **{wrong: 1.0})
    kinds = {p.kind for p in inspect.signature(SCORES[name]).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_no_function_swallows_options():
    """`**_` takes every misspelling for an option; nowhere in the library."""
    for file in Path(memfold.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                rest = node.args.kwarg
                assert rest is None or not rest.arg.startswith("_"), (file, node.lineno)
