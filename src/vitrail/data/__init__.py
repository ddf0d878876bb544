"""Labelled images of the user's own: where they come from, how they are split, what is wrong with them."""

from vitrail.data.read import load
from vitrail.data.records import SPLITS, Broken, Conflict, Copy, Dataset, Example, Layout, Split

__all__ = ["SPLITS", "Broken", "Conflict", "Copy", "Dataset", "Example", "Layout", "Split", "load"]
