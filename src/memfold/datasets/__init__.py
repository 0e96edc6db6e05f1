"""Data: manifolds whose true LID travels with each point, and images from files and arrays."""
