"""LID of a model that shows nothing but its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import check_generator, check_tensor
from memfold.types import Estimate, InputError

Sampler = Callable[[int, torch.Generator | None], Any]


@runtime_checkable
class DataLID(Protocol):
    """What a data-side estimator offers: `MLE`, `LPCA`, `TwoNN`, and their like."""

    def fit(self, X: Any) -> Any:
        """Take the rows of X as the reference."""

    def predict_with_stderr(self, X: Any) -> tuple[Any, Any]:
        """Measure the LID at points, with its standard error."""


def sampler_lid(
    sample: Sampler,
    x: Float[Tensor, "b *d"],
    estimator: DataLID,
    *,
    n_samples: int = 2000,
    generator: torch.Generator | None = None,
    batch_size: int = 500,
) -> Estimate:
    """Estimate LID_theta(x) from the model's samples near x, by a data-side estimator.

    LID_theta(x) = LID of the distribution of `sample`, at x, by definition: whatever estimates the
    one from points (Levina and Bickel 2004, where it is `MLE`) estimates the other.

    Any sampler will do, be it behind an API; one that samples under one prompt gives
    LID_theta(x | prompt). The samples must come close to x: where few do, the LID is that of the
    way to them, and too large. Copies of one image among the samples are a point mass, LID 0.

    Args:
        sample: `(n, generator) -> points`, a tensor or array of shape (n, *d) in the units of x.
        x: points, shape (b, *d).
        estimator: any data-side estimator, such as `MLE(n_neighbors=20)`; a copy is fitted.
        n_samples: samples in all.
        generator: handed to `sample`; None where the sampler takes no randomness from outside.
        batch_size: samples asked for at a time.

    Returns:
        LID and the estimator's own standard error, shape (b,); the scale is NaN, since that of
        neighbours differs from point to point.

    Raises:
        InputError: points, or a sampler whose samples cannot be used.

    >>> import torch
    >>> from memfold.lid.mle import MLE
    >>> def sample(n, generator):  # a line in the plane
    ...     return torch.randn(n, 1, generator=generator) @ torch.tensor([[1.0, 2.0]])
    >>> generator = torch.Generator().manual_seed(0)
    >>> sampler_lid(sample, torch.zeros(1, 2), MLE(50), generator=generator).lid.round()
    tensor([1.])
    """
    check_tensor(x)
    check_generator(generator)
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; pass a batch of points, (b, *d), b >= 1")
    if n_samples < 2 or batch_size < 1:
        raise InputError(f"n_samples = {n_samples}, batch_size = {batch_size}: take more")
    from sklearn.base import clone

    parts, missing = [], n_samples
    while missing:
        n = min(batch_size, missing)
        part = torch.as_tensor(np.asarray(_detached(sample(n, generator))))
        if part.shape != (n, *x.shape[1:]):
            want = ", ".join(map(str, x.shape[1:]))
            raise InputError(
                f"the sampler returned shape {tuple(part.shape)} when asked for {n}; return "
                f"({n}, {want}), like the points"
            )
        parts.append(part.flatten(1))
        missing -= n
    samples = torch.cat(parts)
    bad = ~samples.isfinite().all(1)
    if bad.any():
        raise InputError(f"sample {int(bad.nonzero()[0])} holds NaN or infinity")
    fitted = clone(estimator).fit(samples.double().numpy())
    lid, stderr = fitted.predict_with_stderr(x.detach().cpu().flatten(1).double().numpy())
    name = f"{type(estimator).__name__} of {n_samples} samples, points"
    lid, stderr = (torch.as_tensor(np.asarray(value)).to(x) for value in (lid, stderr))
    return Estimate(lid, stderr, float("nan"), name)


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
