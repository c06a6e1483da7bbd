"""``[core] hostname_callable`` of test workers: several hosts on one machine."""

from __future__ import annotations

import os


def name() -> str:
    """What the worker's environment calls this host."""
    return os.environ["AIRPANDA_TEST_HOST"]
