"""What a guard raises instead of handing out an image, and what it warns with."""

from __future__ import annotations


class Refused(RuntimeError):
    """The guard does not hand out what was drawn, or could not judge what was drawn.

    Attributes:
        reason: why, in a sentence.
        step: step at which the score left the band, or could not be judged, from 0.
        score: the score there; NaN where none could be judged.
        bound: the band's limit there; NaN likewise.
    """

    def __init__(
        self,
        reason: str,
        step: int = 0,
        score: float = float("nan"),
        bound: float = float("nan"),
    ) -> None:
        super().__init__(reason)
        self.reason, self.step, self.score, self.bound = reason, step, score, bound


class MemorizationWarning(UserWarning):
    """A generation left the band of ordinary prompts."""
