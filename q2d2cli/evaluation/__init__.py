"""Evaluation: metrics of audio quality and of codebook use."""
