"""What a model is, as one hash: every file of it on which numbers depend."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import torch

_TEXTS = frozenset({".md", ".rst", ".png", ".jpg", ".jpeg", ".gif", ".svg"})
_INDEX = ("model_index.json", "config.json")
_PACKAGES = ("memfold", "torch", "diffusers", "transformers")


def model_digest(source: str) -> str:
    """Hash a model: its weights, and the configuration of network, scheduler, tokenizer and VAE.

    Every file of a directory counts but pictures, texts about it (.md, .rst) and hidden files; of
    a hub id, those of the snapshot in the local cache, so that the model must have been loaded.

    Args:
        source: a directory, a file, or a hub id.

    Returns:
        "sha256:" and 64 hexadecimal digits, which do not depend on where it stands; a hub id that
        is not in the cache stays as it is.
    """
    root = Path(source)
    if not root.exists():
        found = _snapshot(source)
        if found is None:
            return source
        root = found
    total = hashlib.sha256()
    for name, file in _files(root):
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").digest()
        total.update(len(name).to_bytes(8) + name.encode("utf-8", "surrogateescape") + content)
    return f"sha256:{total.hexdigest()}"


def conditions(device: str) -> dict[str, str]:
    """Say what else numbers depend on: the kind of device, and the versions of the libraries.

    Args:
        device: where the run computes.

    Returns:
        Plain data for a fingerprint. A run under other conditions is another run: its numbers
        differ in rounding at least, and one table holds those of one.
    """
    found = {"device": torch.device(device).type}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield "", root
        return
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and file.suffix.lower() not in _TEXTS:
            yield name.as_posix(), file


def _snapshot(hub_id: str) -> Path | None:
    """Where the local cache holds a model of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in _INDEX:
        try:
            found = try_to_load_from_cache(hub_id, name)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
