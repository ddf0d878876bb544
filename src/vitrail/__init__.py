"""Vitrail: from requirements to a verified, deployable vision model."""

__version__ = "0.1.0"
