"""From a library's objects to a Denoiser."""
