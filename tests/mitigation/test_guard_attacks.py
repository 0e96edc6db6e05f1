"""The guard hands out nothing that was not calibrated, and nothing that it could not judge."""

from __future__ import annotations

import copy
import functools
import gc
import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import calibrate
from memfold.mitigation.guard import Guard, MemorizationWarning, Refused
from memfold.sampling.monitor import Monitor
from memfold.types import InputError
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
PROMPT = "a photo of the red dog"
PROMPTS = [f"a photo of the {w}" for w in tiny.WORDS if len(w) > 1][:11]
RUN = {"num_inference_steps": 3, "guidance_scale": 3.0}


@functools.cache
def model():
    """A pipeline of this file's own: tests change it and put it back."""
    made = TextToImage(tiny.FAMILIES["sd1 (eps)"]())
    made.pipe.set_progress_bar_config(disable=True)
    return made


@functools.cache
def band(**more):
    """A band from real runs, with a limit that nothing reaches."""
    made = calibrate(model(), PROMPTS, alpha=0.1, images=2, **RUN, **more)
    return replace(made, threshold=1e6)


@functools.cache
def stop_all():
    """The same band, with a limit that every run exceeds."""
    return replace(band(), threshold=-1e6)


def guard(made=None, **options):
    return Guard(model(), made or band(), **{"on_memorized": "refuse"} | options)


def draw(guarded, prompt=PROMPT, **more):
    given = {**RUN, "generator": torch.Generator().manual_seed(5), "output_type": "latent"}
    return guarded(**{"prompt": prompt} | given | more).images


def embeds():
    return model().pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]


def keep_latents(pipe, i, t, values):
    return values


ARGUMENTS = [
    ("negative_prompt", PROMPT),
    ("negative_prompt", "a blue house"),
    ("negative_prompt", ""),
    ("negative_prompt_embeds", embeds),
    ("prompt_embeds", embeds),
    ("height", 32),
    ("width", 8),
    ("guidance_rescale", 0.7),
    ("guidance_scale", 1.0),
    ("guidance_scale", 3.5),
    ("num_inference_steps", 2),
    ("num_inference_steps", 0),
    ("timesteps", [801, 401, 1]),
    ("sigmas", [10.0, 1.0, 0.1]),
    ("eta", 0.5),
    ("latents", lambda: torch.zeros(1, *model().shape)),
    ("clip_skip", 1),
    ("cross_attention_kwargs", {"scale": 0.1}),
    ("ip_adapter_image", Image.new("RGB", (8, 8))),
    ("ip_adapter_image_embeds", [torch.zeros(1, 2, 3)]),
    ("callback_on_step_end", keep_latents),
    ("callback_on_step_end_tensor_inputs", ["latents", "prompt_embeds"]),
    ("callback", keep_latents),
]


@pytest.mark.parametrize("action", ["refuse", "mitigate", "warn"])
def test_an_argument_that_was_not_calibrated_is_named_before_anything_is_drawn(action):
    guarded, calls = guard(on_memorized=action), []
    handle = model().network.register_forward_hook(lambda *_: calls.append(1))
    try:
        for name, value in ARGUMENTS:
            value = value() if callable(value) and value is not keep_latents else value
            with pytest.raises(InputError, match=name.replace("num_inference_", "")):
                draw(guarded, **{name: value})
            assert guarded.last == ""
        for prompt in ([PROMPT], [PROMPT, PROMPT], None, 3):
            with pytest.raises(InputError, match="one prompt at a time, as a string"):
                draw(guarded, prompt)
    finally:
        handle.remove()
    assert not calls


def test_every_argument_of_the_pipeline_is_held_or_free():
    """None that the pipeline takes, today's or tomorrow's, slips past the list."""
    from memfold.memorization.conditions import FREE, arguments_of

    free = {"prompt", "generator", "num_images_per_prompt", "output_type", "return_dict"}
    assert free == FREE
    assert set(arguments_of(model(), {})) == model().accepts - free - {"self", "kwargs"}


