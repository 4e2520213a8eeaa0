"""Data that is made: deterministic under its seed, flat arrays from the start, one file a kind."""

from longrec.datasets.synthetic.drift import make_drift
from longrec.datasets.synthetic.long_range import make_long_range
from longrec.datasets.synthetic.purchases import make_purchases
from longrec.datasets.synthetic.recall import make_recall

__all__ = ["make_drift", "make_long_range", "make_purchases", "make_recall"]
