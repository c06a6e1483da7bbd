"""The one error of the demonstration."""

from __future__ import annotations


class DemoError(Exception):
    """The demonstration cannot go on. The text is one sentence for the person who started it: what, and what to do."""