@pytest.mark.parametrize(
    "more",
    [
        {"num_images_per_prompt": 2},
        {"return_dict": True},
        {"height": None, "negative_prompt": None, "eta": 0.0, "guidance_rescale": 0.0},
        {"generator": None},
        {"output_type": "pt"},
    ],
)
def test_what_the_caller_may_vary_is_bit_identical_to_the_bare_pipeline(more):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        bare = draw(model().pipe, **more)
        torch.manual_seed(2)
        assert torch.equal(draw(guard(), **more), bare)
    for value in (0, -1, True, 2.0, 3):
        with pytest.raises(InputError, match="num_images_per_prompt"):
            draw(guard(), num_images_per_prompt=value)


def test_what_was_calibrated_passes_and_without_it_does_not():
    """A calibrated size, rescaling and negative prompt are the band's own call."""
    given = {"guidance_rescale": 0.5, "height": 16, "negative_prompt": "a blue house"}
    made = calibrate(model(), PROMPTS, alpha=0.1, **RUN, **given)
    guarded = guard(replace(made, threshold=1e6))
    assert torch.equal(draw(guarded, **given), draw(model().pipe, **given))
    for name in given:
        with pytest.raises(InputError, match=name):
            draw(guarded, **{k: v for k, v in given.items() if k != name})


def test_a_prompt_is_not_its_own_negative():
    negative = "a blue house by anna"
    guarded = guard(band(negative_prompt=negative))
    draw(guarded, negative_prompt=negative)
    for same in (negative, f" {negative.upper()}  "):
        with pytest.raises(Refused, match="its own negative_prompt"):
            draw(guarded, same, negative_prompt=negative)
    with pytest.raises(InputError, match="must watch cfg_norm"):
        calibrate(
            model(), PROMPTS, alpha=0.1, scores=["guided_score_norm"], negative_prompt="a", **RUN
        )


def test_a_prompt_that_hardly_pulls_against_the_negative_is_refused():
    """Embedded, the negative cannot be compared in words; the pull itself shows it."""
    own = {"negative_prompt_embeds": embeds()}
    made = calibrate(model(), PROMPTS, alpha=0.1, **RUN, **own)
    guarded = guard(replace(made, threshold=1e6))
    draw(guarded, "old tree quiet house dublin", **own)
    with pytest.raises(Refused, match="pulls too little against the negative prompt"):
        draw(guarded, PROMPT, **own)
    assert guarded.last == "refused"


def test_a_change_of_the_pipeline_after_the_guard_was_made_is_seen():
    guarded, pipe = guard(), model().pipe
    draw(guarded)
    own, encoder = pipe.scheduler, pipe.text_encoder
    moved = copy.deepcopy(encoder)
    with torch.no_grad():
        next(moved.parameters()).mul_(1.5)
    spaced = DDIMScheduler.from_config(own.config, timestep_spacing="trailing")
    other = EulerDiscreteScheduler.from_config(own.config)
    table = copy.deepcopy(own)
    table.alphas_cumprod = table.alphas_cumprod**1.1
    try:
        for name, value, match in (
            ("scheduler", other, "scheduler = "),
            ("scheduler", spaced, "timestep_spacing"),
            ("scheduler", table, "scheduler_table"),
            ("text_encoder", moved, "text_encoder"),
        ):
            before = getattr(pipe, name)
            setattr(pipe, name, value)
            with pytest.raises(InputError, match=match):
                draw(guarded)
            setattr(pipe, name, before)
        weight = next(model().network.parameters()).data
        kept = weight.clone()
        weight.mul_(1.01)
        with pytest.raises(InputError, match="digest"):
            draw(guarded)
        weight.copy_(kept)
        swapped = pipe.unet
        pipe.unet = copy.deepcopy(swapped)
        with pytest.raises(Refused, match="judged"):
            draw(guarded)
        pipe.unet = swapped
    finally:
        pipe.scheduler, pipe.text_encoder = own, encoder
    draw(guarded)
    assert guarded.last == "passed"


