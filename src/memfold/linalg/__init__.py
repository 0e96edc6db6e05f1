"""Linear algebra with products only: traces, spectra, Jacobians, neighbours."""
