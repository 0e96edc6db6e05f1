"""Tiny random pipelines, saved and loaded again, against direct calls of their networks."""

import copy
import json
import os
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
    VQModel,
)

from memfold.denoisers.adapters._images import Latent
from memfold.denoisers.adapters.diffusers import from_pipeline, load
from memfold.denoisers.base import FunctionDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.types import InputError
from tests.oracles import seeded, tiny_unet


def randomized(net, seed=0):
    """Give a network random weights where its initialization has zeros."""
    generator = seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return net.eval()


def scheduled(kind, **config):
    return kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **config)


def autoencoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.18215,
        ).eval()


def vq():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            num_vq_embeddings=16,
            norm_num_groups=4,
        ).eval()


def dit(n_classes=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiTTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,  # learned variance
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_embeds_ada_norm=n_classes,
        )
    labels = {i: f"class {i}" for i in range(n_classes)}
    return DiTPipeline(randomized(net), autoencoder(), scheduled(DDIMScheduler), id2label=labels)


def wide():
    """A network whose images are higher than wide."""
    return tiny_unet(sample_size=(16, 8))


PIPELINES = {
    "ddpm": lambda: DDPMPipeline(wide(), scheduled(DDPMScheduler)),
    "ddim": lambda: DDIMPipeline(tiny_unet(), scheduled(DDIMScheduler)),
    "ddim v": lambda: DDIMPipeline(
        tiny_unet(), scheduled(DDIMScheduler, prediction_type="v_prediction")
    ),
    "ddim sample": lambda: DDIMPipeline(
        tiny_unet(), scheduled(DDIMScheduler, prediction_type="sample")
    ),
    "score": lambda: ScoreSdeVePipeline(
        tiny_unet(time_embedding_type="fourier"), ScoreSdeVeScheduler()
    ),
    "ldm": lambda: LDMPipeline(vq(), tiny_unet(), scheduled(DDIMScheduler)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save each pipeline once; tests that spoil one copy it first."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in {**PIPELINES, "dit": dit}.items():
        make().save_pretrained(folder / name)
    return folder


def clean_expectation(kind, scheduler, out, z, t, sigma):
    """What the scheduler itself takes for x0, or the score's definition."""
    if kind == "score":
        return z + sigma**2 * out
    a = scheduler.alphas_cumprod[t].double()
    if scheduler.config.prediction_type == "epsilon":
        return (z - (1 - a).sqrt() * out) / a.sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        return a.sqrt() * z - (1 - a).sqrt() * out
    return out


@pytest.mark.parametrize("name", PIPELINES)
def test_denoiser_is_the_network(name, saved):
    model, pipe = load(saved / name), PIPELINES[name]()
    x0 = torch.randn(2, *model.shape, generator=seeded())
    n = torch.randn(2, *model.shape, generator=seeded(1))
    for t in (20, 500, 900):
        if name == "score":
            sigma, z, time = 0.1 * t, x0 + 0.1 * t * n, torch.full((2,), 0.1 * t)
        else:
            a = pipe.scheduler.alphas_cumprod[t].double()
            sigma, time = float(((1 - a) / a).sqrt()), torch.full((2,), t)
            z = pipe.scheduler.add_noise(x0, n, time)
        with torch.no_grad():
            out = pipe.unet(z, time).sample
        truth = clean_expectation(name, pipe.scheduler, out.double(), z.double(), t, sigma)
        got = model(x0 + sigma * n, sigma)
        # single precision of x, of size sigma, and of t
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4 * max(1, sigma))


def test_what_a_loaded_model_knows(saved):
    model = load(saved / "ddpm")
    assert model.shape == (2, 16, 8)
    assert (model.sigma_min, model.sigma_max) == pytest.approx((0.02917, 14.61), rel=1e-3)
    assert (model.space, model.dtype, model.device.type) == ("pixels", torch.float32, "cpu")
    assert load(saved / "score").sigma_max == 1348.0
    assert load(saved / "ldm").space == "latent"
    assert load(saved / "ldm").shape == (2, 8, 8)
    assert load(saved / "dit", class_label=3).n_classes == 10


def test_directory_object_and_string_are_the_same(saved):
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    models = [saved / "ddim", str(saved / "ddim"), DDIMPipeline.from_pretrained(saved / "ddim")]
    outs = [load(m)(x, 0.5) for m in models]
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=0)
    torch.testing.assert_close(outs[2], outs[0], rtol=0, atol=0)


