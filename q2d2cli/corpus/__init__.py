"""Whole corpora to tokens for language models and back: sources, output formats, jobs that go on where they stopped."""
