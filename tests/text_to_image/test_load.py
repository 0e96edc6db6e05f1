"""Saved text-to-image pipelines, read again; pickles and damage are refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import memfold
from memfold import cli
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET
KEPT = ("sd1 (eps)", "sdxl", "sd3", "flux", "pixart", "sana")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for family in KEPT:
        tiny.pipeline(family).save_pretrained(root / family)
    return root


def copied(saved, tmp_path, family="sd1 (eps)"):
    return shutil.copytree(saved / family, tmp_path / "model")


def to_pickle(part):
    """Turn the weights of a part into a pickle."""
    weights = next(part.glob("*.safetensors"))
    name = "pytorch_model.bin" if weights.name == "model.safetensors" else weights.stem + ".bin"
    torch.save(safetensors.torch.load_file(weights), part / name)
    weights.unlink()


def refused(model, *words, **options):
    with pytest.raises(InputError) as caught:
        memfold.load(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("family", KEPT)
def test_a_directory_gives_the_pipeline(saved, family):
    options = tiny.OPTIONS.get(family, {})
    there = TextToImage(tiny.pipeline(family), **options)
    # without options the published sizes would be asked of the small networks
    again = TextToImage(saved / family, **options)
    x = torch.randn(2, *there.shape, generator=torch.Generator().manual_seed(0))
    wanted = there.denoiser(PROMPT)(x, 1.0)  # transformers may choose other kernels on loading
    torch.testing.assert_close(again.denoiser(PROMPT)(x, 1.0), wanted, rtol=1e-4, atol=1e-5)


def test_load_of_a_text_to_image_directory(saved):
    found = memfold.load(saved / "sd1 (eps)")
    assert isinstance(found, TextToImage)
    there = TextToImage(tiny.pipeline("sd1 (eps)"))
    x = torch.randn(2, *there.shape, generator=torch.Generator().manual_seed(0))
    wanted = there.denoiser(PROMPT, guidance_scale=3.0)(x, 1.0)
    assert torch.equal(found.denoiser(PROMPT, guidance_scale=3.0)(x, 1.0), wanted)
    half = memfold.load(str(saved / "sd1 (eps)"), dtype=torch.bfloat16)
    torch.testing.assert_close(
        half.denoiser(PROMPT)(x, 1.0), there.denoiser(PROMPT)(x, 1.0), rtol=0.1, atol=0.1
    )


def test_classes_are_not_prompts(saved):
    for options in ({"class_label": 1}, {"guidance_scale": 2.0}):
        refused(saved / "sd1 (eps)", "takes a prompt", ".denoiser(prompt", **options)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_pickles_are_refused_unless_allowed(saved, tmp_path, part):
    model = copied(saved, tmp_path)
    to_pickle(model / part)
    refused(model, str(model / part), "is a pickle", "--allow-pickle")
    found = memfold.load(model, allow_pickle=True)
    there = TextToImage(tiny.pipeline("sd1 (eps)"))
    x = torch.randn(1, *there.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.denoiser(PROMPT)(x, 1.0), there.denoiser(PROMPT)(x, 1.0))


@pytest.mark.parametrize(
    ("family", "part"), [("sdxl", "text_encoder_2"), ("sd3", "text_encoder_3")]
)
def test_pickles_of_further_text_encoders(saved, tmp_path, family, part):
    model = copied(saved, tmp_path, family)
    to_pickle(model / part)
    refused(model, str(model / part), "is a pickle")


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_pickle_beside_an_empty_safetensors_file_is_not_read(saved, tmp_path, part):
    model, mark = copied(saved, tmp_path), tmp_path / "mark"
    next((model / part).glob("*.safetensors")).unlink()
    safetensors.torch.save_file({}, model / part / "other.safetensors")
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        torch.save(Trap(mark), model / part / name)
    refused(model, "cannot be loaded")
    assert not mark.exists()


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_that_are_missing(saved, tmp_path, part):
    model = copied(saved, tmp_path)
    next((model / part).glob("*.safetensors")).unlink()
    refused(model, str(model / part), "has no weights", "save the pipeline again")


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_weights_that_are_damaged(saved, tmp_path, part):
    model = copied(saved, tmp_path)
    weights = next((model / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    refused(model, "cannot be loaded")


@pytest.mark.parametrize("command", ["audit", "lid"])
def test_commands_without_prompts_name_them(saved, tmp_path, command, monkeypatch, capsys):
    images = tmp_path / "images.npy"
    rng = np.random.default_rng(0)
    np.save(images, rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    model = str(saved / "sd1 (eps)")
    argv = ["audit", model, "--data", str(images), "--train-points", "--out", str(tmp_path / "o")]
    argv = argv if command == "audit" else ["lid", model, str(images)]
    monkeypatch.setattr("sys.argv", ["memfold", *argv])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.strip().count("\n") == 0
    assert "StableDiffusionPipeline" in message
    assert "--prompts FILE" in message
