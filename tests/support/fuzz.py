"""How hard the property tests try: seconds in `make test`, minutes in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import settings

FACTOR = int(os.environ.get("AIRPANDA_FUZZ", "1"))

if FACTOR > 1:
    settings.register_profile("fuzz", max_examples=100 * FACTOR, deadline=None, print_blob=True)
    settings.load_profile("fuzz")


def examples(n: int) -> int:
    """That many, times what `make fuzz` asks for."""
    return n * FACTOR
