"""Quantizers with one interface (`base`): `q2d2` on `grids`, and `baselines`; `spec` has sizes and rates, no torch."""
