"""One demonstration at a time on a machine, also when the suite is split over processes."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def turn() -> Iterator[None]:
    """Each takes the web UI's usual port where that is free, and a minute of both cores."""
    with Path(tempfile.gettempdir(), "airpanda-e2e-turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
