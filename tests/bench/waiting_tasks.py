"""Waits for panda tasks by our triggers, all in one event loop as a triggerer has them, and says what that costs.

Standard input: ``{"tasks": [numbers], "seconds": s}``. The answer: CPU seconds per second, and the events seen.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from airpanda.triggers.panda_task import PandaTaskTrigger

_STARTED_S = 5.0
_TI = {"dag_id": "d", "run_id": "r", "task_id": "t", "ti_id": "u"}


async def watch(task_id: int, events: list[Any]) -> None:
    """Until it fires."""
    trigger = PandaTaskTrigger(panda_task_id=task_id, ti=_TI, panda_conn_id="panda_default")
    events.extend([event.payload async for event in trigger.run()])


async def main() -> None:
    """Measure."""
    wanted = json.load(sys.stdin)
    events: list[Any] = []
    waiting = [asyncio.create_task(watch(task_id, events)) for task_id in wanted["tasks"]]
    await asyncio.sleep(_STARTED_S)
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(wanted["seconds"])
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    ended = sum(task.done() for task in waiting)
    print(json.dumps({"share": share, "events": events, "ended": ended}))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
