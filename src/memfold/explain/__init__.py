"""Which words of a prompt a score of memorization hangs on."""

from .attribution import Attribution, attribute

__all__ = ["Attribution", "attribute"]
