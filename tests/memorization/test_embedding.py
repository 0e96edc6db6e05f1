"""Loading image embeddings: against the models themselves, and what is refused."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from memfold.memorization.embedding import load_embedding, unit
from memfold.memorization.replicate import nearest_training
from memfold.types import InputError

MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.3]
_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 12, "patch_size": 4,
}  # fmt: skip


def clip() -> CLIPModel:
    text = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=7))


def dino() -> Dinov2Model:
    return Dinov2Model(Dinov2Config(**_VISION))


def vit(*, pooler: bool) -> ViTModel:
    return ViTModel(ViTConfig(**_VISION), add_pooling_layer=pooler)


def resnet() -> ResNetModel:
    return ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    )


def save(model: torch.nn.Module, path: Path, kind: str = "CLIPImageProcessor") -> Path:
    """Save a model, with a processor of square images of 12 pixels."""
    model.save_pretrained(path)
    processor = {
        "image_processor_type": kind, "do_resize": True, "size": {"height": 12, "width": 12},
        "do_center_crop": False, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
        "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3, "do_convert_rgb": True,
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture
def images() -> torch.Tensor:
    """Eight-bit images, so that nothing is rounded; the size of the models, so nothing resized."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 3, 12, 12), generator=g) / 255


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def answers(name: str, pixels: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model, and what its paper calls the image's embedding, by the model's own forward."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = {
            "clip": clip, "dino": dino, "vit": lambda: vit(pooler=True),
            "vit without pooler": lambda: vit(pooler=False), "resnet": resnet,
        }[name]().eval()  # fmt: skip
    with torch.no_grad():
        if name == "clip":
            return made, made.visual_projection(made.vision_model(pixels).pooler_output)
        if name == "resnet":
            return made, made(pixels).last_hidden_state.mean((2, 3))
        if name == "vit":
            return made, made(pixels).pooler_output
        return made, made(pixels).last_hidden_state[:, 0]


@pytest.mark.parametrize("name", ["clip", "dino", "vit", "vit without pooler", "resnet"])
def test_a_vision_model_gives_its_own_embedding(
    name: str, images: torch.Tensor, tmp_path: Path
) -> None:
    model, wanted = answers(name, normalised(images))
    embed = load_embedding(save(model, tmp_path / "m"))
    got = embed(images)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed(images[2:3]), wanted[2:3], rtol=1e-4, atol=1e-5)
    assert not got.requires_grad


def test_the_processor_resizes_as_it_does_for_files(tmp_path: Path) -> None:
    """Images of another size take the same way as a picture that is read from a file."""
    model, _ = answers("clip", torch.zeros(1, 3, 12, 12))
    embed = load_embedding(save(model, tmp_path / "m"))
    bytes_ = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture = Image.fromarray(bytes_).resize((12, 12), Image.Resampling.BICUBIC)
    small = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    large = torch.from_numpy(bytes_).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(embed(large), embed(small), rtol=1e-4, atol=1e-5)


def test_grey_images_are_three_equal_channels(tmp_path: Path, images: torch.Tensor) -> None:
    embed = load_embedding(save(answers("dino", images)[0], tmp_path / "m"))
    grey = images[:, :1]
    assert torch.equal(embed(grey), embed(grey.repeat(1, 3, 1, 1)))


class _Moments(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)


class _Scalar(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))


class _Narrow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 3 * 8 * 8)


class _Infinite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) / 0


def load_code(file: Path):
    return load_embedding(file, allow_code=True)


def script(module: torch.nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its successor
        torch.jit.script(module).save(str(file))
    return file


def test_a_torchscript_file(tmp_path: Path, images: torch.Tensor) -> None:
    embed = load_code(script(_Moments(), tmp_path / "moments.pt"))
    wanted = torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3))], 1)
    torch.testing.assert_close(embed(images), wanted)
    lengths = unit(embed)(images).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5))
    found = nearest_training(images[:2] * 0.999, images, k=4, top=1, embed=embed)
    assert found.index[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_Scalar(), r"returned \(5,\) for 5 images; memfold expects \(5, k\)"),
        (_Narrow(), r"does not take images of shape \(5, 3, 12, 12\)"),
        (_Infinite(), "NaN or infinity"),
    ],
)
def test_an_embedding_that_answers_wrongly_is_refused(
    module: torch.nn.Module, message: str, tmp_path: Path, images: torch.Tensor
) -> None:
    embed = load_code(script(module, tmp_path / "m.pt"))
    with pytest.raises(InputError, match=message):
        embed(images)


