"""When a trigger may fire at the earliest."""

from __future__ import annotations

import asyncio
import time

SETTLE_S = 4.0
"""No trigger fires sooner after its start. Airflow 3.3.2 marks a task as failed that is queued again before the
scheduler has seen the end of its first process ("finished with state success, but the task instance's state attribute
is queued"), and on a busy machine that is seen seconds later."""


async def settled(since: float) -> None:
    """Wait for what is left of that time; ``since`` is when the trigger started, on the monotonic clock."""
    if (rest_s := since + SETTLE_S - time.monotonic()) > 0:
        await asyncio.sleep(rest_s)
