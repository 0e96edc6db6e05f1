"""Read a diffusers pipeline from a directory or the hub; a failure is one line with a remedy."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memfold.types import InputError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SUPPORTED = (
    "supported are pipelines of DDPM, DDIM, score SDE (VE), unconditional LDM and DiT here, and "
    "text-to-image pipelines by memfold.TextToImage"
)
TEXT = frozenset({"text_encoder", "tokenizer"})
_NETWORKS = ("unet", "transformer", "vae", "vqvae", "image_encoder", "safety_checker")


def read_pipeline(model: str | Path, *, allow_pickle: bool, revision: str | None) -> Any:
    """Load a pipeline.

    Args:
        model: directory or hub id.
        allow_pickle: also read weights from pickles.
        revision: branch, tag or commit of a hub id.

    Returns:
        The diffusers pipeline object.

    Raises:
        InputError: it is not there, damaged, or its weights are pickles.
    """
    directory = Path(model)
    if directory.is_dir():
        _check_directory(directory, allow_pickle)
    elif directory.exists():
        raise InputError(f"{model} is a file; pass the directory of a diffusers pipeline")
    elif not _is_hub_id(str(model)):
        raise InputError(f"{model}: no such directory, and no hub id of the form organization/name")
    import diffusers

    options = {} if revision is None else {"revision": revision}
    with quiet_libraries():
        try:
            return diffusers.DiffusionPipeline.from_pretrained(
                str(model), use_safetensors=None if allow_pickle else True, **options
            )
        except Exception as error:  # of diffusers, huggingface_hub, safetensors, transformers
            raise InputError(_reason(model, directory.is_dir(), error)) from error


def brief(error: BaseException) -> str:
    """Say in one line what an exception says in many."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence diffusers and transformers inside the block, and leave their settings as they were.

    Yields:
        Nothing.
    """
    import diffusers.utils.logging as logs

    modules = [logs]
    if importlib.util.find_spec("transformers") is not None:
        modules.append(importlib.import_module("transformers.utils.logging"))
    before = [(m, m.get_verbosity(), m.is_progress_bar_enabled()) for m in modules]
    for module in modules:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, verbosity, bars in before:
            module.set_verbosity(verbosity)
            if bars:
                module.enable_progress_bar()


def _check_directory(directory: Path, allow_pickle: bool) -> None:
    index = directory / "model_index.json"
    if not index.is_file():
        pickles = sorted(p for pattern in _PICKLES for p in directory.rglob(pattern))
        also = f", and {pickles[0].name} is a pickle" if pickles else ""
        raise InputError(
            f"{directory} is no diffusers pipeline: model_index.json is missing{also}; make one "
            "with diffusers' save_pretrained"
        )
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(entries["_class_name"], str):
            raise TypeError("_class_name is no string")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{index} is damaged ({brief(error)}); save the pipeline again"
        raise InputError(msg) from error
    for name, entry in entries.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None:
            network = name in _NETWORKS or name.startswith("text_encoder")
            _check_part(directory / name, str(entry[0]), network, allow_pickle)


def _check_part(part: Path, library: str, network: bool, allow_pickle: bool) -> None:
    """Refuse a part that brings its own code, has no weights, or has them as pickles alone."""
    if (part / f"{library}.py").is_file():
        raise InputError(f"{part / library}.py is code; memfold runs none that comes with a model")
    if network and not (part / "config.json").is_file():
        raise InputError(f"{part} has no config.json; save the pipeline again")
    if any(part.glob("*.safetensors")):
        return
    pickles = sorted(p for pattern in _PICKLES for p in part.glob(pattern))
    if pickles and not allow_pickle:
        raise InputError(
            f"{pickles[0]} is a pickle, which can run code when read; convert it to safetensors, "
            "or pass allow_pickle=True (--allow-pickle) if you trust it"
        )
    if network and not pickles:
        raise InputError(f"{part} has no weights (*.safetensors); save the pipeline again")


def _is_hub_id(name: str) -> bool:
    head, _, tail = name.partition("/")
    return bool(head and tail) and "/" not in tail and not name.startswith((".", "~"))


def _reason(model: str | Path, local: bool, error: BaseException) -> str:
    if local:
        return f"{model} cannot be loaded: {brief(error)}; is a file damaged? save it again"
    return (
        f"{model} is no directory here and cannot be had from the hub: {brief(error)}; check the "
        "name and the connection, or pass a directory"
    )