def test_what_is_no_embedding_is_refused(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none.pt", "no such file or directory"),
        ("not/a/hub/id", "no such file or directory"),
        (tmp_path, "has no config.json"),
    ):
        with pytest.raises(InputError, match=message):
            load_embedding(source)
    (tmp_path / "words.pt").write_text("no module")
    with pytest.raises(InputError, match=r"words\.pt is no TorchScript module"):
        load_embedding(tmp_path / "words.pt")
    (tmp_path / "w.safetensors").write_text("")
    with pytest.raises(InputError, match="pass the directory around it"):
        load_embedding(tmp_path / "w.safetensors")


def test_torchscript_runs_nothing_until_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = script(_Moments(), tmp_path / "m.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *a, **o: pytest.fail("loaded"))
    for options in ({}, {"allow_pickle": True}):
        with pytest.raises(InputError, match=r"runs code of its own; .* \(--allow-code\)"):
            load_embedding(file, **options)
    for name in ("m.onnx", "m.safetensors"):  # a name does not make it harmless
        with pytest.raises(InputError, match="embedding"):
            load_embedding(file.rename(tmp_path / name))
        (tmp_path / name).rename(file)


def graph(file: Path, *, external: bool = False, domain: str = "") -> Path:
    """An ONNX graph of the channels' means, plus a constant that may stand in another file."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    shift = numpy_helper.from_array(np.arange(3, dtype=np.float32), "shift")
    if external:
        shift.ClearField("raw_data")
        shift.data_location = TensorProto.EXTERNAL
        shift.external_data.add(key="location", value="../secret.bin")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0, domain=domain),
        helper.make_node("Add", ["m", "shift"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3])
    made = helper.make_graph(nodes, "g", [x], [y], [shift])
    opsets = [helper.make_opsetid("", 13)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    save_model(helper.make_model(made, opset_imports=opsets, ir_version=8), str(file))
    return file


def test_an_onnx_file_needs_no_permission(tmp_path: Path, images: torch.Tensor) -> None:
    embed = load_embedding(graph(tmp_path / "m.onnx"))
    wanted = images.mean((2, 3)) + torch.arange(3)
    torch.testing.assert_close(embed(images), wanted)
    torch.testing.assert_close(embed(images[2:3]), wanted[2:3])
    torch.testing.assert_close(embed(torch.zeros(2, 1, 5, 7)), torch.arange(3.0).expand(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"external": True}, "keeps weights in other files"),
        ({"domain": "evil.ops"}, "cannot be loaded"),
    ],
)
def test_an_onnx_file_that_asks_for_more_than_itself_is_refused(
    tmp_path: Path, options: dict, message: str
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "secret.bin").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    with pytest.raises(InputError, match=message) as stop:
        load_embedding(graph(tmp_path / "d" / "m.onnx", **options))
    assert "\n" not in str(stop.value)


def test_without_the_extra_its_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = graph(tmp_path / "m.onnx")
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(InputError, match=r"needs onnx.*pip install 'memfold\[onnx\]'"):
                load_embedding(file)


def test_remote_code_of_a_directory_is_not_run(tmp_path: Path) -> None:
    path = save(dino(), tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_embedding(path, allow_pickle=True, allow_code=True)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_until_allowed(tmp_path: Path, images: torch.Tensor) -> None:
    model, wanted = answers("dino", normalised(images))
    path = save(model, tmp_path / "m")
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load_embedding(path)
    got = load_embedding(path, allow_pickle=True)(images)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_holes_is_refused(tmp_path: Path, images: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    path = save(answers("dino", images)[0], tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layernorm" not in k},
        path / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    with pytest.raises(InputError, match="lacks weights"):
        load_embedding(path)


def test_images_of_another_form_are_refused(tmp_path: Path) -> None:
    embed = load_code(script(_Moments(), tmp_path / "m.pt"))
    with pytest.raises(InputError, match=r"an embedding takes \(b, 1 or 3, h, w\)"):
        embed(torch.zeros(2, 4, 8, 8))
