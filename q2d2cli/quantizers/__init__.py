"""Quantizers: `spec` (sizes and bit rates, no torch), `grids` (geometry), `q2d2` (the module)."""
