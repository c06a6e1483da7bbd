"""What a pilot is told at its start: the text of ``pilot.json``, the same for every computing element."""

from __future__ import annotations

import json

from airpanda.computing.queues import PandaQueue
from airpanda.core.secret import Secret

_PASSED_ON = ("dispatcher_url", "ca_dir", "proxy", "glexec", "myproxy", "idle_limit_s", "hide", "show")


def pilot_json(queue: PandaQueue, tag: str, pilot_id: int, token: Secret[str], *, scratch: str = "") -> str:
    """The text of one pilot's ``pilot.json``. It holds the token: it travels on stdin and into a 0600 file only.

    ``scratch``: the pilot's own directory for sandboxes, on the node; empty: beside its working directory.
    """
    wire = queue.to_wire()
    pilot = wire["pilot"]
    return json.dumps(
        {
            "pilot_id": pilot_id,
            "tag": tag,
            "token": token.reveal(),
            "queue": queue.name,
            "identity_policy": wire["queue"]["identity_policy"],
            "slot": wire["slot"],
            "environment": wire["environment"],
            **({"scratch": scratch} if scratch else {}),
            **{key: pilot[key] for key in _PASSED_ON},
        }
    )