def test_another_scale_of_an_adapter_is_seen():
    peft = pytest.importorskip("peft")
    own = TextToImage(tiny.FAMILIES["sd1 (eps)"]())
    own.pipe.set_progress_bar_config(disable=True)
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    own.pipe.unet.add_adapter(config, "mine")
    made = replace(calibrate(own, PROMPTS, alpha=0.1, **RUN), threshold=1e6)
    guarded = Guard(own, made, on_memorized="refuse")
    draw(guarded)
    for change, back in (
        (lambda: own.pipe.set_adapters("mine", 0.1), lambda: own.pipe.set_adapters("mine", 1.0)),
        (own.pipe.unet.disable_adapters, own.pipe.unet.enable_adapters),
    ):
        change()
        with pytest.raises(InputError, match=r"switches|digest"):
            draw(guarded)
        back()
        draw(guarded)


# What could not be judged


class Spoiled:
    """Hooks the network: NaN in its answer, or an error, from some call on."""

    def __init__(self, call, error=None):
        self.call, self.error, self.calls = call, error, 0

    def __enter__(self):
        self.handle = model().network.register_forward_hook(self.after)

    def __exit__(self, *_):
        self.handle.remove()

    def after(self, module, args, output):
        self.calls += 1
        if self.calls < self.call:
            return None
        if self.error is not None:
            raise self.error
        spoiled = output[0].clone()
        spoiled[0, 0, 0, 0] = float("nan")
        return (spoiled,)


@pytest.mark.parametrize("action", ["refuse", "mitigate", "warn"])
@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("error", [None, RuntimeError("no memory"), MemoryError(), KeyError("x")])
def test_what_cannot_be_judged_is_refused_in_every_mode(action, call, error):
    guarded = guard(on_memorized=action)
    with Spoiled(call, error), pytest.raises(Refused) as caught:
        draw(guarded)
    assert guarded.last == "refused"
    assert "could not be judged" in caught.value.reason
    if error is not None:
        assert type(error).__name__ in caught.value.reason
    assert caught.value.__context__ is None
    assert not model().network._forward_hooks
    draw(guarded)
    assert guarded.last == "passed"


def test_a_judged_run_that_leaves_the_band_warns_and_a_later_nan_refuses():
    guarded = guard(stop_all(), on_memorized="warn")
    with pytest.warns(MemorizationWarning, match="at step 1"):
        draw(guarded)
    assert guarded.last == "warned"
    with Spoiled(3), pytest.raises(Refused, match="shows no finite"):
        draw(guarded)


def test_a_blind_monitor_and_steps_that_nobody_saw_are_refused(monkeypatch):
    def see(monitor, *given):
        if len(monitor.sigmas) == 2:
            raise KeyError("cannot read it")
        return real(monitor, *given)

    guarded, real = guard(), Monitor._see
    monkeypatch.setattr(Monitor, "_see", see)
    with pytest.raises(Refused, match=r"could not be watched.*cannot read it"):
        draw(guarded)
    monkeypatch.undo()
    guarded = guard()
    monkeypatch.setattr(type(model().pipe.scheduler), "set_timesteps", _no_steps)
    with pytest.raises(Refused, match="no step of the run was seen"):
        draw(guarded)
    monkeypatch.undo()
    fewer = replace(
        band(), sigmas=(*band().sigmas, 1e3),
        centre={k: (*v, 0.0) for k, v in band().centre.items()},
        scale={k: (*v, 1.0) for k, v in band().scale.items()},
    )  # fmt: skip
    with pytest.raises(Refused, match="3 steps were judged of the 4"):
        draw(guard(fewer))


def _no_steps(scheduler, count, device=None):
    scheduler.num_inference_steps, scheduler.timesteps = count, torch.zeros(0, dtype=torch.long)