def test_model_is_frozen_and_in_evaluation_mode(saved):
    pipe = DDIMPipeline(tiny_unet(dropout=0.5).train(), DDIMScheduler())
    model = load(pipe)
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    torch.testing.assert_close(model(x, 0.5), model(x, 0.5), rtol=0, atol=0)
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_class_conditional_with_learned_variance(saved):
    pipe = dit()
    a = pipe.scheduler.alphas_cumprod[400].double()
    sigma, time = float(((1 - a) / a).sqrt()), torch.tensor([400, 400])
    x0, n = (torch.randn(2, 4, 8, 8, generator=seeded(i)) for i in range(2))
    z = pipe.scheduler.add_noise(x0, n, time)

    def direct(label):
        with torch.no_grad():
            out = pipe.transformer(z, timestep=time, class_labels=torch.tensor([label] * 2)).sample
        assert out.shape[1] == 8
        return clean_expectation("", pipe.scheduler, out[:, :4].double(), z.double(), 400, sigma)

    none, some = direct(10), direct(7)
    assert float((none - some).abs().max()) > 1e-3  # or the test is empty
    x = x0 + sigma * n
    for scale, truth in {None: some, 0.0: none, 1.0: some, 4.0: none + 4 * (some - none)}.items():
        got = load(saved / "dit", class_label=7, guidance_scale=scale)(x, sigma)
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=2e-4)
    # one class a sample, given by the caller
    mixed = load(saved / "dit")(x, sigma, torch.tensor([7, 10]))
    torch.testing.assert_close(mixed.double()[0], some[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed.double()[1], none[1], rtol=1e-4, atol=1e-4)


def test_class_conditional_unet():
    net = tiny_unet(num_class_embeds=3)
    pipe = DDPMPipeline(net, DDPMScheduler())
    x = torch.randn(2, 2, 8, 8, generator=seeded())
    outs = [load(pipe, class_label=i)(x, 1.0) for i in range(3)]
    assert float((outs[0] - outs[1]).abs().max()) > 1e-3
    with pytest.raises(InputError, match=r"guidance_scale = 2\.0, but this model has no label for"):
        load(pipe, class_label=1, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dit", {"class_label": 10}, "class_label = 10; the model has classes 0 to 9"),
        ("dit", {"class_label": -1}, "class_label = -1; the model has classes 0 to 9"),
        ("dit", {"guidance_scale": 3.0}, r"guidance_scale = 3\.0 needs a class_label"),
        ("ddim", {"class_label": 1}, "class_label = 1, but this model takes no classes"),
    ],
)
def test_classes_out_of_range(name, options, match, saved):
    with pytest.raises(InputError, match=match) as info:
        load(saved / name, **options)
    assert "\n" not in str(info.value)


def test_class_that_is_missing_is_asked_for(saved):
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="this model takes a class: pass class_label="):
        load(saved / "dit")(x, 1.0)
    with pytest.raises(InputError, match="this model takes no classes"):
        load(saved / "ddim")(x[:, :2], 1.0, torch.tensor([1]))


# --- images


@pytest.mark.parametrize("name", ["ddpm", "score"])
def test_pixels_round_trip(name, saved):
    model = load(saved / name)
    images = torch.rand(3, *model.shape, generator=seeded())
    x = model.encode(images)
    low, high = (0, 1) if name == "score" else (-1, 1)  # what each was trained on
    assert low <= float(x.min()) < low + 0.1
    assert high - 0.1 < float(x.max()) <= high
    torch.testing.assert_close(model.decode(x), images)


def test_latents_are_scaled_like_the_pipeline_does(saved):
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    model, vae = load(saved / "dit", class_label=0), autoencoder()
    with torch.no_grad():
        z = vae.encode(images * 2 - 1).latent_dist.mean * 0.18215
        out = (vae.decode(z / 0.18215).sample + 1) / 2
    torch.testing.assert_close(model.encode(images), z)
    torch.testing.assert_close(model.decode(z), out)
    assert model.encode(images).shape[1:] == model.shape


