"""Grids of noise levels and solvers as generators of steps."""
