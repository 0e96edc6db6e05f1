"""The few tensor helpers that every room may use."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError

_MEMORY = (
    "out of memory",
    "not enough memory",
    "allocate memory",  # Linux: "can't allocate memory", "Cannot allocate memory"
    "alloc_failed",  # cuBLAS, cuDNN
    "bad_alloc",
    "bad allocation",
    "invalid buffer size",  # MPS
    "storage size calculation overflowed",
    "integer multiplication overflow",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, in any of the words that torch and the systems have for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY)


def check_device(device: str | torch.device) -> torch.device:
    """Refuse a device that is unknown, or not there.

    Args:
        device: such as "cpu", "cuda", "cuda:1", "mps".

    Returns:
        The device.

    Raises:
        InputError: with what is there.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu().numpy()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there = ", ".join(["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])])
        raise InputError(
            f"--device {device} cannot be used on this machine; choose from {there}"
        ) from error
    return found


def expand(sigma: float | Tensor, x: Float[Tensor, "b *d"]) -> Tensor:
    """Give sigma, a number or one number a sample, the shape (b, 1, ..., 1) of the batch x."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.expand(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))


def per_sample(x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Sum over everything but the batch."""
    return x.flatten(1).sum(1)


def text_seed(text: str, seed: int = 0) -> int:
    """Key randomness by a text and a seed: texts differ in it, and a call can be repeated.

    Args:
        text: any.
        seed: from 0 to 2**64 - 1.

    Returns:
        A number from 0 to 2**63 - 1.

    Raises:
        InputError: the seed is out of range.

    >>> text_seed("a red coat") == text_seed("a red coat", 0) != text_seed("a red coat", 1)
    True
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed = {seed}; take one from 0 to 2**64 - 1")
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


def prompt_generator(prompt: str, seed: int = 0) -> torch.Generator:
    """Return the generator of all that is estimated for a prompt; every command takes this one.

    One prompt and one seed have one set of numbers, whichever command computes them. The seeds of
    the images that a command draws are seed, seed + 1, ...

    Args:
        prompt: the words.
        seed: of the command, from 0 to 2**64 - 1.

    Returns:
        A fresh CPU generator.

    Raises:
        InputError: the seed is out of range.
    """
    return torch.Generator().manual_seed(text_seed(prompt, seed))


def check_generator(generator: torch.Generator | None) -> None:
    """Refuse a seed where a generator is meant.

    Args:
        generator: a `torch.Generator`, or None.

    Raises:
        InputError: it is something else, such as a number.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        seed = generator if type(generator) is int else 0
        raise InputError(
            f"generator = {generator!r} is a {type(generator).__name__}; pass "
            f"torch.Generator().manual_seed({seed})"
        )


def check_tensor(x: Tensor, name: str = "x") -> None:
    """Refuse what is no tensor, such as a numpy array.

    Args:
        x: points, or images.
        name: of the argument.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(x, Tensor):
        kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
        raise InputError(f"{name} is a {kind}; pass a tensor: torch.as_tensor({name})")


def base_seed(generator: torch.Generator | None) -> int:
    """Draw one number that keys all randomness of a call; advances the generator by one draw.

    Without a generator the number comes from the operating system, so that two calls differ.

    Raises:
        InputError: the generator is none.
    """
    check_generator(generator)
    if generator is None:
        return torch.Generator().seed() & (2**62 - 1)
    return int(
        torch.randint(2**62, (), generator=generator, device=generator.device, dtype=torch.int64)
    )


def sample_generators(x: Float[Tensor, "b *d"], seed: int) -> Iterator[torch.Generator]:
    """Yield one CPU generator a sample, keyed by the seed and the sample's own numbers.

    Keying by content makes a sample's result independent of the batch that it came in, of its
    place there, of chunking, of the number of workers and of the device.
    """
    rows = x.detach().to("cpu", torch.float32).flatten(1) + 0.0  # -0.0 + 0.0 = 0.0: one key
    for row in rows.contiguous().numpy():
        digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=seed.to_bytes(8, "little"))
        yield torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)


def normal_like(x: Float[Tensor, "b *d"], n: int, seed: int) -> Float[Tensor, "b n *d"]:
    """Draw n standard normal tensors for each sample, keyed by the seed and the sample."""
    draws = [
        torch.randn(n, *x.shape[1:], generator=g, dtype=torch.float32)
        for g in sample_generators(x, seed)
    ]
    return torch.stack(draws).to(x) if draws else x.new_empty(0, n, *x.shape[1:])


def rademacher_like(x: Float[Tensor, "b *d"], n: int, seed: int) -> Float[Tensor, "b n *d"]:
    """Draw n tensors of random signs for each sample, keyed by the seed and the sample."""
    draws = [
        torch.randint(2, (n, *x.shape[1:]), generator=g) * 2 - 1 for g in sample_generators(x, seed)
    ]
    return torch.stack(draws).to(x) if draws else x.new_empty(0, n, *x.shape[1:])


def sphere_like(x: Float[Tensor, "b *d"], n: int, seed: int) -> Float[Tensor, "b n *d"]:
    """Draw n tensors of length sqrt(d) for each sample, uniform in direction, keyed likewise.

    E w w^T = I as for random signs; but restricted to a few coordinates signs are collinear with
    finite probability, and these never.
    """
    w = normal_like(x, n, seed)
    size = w.flatten(2).norm(dim=2).reshape(*w.shape[:2], *[1] * (x.ndim - 1))
    return w * (x[0].numel() ** 0.5 / size) if len(x) else w
