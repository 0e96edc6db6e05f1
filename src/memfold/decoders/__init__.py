"""Decoder: G(z) -> x for GANs, VAEs and flows."""