def test_latents_are_shifted_before_they_are_scaled():
    # as the pipelines of Stable Diffusion 3 and FLUX do: (z - shift) scale, and back
    vae = autoencoder()
    vae.register_to_config(shift_factor=0.31, scaling_factor=1.7)
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        z = (vae.encode(images * 2 - 1).latent_dist.mean - 0.31) * 1.7
        out = (vae.decode(z / 1.7 + 0.31).sample + 1) / 2
    model = Latent(FunctionDenoiser(lambda x, sigma: x), vae)
    torch.testing.assert_close(model.encode(images), z)
    torch.testing.assert_close(model.decode(z), out)


def test_quantized_latents(saved):
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    model, vae = load(saved / "ldm"), vq()
    factor = vae.config.scaling_factor
    with torch.no_grad():
        z = vae.encode(images * 2 - 1).latents * factor
        out = (vae.decode(z / factor).sample + 1) / 2
    torch.testing.assert_close(model.encode(images), z)
    torch.testing.assert_close(model.decode(z), out)


def test_estimates_name_the_latent(saved):
    model = load(saved / "ldm")
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    assert dsm_lid(model, x, 0.5, n_noises=2, generator=seeded()).method.endswith("latent")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_take_single_precision_points(dtype, saved):
    model, full = (
        load(saved / "dit", class_label=1, dtype=dtype),
        load(saved / "dit", class_label=1),
    )
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    x = model.encode(images)
    assert x.dtype == model(x, 0.5).dtype == model.decode(x).dtype == torch.float32
    eps = torch.finfo(dtype).eps
    # D = x - sigma eps(z): what the network rounds enters with sigma, some layers deep
    torch.testing.assert_close(model(x, 0.5), full(x, 0.5), rtol=0, atol=30 * eps)
    result = flipd(model, x, 0.5, n_noises=2, trace="hutchinson", generator=seeded())
    assert bool(result.lid.isfinite().all())


# --- what is refused


def spoiled(saved, tmp_path, name="ddim"):
    """Copy a saved pipeline, to be spoiled."""
    return shutil.copytree(saved / name, tmp_path / "model")


def refused(model, *words, **options):
    """Assert one line that names the model or file, and the words."""
    with pytest.raises(InputError) as info:
        load(model, **options)
    message = str(info.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def to_pickle(folder):
    """Turn the weights of a part into a pickle."""
    from safetensors.torch import load_file

    source = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(source), folder / "diffusion_pytorch_model.bin")
    source.unlink()


@pytest.mark.parametrize(("name", "part"), [("ddim", "unet"), ("ldm", "vqvae"), ("dit", "vae")])
def test_pickles_need_a_word(name, part, saved, tmp_path):
    folder = spoiled(saved, tmp_path, name)
    to_pickle(folder / part)
    refused(folder, f"{part}/diffusion_pytorch_model.bin is a pickle", "allow_pickle=True")
    options = {"class_label": 2} if name == "dit" else {}
    whole = load(saved / name, **options)
    x = torch.randn(1, *whole.shape, generator=seeded())
    with_word = load(folder, allow_pickle=True, **options)
    torch.testing.assert_close(with_word(x, 0.5), whole(x, 0.5))


def test_pickle_beside_safetensors_is_not_read(saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"no pickle at all")
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    torch.testing.assert_close(load(folder)(x, 0.5), load(saved / "ddim")(x, 0.5))