def test_a_mitigation_that_fails_ends_in_a_refusal(monkeypatch):
    from memfold import mitigation

    def breaks(model, prompt, **_):
        raise ValueError("this size cannot be drawn")

    monkeypatch.setitem(mitigation.METHODS, "breaks", breaks)
    guarded = guard(stop_all(), on_memorized="mitigate", method="breaks")
    with pytest.raises(Refused, match="mitigation by breaks failed: this size") as caught:
        draw(guarded)
    assert caught.value.__context__ is None
    assert guarded.last == "refused"


def test_arguments_that_the_pipeline_refuses_are_the_callers_error():
    guarded = guard()
    with pytest.raises(InputError, match="refuses its arguments"):
        draw(guarded, generator=[torch.Generator()] * 2)
    with pytest.raises(InputError, match="generator: pass"):
        draw(guarded, generator=3)


@pytest.mark.parametrize(
    ("action", "late"), [("refuse", False), ("refuse", True), ("mitigate", False), ("warn", True)]
)
def test_nothing_of_a_refused_image_is_left(action, late):
    """No latent, prediction or frame of the run is reachable: schedulers keep foreseen images."""
    pipe = model().pipe
    own = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    try:
        solved = TextToImage(pipe)
        made = replace(calibrate(solved, PROMPTS, alpha=0.1, **RUN), threshold=1e6)
        limit = -1e6 if not late else 1e6
        guarded = Guard(
            solved, replace(made, threshold=limit), on_memorized=action, method="random_words"
        )
        gc.collect()
        before = {id(o) for o in gc.get_objects() if _is_latent(o)}
        error, kept = None, list(pipe.scheduler.model_outputs)  # of the calibration's last run
        with Spoiled(3 if late else 10**9):
            try:
                draw(guarded)
            except Refused as refused:
                error = refused
        assert error is not None
        gc.collect()
        held = [o for o in gc.get_objects() if _is_latent(o) and id(o) not in before]
        assert not held
        left = pipe.scheduler.model_outputs
        assert all(a is b for a, b in zip(left, kept, strict=True))
        assert error.__cause__ is error.__context__ is None
    finally:
        pipe.scheduler = own


def _is_latent(thing):
    return issubclass(type(thing), torch.Tensor) and tuple(thing.shape[1:]) == model().shape


def test_calls_from_several_threads_wait_for_one_another():
    from concurrent.futures import ThreadPoolExecutor

    guarded, bare = guard(), draw(model().pipe)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: draw(guarded), range(4)))
    assert all(torch.equal(image, bare) for image in images)


# Bands


def broken():
    """Bands' files, each with one thing wrong."""
    given = json.loads(json.dumps({"memfold": "band", **vars(band())}))
    name = given["scores"][0]
    for path, value in [
        (("threshold",), float("nan")), (("threshold",), float("inf")), (("threshold",), "3"),
        (("threshold",), None), (("threshold",), True), (("threshold",), 10**400),
        (("sigmas",), given["sigmas"][::-1]), (("sigmas", 0), float("nan")), (("sigmas", 0), "1"),
        (("sigmas", 0), -1.0), (("sigmas",), []), (("sigmas",), "123"),
        (("centre", name, 0), float("nan")), (("centre", name, 0), None),
        (("centre", name), [1.0]), (("centre",), []), (("centre", "other"), [1.0] * 3),
        (("scale", name, 0), 0.0), (("scale", name, 0), -1.0), (("scale", name, 1), float("inf")),
        (("scores",), []), (("scores",), "cfg_norm"), (("scores",), [name, name]),
        (("scores", 0), 3), (("n",), 0), (("n",), "99"), (("images",), 0), (("images",), 1.5),
        (("alpha",), 0.0), (("alpha",), float("nan")), (("conditions",), None),
        (("conditions",), [1]), (("memfold",), "bands"), (("more",), 1),
    ]:  # fmt: skip
        made = copy.deepcopy(given)
        place = made
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        yield path, value, made


