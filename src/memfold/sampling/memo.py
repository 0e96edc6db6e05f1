"""What several readers of one generation need, computed once, with what each would have paid."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Price:
    """What a value took.

    Attributes:
        seconds: wall time.
        passes: rows that went through the network.
        products: rows that went back through it.
    """

    seconds: float
    passes: int
    products: int


@dataclass
class Memo:
    """Values by key; the second reader of a value is told its price and does not pay it.

    Attributes:
        values: what is known, with its price.
        reused: prices of the values that were read again since the list was last emptied.
    """

    values: dict[Hashable, tuple[Any, Price]] = field(default_factory=dict)
    reused: list[Price] = field(default_factory=list)

    def get(
        self, key: Hashable, compute: Callable[[], Any], *, passes: int = 0, products: int = 0
    ) -> Any:
        """Return the value of a key, computed at the first call.

        Args:
            key: names the value, with all that it depends on.
            compute: makes it.
            passes: rows that `compute` sends through the network.
            products: rows that it sends back.

        Returns:
            The value; not to be written into.
        """
        if key in self.values:
            value, price = self.values[key]
            self.reused.append(price)
            return value
        start = time.monotonic()
        value = compute()
        self.values[key] = value, Price(time.monotonic() - start, passes, products)
        return value
