"""Hooks take the run that set them and no other: pipelines, threads and tasks that share parts."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import diffusers
import peft
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from memfold import attribute, mitigate
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.prompt_scores import math_attention
from memfold.sampling.monitor import Monitor
from memfold.sampling.steering import conditioned, steered
from memfold.sampling.trajectory import generate_watched
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET
OTHER = "the quiet old house"
STEPS = 4
ALONE = 60  # seconds after which a thread is taken for stuck


def like(pipe, **parts):
    """Another pipeline object of the same kind, with the same parts.

    The tokenizer is its own: those of transformers note the padding of a call in themselves, and a
    plain request in another thread changes it.
    """
    own = {k: copy.deepcopy(v) for k, v in pipe.components.items() if k.startswith("tokenizer")}
    parts = own | parts
    more = {} if "safety_checker" not in pipe.components else {"requires_safety_checker": False}
    found = type(pipe)(**{**pipe.components, **parts, **more})
    found.set_progress_bar_config(disable=True)
    return found


def draw(pipe, prompt=PROMPT, seed=3, **options):
    out = pipe(
        prompt, num_inference_steps=STEPS, output_type="latent",
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    return out.images


def threads(*jobs):
    """Run jobs at once, begun together; return their results or raise what one of them raised."""
    gate = threading.Barrier(len(jobs))

    def begin(job):
        gate.wait(ALONE)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [f.result(ALONE * 5) for f in [pool.submit(begin, job) for job in jobs]]


@contextmanager
def beside(job):
    """Run a generator's first half in a thread, then the block, then the second half."""
    inside, leave, failed = threading.Event(), threading.Event(), []

    def work():
        steps = job()
        try:
            next(steps)
            inside.set()
            assert leave.wait(ALONE)
            next(steps, None)
        except BaseException as error:
            failed.append(error)
        finally:
            steps.close()
            inside.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(ALONE)
    try:
        if not failed:
            yield
    finally:
        leave.set()
        thread.join(ALONE)
    if failed:
        raise failed[0]


@pytest.fixture(scope="module", params=["sd1 (eps)", "lumina2"])
def pair(request):
    """Two pipeline objects that share everything, as far as they are networks and schedulers."""
    one = tiny.pipeline(request.param)
    options = dict(tiny.OPTIONS.get(request.param, {}))
    return TextToImage(one, **options), like(one), options


def blocks(model):
    """Whatever changes or ends a run of the pipeline that it was made for."""
    yield steered(model, lambda view: 0 * view.conditional)
    if not (model.layout.calls == 2 and model.layout.conditional == 1):
        yield conditioned(model, model.condition(OTHER))
    yield Monitor(model, on_step=pytest.fail)


@pytest.mark.parametrize("where", ["another pipeline", "another thread"])
def test_blocks_leave_plain_requests_alone(pair, where):
    model, other, options = pair
    request = other if where == "another pipeline" else model.pipe
    bare = draw(request, **options)
    for block in blocks(model):
        if where == "another pipeline":  # in the very same thread
            with block:
                assert torch.equal(draw(request, **options), bare)
            continue

        def job(block=block):
            with block:
                yield

        with beside(job):
            assert torch.equal(draw(request, **options), bare)
    assert torch.equal(draw(request, **options), bare)


def test_a_monitor_sees_its_own_run_alone(pair):
    """Both draw in turn, step by step, each under a monitor of its own."""
    model, other, options = pair
    second = TextToImage(other, **options)
    jobs = [(model, PROMPT, 3), (second, OTHER, 4)]

    def watched(model, prompt, seed, **more):
        with Monitor(model) as monitor:
            x = draw(model.pipe, prompt, seed, **options, **more)
        assert monitor.blind is None
        return x, monitor.scores

    alone = [watched(*job) for job in jobs]
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def in_turn(k):
        def after_step(pipe, i, t, kwargs):
            turns[1 - k].release()
            assert turns[k].acquire(timeout=ALONE)
            return kwargs

        assert turns[k].acquire(timeout=ALONE)
        try:
            return watched(*jobs[k], callback_on_step_end=after_step)
        finally:
            turns[1 - k].release()

    if type(model.pipe.scheduler).__name__.startswith("Flow"):  # it counts its steps
        second.pipe.scheduler = type(model.pipe.scheduler)(**model.pipe.scheduler.config)
    together = threads(lambda: in_turn(0), lambda: in_turn(1))
    for (x, scores), (y, others) in zip(alone, together, strict=True):
        assert torch.equal(x, y)
        assert scores.keys() == others.keys()
        assert all(torch.equal(v, others[k]) for k, v in scores.items())
    assert not torch.equal(alone[0][1]["cfg_norm"], alone[1][1]["cfg_norm"])