def test_a_band_with_one_wrong_value_is_no_band(tmp_path):
    file = tmp_path / "band.json"
    band().save(file)
    assert Band.load(file) == band()
    for path, value, made in broken():
        file.write_text(json.dumps(made))
        with pytest.raises(InputError, match="is no band; write it with memfold calibrate"):
            pytest.fail(f"{path} = {value!r} was read: {Guard(model(), file)}")


def test_a_band_made_by_hand_is_checked_too():
    for change in (
        {"threshold": float("nan")}, {"scale": dict.fromkeys(band().scores, (0.0,) * 3)},
        {"sigmas": (1.0, float("nan"), 3.0)}, {"images": 0},
    ):  # fmt: skip
        with pytest.raises(InputError, match="this is no band"):
            replace(band(), **change)
    strange = Band(("x",), (1.0,), {"x": (0.0,)}, {"x": (1.0,)}, 1.0, 0.01, 99, 1, {})
    with pytest.raises(InputError, match="the band is of x"):
        Guard(model(), strange)
    with pytest.raises(InputError, match="a score is NaN"):
        band().fires(band().sigmas[0], float("nan"))


def test_a_band_of_an_older_memfold_says_that_it_must_be_made_anew(tmp_path):
    older = {k: v for k, v in band().conditions.items() if k not in ("arguments", "latent_shape")}
    replace(band(), conditions=older).save(tmp_path / "band.json")
    with pytest.raises(InputError, match="does not record arguments, latent_shape"):
        Guard(model(), tmp_path / "band.json")


def test_the_command_calibrates_further_arguments(tmp_path, monkeypatch, capsys):
    from memfold.cli import main

    directory, out = tmp_path / "model", tmp_path / "band.json"
    model().pipe.save_pretrained(directory)
    (tmp_path / "ordinary.txt").write_text("\n".join(PROMPTS))

    def run(*arguments):
        given = [w for a in arguments for w in ("--argument", a)]
        prompts = str(tmp_path / "ordinary.txt")
        command = ["calibrate", str(directory), "--prompts", prompts, "--out", str(out)]
        command += ["--alpha", "0.1", "--steps", "3", "--guidance-scale", "3"]
        monkeypatch.setattr("sys.argv", ["memfold", *command, *given])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().err

    given = {"height": 16, "negative_prompt": "a blue house"}
    for wrong, match in (("height", "not NAME=VALUE"), ("heigth=16", "takes no such"),
                         ("prompt=a", "takes no such"), ("guidance_scale=2", "another option"),
                         ("callback_on_step_end=1", "no band holds")):  # fmt: skip
        code, said = run(wrong)
        assert code == 2
        assert match in said
    code, said = run("height=16", "negative_prompt=a blue house")
    assert code == 0, said
    made = Band.load(out)
    assert {k: made.conditions["arguments"][k] for k in given} == given
    guarded = Guard(directory, replace(made, threshold=1e6), on_memorized="refuse")
    draw(guarded, **given)
    with pytest.raises(InputError, match="height = 16"):
        draw(guarded, negative_prompt="a blue house")


@pytest.mark.slow
def test_memorized_prompts_are_refused_under_every_attack_that_is_in_the_docs():
    """Eleven memorized prompts of the bundled pipeline; none passes under anything."""
    from experiments.text_to_image.attacks import measure

    found = measure(11)
    assert len(found) > 20
    assert {name: row["passed"] for name, row in found.items()} == dict.fromkeys(found, 0)
    assert not [name for name, row in found.items() if "(crash)" in row["answer"]]


def test_calibration_refuses_what_no_band_can_hold_for():
    for name, value in (
        ("callback_on_step_end", keep_latents),
        ("latents", torch.zeros(1, *model().shape)),
        ("num_inference_steps", 0),
    ):
        with pytest.raises(InputError, match=name):
            calibrate(model(), PROMPTS, alpha=0.1, **RUN | {name: value})
