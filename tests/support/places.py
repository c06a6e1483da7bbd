"""Directories that other accounts may pass through: pytest's own are closed to them at the start of every run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A fresh directory of mode 0711 below /var/tmp; gone after the test, whoever owns what is in it."""
    path = Path(tempfile.mkdtemp(prefix="airpanda-test-", dir="/var/tmp"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)
