"""Verdicts about memorization, and the evidence for them."""
