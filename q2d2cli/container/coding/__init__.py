"""Entropy coding of pair indices: context models in integers, a range coder, blocks side by side. Imports no torch."""
