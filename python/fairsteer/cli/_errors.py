"""The one exception of the command line."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(Exception):
    """Input that the user can put right; its text is the sentence printed before exit code 2."""
