"""Estimators of local intrinsic dimension, one paper a file."""
