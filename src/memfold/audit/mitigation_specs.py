"""Names of mitigations with their options, as a command line gives them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memfold.mitigation import METHODS
from memfold.types import InputError

NONE = "none"
_NOT_GIVEN = {"model", "prompt", "seeds", "weights", "generator", "options", "reference", "band"}
DEFAULT = (
    "reword", "embedding", "rewrite", "random_rewrite", "rewrite:n_words=2",
    "random_rewrite:n_words=2", "random_words", "random_words:kind=numbers",
    "random_words:kind=repeats", "late_guidance", "late_guidance:before=1.0", "lid_guidance",
    "padding", "padding:fill=start", "noise", "away",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """A mitigation with options.

    Attributes:
        method: a name of METHODS, or "none".
        options: its own options.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return ":".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])


def read_specs(texts: Sequence[str]) -> list[Spec]:
    """Read names such as "embedding" and "random_words:kind=numbers:n_words=2".

    The first is always "none": what the pipeline draws by itself. Each rewriting of attributed
    words gets its control, the rewriting of as many words drawn evenly.

    Args:
        texts: the names; all methods if empty.

    Returns:
        The specifications, each once.

    Raises:
        InputError: a method or an option is unknown.
    """
    specs = [Spec(NONE)]
    for text in texts or DEFAULT:
        spec = _spec(text.strip())
        specs.append(spec)
        if spec.method == "rewrite":
            few = {k: v for k, v in spec.options.items() if k != "temperature"}
            specs.append(Spec("random_rewrite", few))
    return list({spec.name: spec for spec in specs}.values())


def _spec(text: str) -> Spec:
    method, *parts = re.split(r":(?=[a-z_]+=)", text)  # a value may hold colons (url)
    if method not in {*METHODS, NONE}:
        raise InputError(f"--methods: {method!r} is unknown; choose from {', '.join(METHODS)}")
    known = {} if method == NONE else inspect.signature(METHODS[method]).parameters
    options = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in _NOT_GIVEN:
            own = ", ".join(k for k in known if k not in _NOT_GIVEN) or "none"
            raise InputError(
                f"--methods: {part!r} is no option of {method}; write name=value, one of {own}"
            )
        options[name] = _value(value)
    return Spec(method, options)


def _value(text: str) -> Any:
    """Read a number, or leave the words as they are."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return found if isinstance(found, int | float | bool) else text
