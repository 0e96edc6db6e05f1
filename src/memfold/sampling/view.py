"""What one step of a running pipeline shows, in the coordinates of a Denoiser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError


@dataclass(frozen=True)
class Algebra:
    """What a network's prediction F means at a noise level: x = scale z and D = a x + b F.

    Attributes:
        a: share of x in D.
        b: share of the prediction in D.
        scale: from the latent as the network is given it to VE coordinates.
    """

    a: float = 0.0
    b: float = 1.0
    scale: float = 1.0

    @staticmethod
    def of(model: TextToImage, sigma: float) -> Algebra:
        """Read it off the pipeline's own parameterisation, which is affine in x and in F."""
        f, x = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.ones(1, 1)
        both = model.predictor(f).denoise(1 - f, torch.full_like(f, sigma), None)
        scale = model.to_ve(x.double(), torch.tensor([sigma], dtype=torch.float64))
        return Algebra(float(both[0]), float(both[1]), float(scale))


@dataclass(frozen=True)
class StepView:
    """What a pipeline's run shows at one step; D is computed where it is asked for.

    Attributes:
        index: number of the step, from 0.
        sigma: noise standard deviation.
        latent: latents as the network was given them, shape (b, *d).
        predictions: what the network answered under the prompt and without one (None where the run
            uses no guidance), and what the pipeline made of both; each of shape (b, *d).
        algebra: what these mean; if left out, they are x and D themselves.
        end_attention: attention of each place to the prompt's end token, shape (b, h, w); None
            where it was not asked for.
        attention_entropy: entropy of the attention over the tokens, nats, shape (b,); as before.
    """

    index: int
    sigma: float
    latent: Float[Tensor, "b *d"]
    predictions: tuple[Tensor, Tensor | None, Tensor]
    algebra: Algebra = Algebra()
    end_attention: Float[Tensor, "b h w"] | None = None
    attention_entropy: Float[Tensor, " b"] | None = None

    @property
    def has_guidance(self) -> bool:
        """Whether the run asks the network without the prompt too."""
        return self.predictions[1] is not None

    @cached_property
    def x(self) -> Float[Tensor, "b *d"]:
        """The latents in VE coordinates, float32 or wider."""
        return self._wide(self.latent) * self.algebra.scale

    @cached_property
    def conditional(self) -> Float[Tensor, "b *d"]:
        """D_c(x)."""
        return self._denoised(self.predictions[0])

    @cached_property
    def unconditional(self) -> Float[Tensor, "b *d"] | None:
        """D_0(x); None where the run uses no guidance."""
        without = self.predictions[1]
        return None if without is None else self._denoised(without)

    @cached_property
    def guided(self) -> Float[Tensor, "b *d"]:
        """What the pipeline made of both, D_w(x)."""
        return self._denoised(self.predictions[2])

    @cached_property
    def cfg_norm(self) -> Float[Tensor, " b"]:
        """|eps_c - eps_0| = |D_c - D_0| / sigma (Wen et al. 2024); NaN without guidance."""
        return _norm(self._pull) * (abs(self.algebra.b) / self.sigma)

    @cached_property
    def guided_score_norm(self) -> Float[Tensor, " b"]:
        """|s_w| = |D_w - x| / sigma^2 (Ross et al. 2025)."""
        a, b = self.algebra.a, self.algebra.b
        made = self._wide(self.predictions[2])
        if a == 1:  # the network predicts eps, or the score: x says nothing
            return _norm(made) * (abs(b) / self.sigma**2)
        return _norm((a - 1) * self.x + b * made) / self.sigma**2

    @cached_property
    def bright_ending(self) -> Float[Tensor, " b"] | None:
        """CFG norm weighted by the attention to the end token (Chen et al. 2025)."""
        if self.end_attention is None or self.latent.ndim != 4:
            return None
        mask = self.end_attention[:, None]
        if mask.shape[2:] != self.latent.shape[2:]:
            size = self.latent.shape[2:]
            mask = torch.nn.functional.interpolate(mask, size=size, mode="bilinear")
        norm = _norm(self._pull * mask) * (abs(self.algebra.b) / self.sigma)
        return norm / mask.flatten(1).mean(1)

    @property
    def alignment(self) -> Float[Tensor, " b"]:
        """Cosine between s_c - s_0 and s_0; NaN without guidance."""
        base = self.conditional if self.unconditional is None else self.unconditional
        pull = (self._pull * self.algebra.b).flatten(1)
        return torch.cosine_similarity(pull, (base - self.x).flatten(1), dim=1)

    def settled(self) -> StepView:
        """Return a view of x and D themselves, which shares no memory with the pipeline's run."""
        means = (self.conditional, self.unconditional, self.guided)
        return replace(self, latent=self.x, predictions=means, algebra=Algebra())

    @property
    def _pull(self) -> Tensor:
        """F_c - F_0, and NaN where there is only one of them."""
        under, without = self.predictions[:2]
        if without is None:
            return torch.full_like(self._wide(under), float("nan"))
        return self._wide(under) - self._wide(without)

    def _denoised(self, prediction: Tensor) -> Tensor:
        a, b = self.algebra.a, self.algebra.b
        return torch.add(a * self.x, self._wide(prediction), alpha=b)

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.promote_types(self.latent.dtype, torch.float32))


def _norm(x: Tensor) -> Float[Tensor, " b"]:
    return x.flatten(1).norm(dim=1)


def view_of(
    model: TextToImage,
    outputs: list[tuple[Tensor, Tensor, Tensor]],
    guided: Tensor,
    n: int,
    index: int,
    *,
    sigma: float | None = None,
    algebra: Algebra | None = None,
) -> StepView:
    """Turn the network calls of one step into D_c, D_0 and D_w.

    Args:
        model: the pipeline.
        outputs: (latent, time, prediction) of each call since the last step.
        guided: what the pipeline handed its scheduler.
        n: images in the run.
        index: number of the step.
        sigma: noise standard deviation; None to read it off the network's time, which half
            precision rounds.
        algebra: that of sigma, if it is known.

    Returns:
        The view.

    Raises:
        InputError: the calls fit neither a run with guidance nor one without.
    """
    if not outputs:
        raise InputError("the scheduler made a step without a call of the network")
    z, t, first = outputs[0]
    conditional = model.layout.conditional or 0
    if len(z) == n and len(outputs) == 1:
        halves = [first]
    elif len(z) == 2 * n and len(outputs) == 1:
        halves = list(first.chunk(2))
    elif len(z) == n and len(outputs) == 2:
        halves = [first, outputs[1][2]]
    else:
        raise InputError(
            f"{model.name} called its network {len(outputs)} times with a batch of {len(z)} for "
            f"{n} images in one step; memfold knows one call of {n} or {2 * n}, or two of {n}"
        )
    if sigma is None:
        sigma = model.sigma_seen(t)
    both = len(halves) == 2
    return StepView(
        index=index,
        sigma=sigma,
        latent=z[:n],
        predictions=(
            halves[conditional] if both else halves[0],
            halves[1 - conditional] if both else None,
            guided,
        ),
        algebra=algebra or Algebra.of(model, sigma),
    )
