"""Ours beside RecTools' networks on the same events: the parts of `benchmarks/quality.py`."""
