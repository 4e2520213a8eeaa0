"""Interaction files into per-user histories: readers, the dataset folder, splits, public datasets."""

from longrec.datasets.dataset import Dataset
from longrec.datasets.features import read_attributes, read_event_features
from longrec.datasets.fetch import SOURCES, fetch
from longrec.datasets.readers import (
    InteractionColumns,
    TitleColumns,
    read_categories,
    read_interactions,
    read_titles,
)
from longrec.datasets.split import HELD_OUT, Split, everything, leave_one_out

__all__ = [
    "HELD_OUT",
    "SOURCES",
    "Dataset",
    "InteractionColumns",
    "Split",
    "TitleColumns",
    "everything",
    "fetch",
    "leave_one_out",
    "read_attributes",
    "read_categories",
    "read_event_features",
    "read_interactions",
    "read_titles",
]
