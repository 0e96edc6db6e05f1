"""The noun of GANs, VAEs and flows: G(z) = x, from a latent with a standard normal prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import check_tensor
from memfold.types import InputError

_COUPLED = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)


class Decoder(ABC):
    """A map from latents z, standard normal under the model, to points x.

    A subclass writes `generate`, and `invert` where it has an encoder; callers call the object.

    Attributes:
        latent_shape: shape of one latent, without the batch; None where any shape will do.
        has_encoder: whether `encode` gives a latent for a point.
        device: where the model computes.
    """

    latent_shape: tuple[int, ...] | None = None
    has_encoder: bool = False
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def generate(self, z: Float[Tensor, "b *k"]) -> Float[Tensor, "b *d"]:
        """Return G(z), sample by sample."""

    def invert(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *k"]:
        """Return the encoder's latent of x; only called where `has_encoder`."""
        raise NotImplementedError

    def __call__(self, z: Float[Tensor, "b *k"]) -> Float[Tensor, "b *d"]:
        """Generate points.

        Args:
            z: latents, shape (b, *k).

        Returns:
            Points, shape (b, *d).

        Raises:
            InputError: latents of another shape, or a model that returns no batch.
        """
        check_tensor(z, "z")
        if z.ndim < 2 or len(z) == 0:
            raise InputError(f"z has shape {tuple(z.shape)}; pass a batch of latents, (b, *k)")
        if self.latent_shape is not None and tuple(z.shape[1:]) != self.latent_shape:
            want = ", ".join(map(str, self.latent_shape))
            raise InputError(f"z has shape {tuple(z.shape)}, but the model takes (batch, {want})")
        x = self.generate(z)
        if x.ndim < 2 or len(x) != len(z):
            raise InputError(
                f"the decoder returned shape {tuple(x.shape)} for {len(z)} latents; return one "
                "point a latent, (b, *d)"
            )
        return x

    def encode(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *k"]:
        """Return the encoder's latent of each point.

        Args:
            x: points, shape (b, *d).

        Returns:
            Latents, shape (b, *k).

        Raises:
            InputError: the decoder has no encoder.
        """
        if not self.has_encoder:
            raise InputError(
                "this decoder has no encoder; pass encode=, or search with find_latents"
            )
        return self.invert(x)


class FunctionDecoder(Decoder):
    """Any `z -> x`, a torch module or a plain callable, as a Decoder.

    Args:
        function: the generator. A module in training mode whose batch norm or dropout would mix
            or change samples is refused.
        encode: `x -> z`, if there is one (for a VAE, the posterior's mean; for a flow, its
            inverse).
        latent_shape: shape of one latent; needed for a search.

    Raises:
        InputError: no callable, or a module in training mode that mixes samples.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        encode: Callable[[Tensor], Tensor] | None = None,
        latent_shape: tuple[int, ...] | None = None,
    ) -> None:
        if not callable(function):
            raise InputError(f"{type(function).__name__} is no decoder; pass a module or z -> x")
        for module in (function, encode):
            _refuse_training(module)
        self.function, self.encoder, self.latent_shape = function, encode, latent_shape
        self.has_encoder = encode is not None
        if isinstance(function, torch.nn.Module):
            first = next(function.parameters(), None)
            self.device = self.device if first is None else first.device

    def generate(self, z: Tensor) -> Tensor:
        """Call the function."""
        return self.function(z)

    def invert(self, x: Tensor) -> Tensor:
        """Call the encoder."""
        assert self.encoder is not None
        return self.encoder(x)


def as_decoder(model: Decoder | Callable[[Tensor], Tensor]) -> Decoder:
    """Return a Decoder as it is, and a module or plain callable wrapped as one."""
    return model if isinstance(model, Decoder) else FunctionDecoder(model)


def _refuse_training(model: object) -> None:
    if isinstance(model, torch.nn.Module):
        for name, module in model.named_modules():
            if module.training and isinstance(module, _COUPLED):
                raise InputError(
                    f"{type(module).__name__} {name!r} is in training mode, where samples mix or "
                    "change from call to call; call .eval() on the model"
                )
