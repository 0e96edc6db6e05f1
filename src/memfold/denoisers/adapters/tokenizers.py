"""A pipeline's tokenizers, as copies of memfold's own."""

from __future__ import annotations

import copy
import threading
from typing import Any
from weakref import WeakKeyDictionary

_COPIES = threading.local()


def own_tokenizer(pipe: Any, *names: str) -> Any:
    """Return this thread's copy of the first tokenizer that a pipeline has; None for none.

    A fast tokenizer keeps the padding and truncation of its last call. Were memfold to call the
    pipeline's own, a run of another thread would be given more or fewer tokens than it asked for.
    """
    found = next((t for t in (getattr(pipe, n, None) for n in names) if t is not None), None)
    if found is None:
        return None
    if not hasattr(_COPIES, "of"):
        _COPIES.of = WeakKeyDictionary()
    size, own = _COPIES.of.get(found, (None, None))
    now = len(found) if hasattr(found, "__len__") else 0
    if size != now:  # tokens may be added, for textual inversion
        size, own = now, copy.deepcopy(found)
        _COPIES.of[found] = size, own
    return own
