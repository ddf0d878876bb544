"""The one place of the version; pyproject.toml says the same (a test compares)."""

from __future__ import annotations

__version__ = "0.1.0"
