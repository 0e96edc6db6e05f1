"""Image embeddings to compare images in: a transformers vision model, ONNX, or TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._pipeline import brief, quiet_libraries
from memfold.types import InputError

Embedding = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b k"]]

PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pth"})
_BATCH = 64


def load_embedding(
    source: str | Path,
    *,
    allow_pickle: bool = False,
    allow_code: bool = False,
    device: str | torch.device = "cpu",
) -> Embedding:
    """Load a map from images to vectors whose distance tells how alike two images are.

    A file `.onnx` is an ONNX graph (install `memfold[onnx]`), any other a TorchScript module,
    which runs code of its own as soon as it is loaded. Both take images (b, 3, h, w) in [0, 1] and
    return (b, k); a size or normalisation of its own must be inside. An ONNX file must hold all of
    its weights: data in other files are not read. A directory, or an id `organization/name` on the
    hub, is a transformers vision model (CLIP, SigLIP, DINO, DINOv2, ViT, ...): images are resized,
    cropped and normalised by its image processor, after rounding to 8 bits. CLIP-like models give
    their projected image features, others their pooled output, or the first token of the last
    layer where the checkpoint has no trained pooler.

    Vectors are not normalised: with l2 distances, `unit` makes them cosine distances.

    Args:
        source: the file, the directory, or the hub id.
        allow_pickle: also read weights of a directory or hub id that are pickles.
        allow_code: also read TorchScript files; pass it for those alone whose source you trust.
        device: where to compute.

    Returns:
        The map, without gradients, on batches of any size; vectors are float32 and on the CPU.
        It raises InputError for images that the model does not take.

    Raises:
        InputError: there is no such file, it is no image embedding, or its weights are pickles or
            code that was not allowed.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".onnx":
        return _Onnx(path, torch.device(device))
    if path.is_file():
        return _TorchScript(path, allow_code, torch.device(device))
    if not path.is_dir() and (path.exists() or str(source).count("/") != 1 or path.is_absolute()):
        raise InputError(
            f"embedding {source}: no such file or directory, and no hub id organization/name; pass "
            "the directory of a transformers vision model, an ONNX or a TorchScript file"
        )
    return _Vision(source, allow_pickle, torch.device(device))


def unit(embedding: Embedding) -> Embedding:
    """Scale an embedding's vectors to length 1: squared l2 is then twice the cosine distance."""
    return lambda images: torch.nn.functional.normalize(embedding(images), dim=1)


class _Embedding:
    """What both kinds share: three channels, batches, a check of the answer."""

    device: torch.device
    source: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images (b, c, h, w) in [0, 1]; c is 1 (grey) or 3."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f"images have the shape {tuple(images.shape)}; an embedding takes (b, 1 or 3, h, w)"
            )
        three = images.detach().float().clamp(0, 1).expand(-1, 3, -1, -1)
        found = []
        for part in three.split(_BATCH):
            try:
                out = self._embed(part)
            except (RuntimeError, ValueError, TypeError) as error:
                raise InputError(
                    f"embedding {self.source} does not take images of shape "
                    f"{tuple(part.shape)}: {brief(error)}"
                ) from error
            found.append(self._checked(out, len(part)))
        return torch.cat(found)

    def _embed(self, images: Tensor) -> Any:
        raise NotImplementedError

    def _checked(self, out: Any, n: int) -> Tensor:
        if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != n:
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"embedding {self.source} returned {what} for {n} images; memfold expects ({n}, k)"
            )
        vectors = out.flatten(1).float().cpu()
        if not vectors.isfinite().all():
            raise InputError(f"embedding {self.source} returned NaN or infinity")
        return vectors


class _TorchScript(_Embedding):
    def __init__(self, path: Path, allow_code: bool, device: torch.device) -> None:
        self.source, self.device = str(path), device
        if path.suffix == ".safetensors":
            raise InputError(f"embedding {path} holds weights alone; pass the directory around it")
        if not is_zipfile(path):
            raise InputError(
                f"embedding {path} is no TorchScript module; save one with torch.jit.script or "
                "torch.jit.trace, or export it to ONNX (.onnx)"
            )
        if not allow_code:
            raise InputError(
                f"embedding {path} is TorchScript, which runs code of its own; export it to ONNX, "
                "or pass allow_code=True (--allow-code) if you trust it"
            )
        try:
            with warnings.catch_warnings():
                # Published embeddings are such files; their successor cannot read them.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.module = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"embedding {path} is no TorchScript module: {brief(error)}; save one with "
                "torch.jit.script or torch.jit.trace"
            ) from error

    def _embed(self, images: Tensor) -> Any:
        return self.module(images.to(self.device))