def test_recording_a_prompt_does_not_stop_another_draw(pair):
    """The record waits in its text encoder, hooks set, until the other request is drawn."""
    model, other, options = pair
    bare, encoder = draw(other, **options), model.pipe.text_encoder
    wanted = model._halves(OTHER, {})[0]
    mine, there, leave = threading.get_ident(), threading.Event(), threading.Event()

    def wait(*_):
        if threading.get_ident() != mine:
            there.set()
            assert leave.wait(ALONE)

    handle = encoder.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: model._halves(OTHER, {})[0])
        try:
            assert there.wait(ALONE)
            assert torch.equal(draw(other, **options), bare)
        finally:
            leave.set()
        found = found.result(ALONE)
    handle.remove()
    for name, value in wanted.kwargs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found.kwargs[name]), name


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_memfold_draws_in_the_middle_of_a_run_that_shares_the_scheduler(kind):
    """Other numbers of steps, other timesteps, the history of a solver: all in a copy."""
    more = {"clip_sample": False, "set_alpha_to_one": False} if kind == "DDIMScheduler" else {}
    one = tiny.sd1(tiny.vp(getattr(diffusers, kind), steps_offset=1, **more))
    other = like(one)
    model, bare, busy = TextToImage(one), draw(other), []

    def at_work(pipe, i, t, kwargs):
        if i == 1:

            def work():
                busy.append(model.generate(OTHER, [0], num_inference_steps=3))
                busy.append(model.condition(OTHER))
                busy.append(generate_watched(model, OTHER, [0], num_inference_steps=2))

            threads(work)
        return kwargs

    assert torch.equal(draw(other, callback_on_step_end=at_work), bare)
    assert len(busy) == 3
    assert torch.equal(busy[0], model.generate(OTHER, [0], num_inference_steps=3))


def jobs_of(model):
    """What memfold does with a pipeline, each with numbers to compare."""

    def plain():
        return [draw(model.pipe), draw(model.pipe, OTHER)]

    def watched():
        with Monitor(model, attention=True) as monitor:
            x = draw(model.pipe)
        return [x, *monitor.scores.values()]

    def recorded():
        model._conditions.clear()
        return [model.condition(PROMPT).kwargs["encoder_hidden_states"]]

    def mitigated():
        found = mitigate(model, PROMPT, method="embedding", seeds=[0], num_inference_steps=2)
        return [found.generate([0]).x]

    def weighed():
        found = attribute(model, PROMPT, seeds=[0], num_inference_steps=2)
        return [found.weights]

    return {"plain": plain, "Monitor": watched, "condition": recorded, "mitigate": mitigated,
            "attribute": weighed}  # fmt: skip


@pytest.mark.parametrize("shared", ["nothing", "network", "network and scheduler"])
def test_eight_threads(shared):
    """Each on a pipeline object of its own; all numbers are those of the jobs one after another."""
    first = tiny.sd1()
    first.set_progress_bar_config(disable=True)
    models = []
    for _ in range(8):
        pipe = first
        if shared == "nothing":
            pipe = tiny.sd1()
        elif shared == "network":
            pipe = like(first, scheduler=tiny.sd1().scheduler)
        else:
            pipe = like(first)
        pipe.set_progress_bar_config(disable=True)
        models.append(TextToImage(pipe))
    names = [
        "plain",
        "Monitor",
        "condition",
        "mitigate",
        "attribute",
        "Monitor",
        "plain",
        "mitigate",
    ]
    jobs = [jobs_of(m)[name] for m, name in zip(models, names, strict=True)]
    alone = [job() for job in jobs]
    for job, wanted, found in zip(names, alone, threads(*jobs), strict=True):
        for one, other in zip(wanted, found, strict=True):
            assert torch.equal(one, other), job


def test_a_task_that_copies_the_context_is_watched_and_a_pool_is_not():
    pipe = tiny.pipeline("sd1 (eps)")
    model, bare = TextToImage(pipe), draw(pipe)

    async def one(prompt):
        with Monitor(model) as monitor:
            x = await asyncio.to_thread(draw, pipe, prompt)
        return x, monitor

    x, monitor = asyncio.run(one(PROMPT))
    assert torch.equal(x, bare)
    assert monitor.scores["cfg_norm"].shape == (1, STEPS)
    with ThreadPoolExecutor(1) as pool:
        with Monitor(model) as outside:
            assert torch.equal(pool.submit(draw, pipe).result(), bare)
        assert outside.sigmas == []
        with Monitor(model) as outside:
            pool.submit(contextvars.copy_context().run, draw, pipe).result()
        assert torch.equal(outside.scores["cfg_norm"], monitor.scores["cfg_norm"])