def test_code_that_comes_with_a_model_does_not_run(saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["own", "Network"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nNetwork = 1\n")
    refused(folder, "own.py is code")
    assert not (tmp_path / "ran").exists()


def test_missing_index(saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    (folder / "model_index.json").unlink()
    refused(folder, str(folder), "model_index.json is missing", "save_pretrained")


def test_folder_of_pickles_alone(tmp_path):
    torch.save({}, tmp_path / "weights.pt")
    refused(tmp_path, "model_index.json is missing", "weights.pt is a pickle")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": 3}', '"words"', ""])
def test_damaged_index(text, saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    (folder / "model_index.json").write_text(text)
    refused(folder, "model_index.json is damaged", "save the pipeline again")


def test_index_with_an_unknown_pipeline(saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoPipeline"}))
    refused(folder, str(folder), "cannot be loaded", "NoPipeline")


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_missing_part_of_the_network(file, saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    (folder / "unet" / file).unlink()
    refused(folder, str(folder / "unet"), "save the pipeline again")


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_damaged_part_of_the_network(file, saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    path = folder / "unet" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(folder, str(folder), "cannot be loaded", "save it again")


def test_file_and_nothing(saved, tmp_path):
    file = saved / "ddim" / "model_index.json"
    refused(file, str(file), "is a file; pass the directory")
    refused(tmp_path / "nothing", "nothing: no such directory")
    refused("nothing", "nothing: no such directory", "organization/name")


def test_hub_id_without_a_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    refused("nobody/such-model-9f3", "nobody/such-model-9f3", "check the name and the connection")


def test_text_to_image_pipelines_are_named():
    class Painter:
        def __init__(self, part):
            self.components = {part: None, "unet": tiny_unet(), "scheduler": DDIMScheduler()}
            self.scheduler = self.components["scheduler"]

    for part in ("text_encoder", "tokenizer"):
        refused(Painter(part), "Painter takes no prompt", "no text-to-image pipeline")
        with pytest.raises(InputError, match=r"Painter is a text-to-image.*memfold\.TextToImage"):
            from_pipeline(Painter(part))
        with pytest.raises(InputError, match=r"Painter takes a prompt.*\.denoiser\(prompt"):
            load(Painter(part), class_label=3)


def test_text_encoder_that_is_not_there_is_named_before_anything_is_loaded(saved, tmp_path):
    folder = spoiled(saved, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionPipeline"}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    refused(folder, str(folder / "text_encoder"), "has no config.json", "save the pipeline again")


@pytest.mark.parametrize("thing", [3, None, torch.nn.Linear(2, 2)])
def test_what_is_no_pipeline(thing):
    refused(thing, type(thing).__name__, "has no denoising network and scheduler")


def test_unknown_prediction_and_scheduler(saved):
    pipe = DDIMPipeline(tiny_unet(), DDIMScheduler(prediction_type="epsilon"))
    pipe.scheduler.register_to_config(prediction_type="noise")
    refused(pipe, "prediction_type = 'noise' is unknown; known are epsilon, v_prediction, sample")
    pipe = DDIMPipeline(tiny_unet(), DDIMScheduler())
    del pipe.scheduler.alphas_cumprod
    refused(pipe, "DDIMScheduler has no table of alphas_cumprod")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value):
    net = tiny_unet()
    with torch.no_grad():
        net.conv_in.weight[0, 0, 0, 0] = value
    refused(DDIMPipeline(net, DDIMScheduler()), "the network returns NaN or infinity")


@pytest.mark.parametrize("channels", [1, 3])
def test_network_of_another_output_shape(channels):
    net = tiny_unet(out_channels=channels)
    refused(DDIMPipeline(net, DDIMScheduler()), "the network returned shape", "its config")


def test_network_that_cannot_be_called():
    net = tiny_unet()
    net.conv_in = torch.nn.Conv2d(5, 8, 3, padding=1)
    refused(DDIMPipeline(net, DDIMScheduler()), "the network cannot be called", "RuntimeError")


def test_network_without_a_size():
    net = tiny_unet()
    net.register_to_config(sample_size=None)
    refused(DDIMPipeline(net, DDIMScheduler()), "no sample_size; add it to config.json")


def test_loading_leaves_settings_alone(saved, tmp_path):
    import diffusers.utils.logging as logs

    before = logs.get_verbosity(), logs.is_progress_bar_enabled()
    rng, dtype = torch.get_rng_state(), torch.get_default_dtype()
    load(saved / "ddim")
    folder = spoiled(saved, tmp_path)
    (folder / "unet" / "config.json").write_text("{")
    refused(folder, "cannot be loaded")
    assert (logs.get_verbosity(), logs.is_progress_bar_enabled()) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_default_dtype() == dtype


def test_global_generator_and_weights_survive_from_pipeline():
    pipe = DDIMPipeline(tiny_unet(), DDIMScheduler())
    weights = copy.deepcopy(pipe.unet.state_dict())
    state = torch.get_rng_state()
    from_pipeline(pipe)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, weights[name])
    assert isinstance(pipe.unet, UNet2DModel)