class _Onnx(_Embedding):
    def __init__(self, path: Path, device: torch.device) -> None:
        self.source, self.device = str(path), device
        graph = _checked_graph(path)
        onnx_runtime = _extra("onnxruntime")
        options = onnx_runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors come as exceptions
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        known = onnx_runtime.get_available_providers()
        try:
            self.session = onnx_runtime.InferenceSession(
                graph, options,
                providers=[p for p in (*wanted, "CPUExecutionProvider") if p in known],
            )  # fmt: skip
        except Exception as error:  # onnxruntime has no common class of errors
            raise InputError(f"embedding {path} cannot be loaded: {brief(error)}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise InputError(
                f"embedding {path} takes {len(inputs)} inputs; it must take images alone"
            )
        self.input = inputs[0].name

    def _embed(self, images: Tensor) -> Any:
        try:
            return torch.from_numpy(self.session.run(None, {self.input: images.numpy()})[0])
        except Exception as error:  # likewise
            raise ValueError(brief(error)) from error


def _checked_graph(path: Path) -> bytes:
    """Read an ONNX file; it must not ask for other files."""
    onnx = _extra("onnx")
    data = path.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # of protobuf
        raise InputError(f"embedding {path} is no ONNX file: {brief(error)}") from error
    for part in _messages(model):
        if isinstance(part, onnx.TensorProto) and (part.data_location or part.external_data):
            raise InputError(
                f"embedding {path} keeps weights in other files ({part.name[:80]!r}), which are "
                "not read; save it with all of its data inside"
            )
    return data


def _messages(message: Any) -> Iterator[Any]:
    """Go through a protobuf message and all messages inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"an embedding in ONNX needs {name}: pip install 'memfold[onnx]'"
        ) from error


class _Vision(_Embedding):
    def __init__(self, source: str | Path, allow_pickle: bool, device: torch.device) -> None:
        self.source, self.device = str(source), device
        if Path(source).is_dir():
            _check_directory(Path(source), allow_pickle)
        auto, processors = _transformers()
        with quiet_libraries():
            try:
                model, info = auto.from_pretrained(
                    str(source),
                    use_safetensors=None if allow_pickle else True,
                    output_loading_info=True,
                    trust_remote_code=False,
                )
                self.processor = processors.from_pretrained(str(source), trust_remote_code=False)
            except Exception as error:  # of transformers, huggingface_hub, safetensors
                raise InputError(
                    f"embedding {source} cannot be loaded as a transformers vision model: "
                    f"{brief(error)}"
                ) from error
        missing = set(info["missing_keys"])
        poolers = {key for key in missing if "pooler" in key}
        if missing - poolers:
            raise InputError(
                f"embedding {source} lacks weights ({sorted(missing - poolers)[0]}, ...); save it "
                "again"
            )
        self.pooled = not poolers
        self.module = model.to(device).eval()
        if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
            raise InputError(
                f"embedding {source} is a {type(model).__name__}, which takes no images; pass a "
                "vision model (CLIP, DINOv2, ViT, ...)"
            )

    def _embed(self, images: Tensor) -> Any:
        from PIL import Image

        bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pictures = [Image.fromarray(picture) for picture in bytes_]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.module.dtype)
        features = getattr(self.module, "get_image_features", None)
        out = (
            self.module(pixel_values=pixels) if features is None else features(pixel_values=pixels)
        )
        if isinstance(out, Tensor):  # transformers before 5 gives image features so
            return out
        if self.pooled and getattr(out, "pooler_output", None) is not None:
            return out.pooler_output
        return out.last_hidden_state[:, 0]


def _check_directory(directory: Path, allow_pickle: bool) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        if not (directory / name).is_file():
            raise InputError(
                f"embedding {directory} has no {name}: it is no directory of a transformers vision "
                "model; save the model and its image processor with save_pretrained"
            )
    if any(directory.glob("*.safetensors")) or allow_pickle:
        return
    pickles = sorted(p for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{pickles[0]} is a pickle, which can run code when read; convert it to safetensors, "
            "or pass allow_pickle=True (--allow-pickle) if you trust it"
        )


def _transformers() -> tuple[Any, Any]:
    try:
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise InputError(
            "an embedding in a directory or on the hub needs transformers: "
            "pip install 'memfold[transformers]'"
        ) from error
    return AutoModel, AutoImageProcessor


__all__ = ["Embedding", "load_embedding", "unit"]
