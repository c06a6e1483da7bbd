"""Pilots that only claim, each a process of its own: ``python claimers.py`` with a JSON object on its standard input.

It prints a line "process pilot" for each. What a claimer is given it appends to a file of its own at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.dispatcher.services import make_services
from airpanda.messages import PilotOffer
from support.dispatcher import PILOT_DN, Queue

OFFER = {"site_name": "DEMO", "node": "wn", "cores": 4, "memory": 8000, "disk_space": 8000, "remaining_time": 7200}


async def claim(wanted: dict[str, Any], pilot_id: int) -> None:
    """Until this process is killed."""
    directory = Path(wanted["directory"])
    settings = Settings(signing_key=Path(wanted["signing_key"]), file_store=directory, include_dir=directory)
    services = make_services(
        settings,
        dsn=Secret(wanted["dsn"]),
        fernet_keys=[Secret(wanted["fernet_key"])],
        queues=lambda: {"DEMO": Queue("DEMO")},
    )
    await services.database.open()
    chance = random.Random(pilot_id)
    file = os.open(directory / str(pilot_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        offer = PilotOffer(**OFFER, n_jobs=chance.randint(1, 3))
        jobs = await services.jobs.acquire(offer, pilot_id=pilot_id, queue="DEMO", pilot_dn=PILOT_DN)
        if jobs is None:
            await services.pilots.seen(pilot_id, "DEMO", node="wn", dn=PILOT_DN)
            continue
        for job in jobs:
            os.write(file, f"{job.panda_id} {job.attempt_nr}\n".encode())
        await asyncio.sleep(chance.uniform(0.0, 0.05) if jobs else 0.2)


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    for pilot_id in wanted["pilots"]:
        process = os.fork()
        if process == 0:
            asyncio.run(claim(wanted, pilot_id))
        print(process, pilot_id, flush=True)
    for _ in wanted["pilots"]:
        os.wait()


if __name__ == "__main__":
    main()
