"""Denoiser: D(x, sigma, cond) = E[x0 | x0 + sigma n = x], whatever the network predicts."""