def test_tasks_of_one_loop_have_monitors_of_their_own():
    one = tiny.pipeline("sd1 (eps)")
    models = [TextToImage(one), TextToImage(like(one))]
    alone = []
    for model, prompt in zip(models, (PROMPT, OTHER), strict=True):
        with Monitor(model) as monitor:
            draw(model.pipe, prompt)
        alone.append(monitor.scores["cfg_norm"])

    async def watched(model, prompt):
        with Monitor(model) as monitor:
            await asyncio.sleep(0)  # the other enters its block
            await asyncio.to_thread(draw, model.pipe, prompt)
        return monitor.scores["cfg_norm"]

    async def both():
        return await asyncio.gather(*map(watched, models, (PROMPT, OTHER)))

    for wanted, found in zip(alone, asyncio.run(both()), strict=True):
        assert torch.equal(wanted, found)


def test_the_step_stays_watched_until_the_last_of_two_threads_leaves():
    """Whoever replaced it first may leave first."""
    one = tiny.pipeline("sd1 (eps)")
    model, second = TextToImage(one), TextToImage(like(one))
    assert second.pipe.scheduler is one.scheduler

    def job():
        with Monitor(model):
            yield

    with Monitor(second) as monitor:
        pass
    stack = beside(job)
    stack.__enter__()
    monitor.__enter__()
    stack.__exit__(None, None, None)
    draw(second.pipe)
    monitor.__exit__()
    assert len(monitor.sigmas) == STEPS
    assert "step" not in vars(one.scheduler)


def paused(module, job):
    """Run a job in a thread up to its first call of a module, then the block, then the rest."""

    def half():
        there, leave = threading.Event(), threading.Event()
        mine = threading.get_ident()

        def wait(*_):
            if threading.get_ident() == worker.ident and not there.is_set():
                there.set()
                assert leave.wait(ALONE)

        handle = module.register_forward_pre_hook(wait)
        worker = threading.Thread(target=job)
        worker.start()
        assert there.wait(ALONE)
        assert worker.ident != mine
        try:
            yield
        finally:
            leave.set()
            worker.join(ALONE)
            handle.remove()

    return contextmanager(half)()


def test_an_adapter_switched_off_stays_on_for_another_draw():
    pipe = tiny.sd1()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    model, found = TextToImage(pipe, base="adapter off"), []
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    bare = draw(pipe)
    with_adapter, without = model.denoiser(PROMPT)(x, 1.0), model.base.denoiser(PROMPT)(x, 1.0)
    assert not torch.equal(with_adapter, without)
    with paused(pipe.unet.mid_block, lambda: found.append(model.base.denoiser(PROMPT)(x, 1.0))):
        assert torch.equal(draw(pipe), bare)
        assert torch.equal(model.denoiser(PROMPT)(x, 1.0), with_adapter)
    assert torch.equal(found[0], without)


def test_parameters_stay_trainable_for_another_thread():
    pipe = tiny.sd1()
    model, found = TextToImage(pipe), []
    d = model.denoiser(PROMPT)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))

    def slope():
        y = x.clone().requires_grad_()
        found.append(torch.autograd.grad(d(y, 1.0).sum(), y)[0])

    def trained():
        z, text = torch.ones(1, 4, 8, 8), torch.ones(1, 16, 32)
        loss = pipe.unet(z, 5, encoder_hidden_states=text).sample.sum()
        return torch.autograd.grad(loss, list(pipe.unet.parameters()), allow_unused=True)

    slope()
    wanted = [g is None for g in trained()]
    with paused(pipe.unet.mid_block, slope):
        assert all(p.requires_grad for p in pipe.unet.parameters())
        assert [g is None for g in trained()] == wanted
    assert torch.equal(*found)


def test_the_attention_of_second_derivatives_is_this_threads():
    """torch's switch of kernels is the process's: another draw's rounding would change."""
    q, seen = torch.randn(1, 2, 8, 4), []
    attend = torch.nn.functional.scaled_dot_product_attention
    with math_attention():
        threads(lambda: seen.append(torch.backends.cuda.flash_sdp_enabled()))
        here = attend(q, q, q)
    with sdpa_kernel([SDPBackend.MATH]):
        assert torch.equal(attend(q, q, q), here)
    assert seen == [torch.backends.cuda.flash_sdp_enabled()]
