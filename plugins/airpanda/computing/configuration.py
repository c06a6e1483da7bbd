"""What a pilot is told at its start: the text of ``pilot.json``, the same for every computing element."""

from __future__ import annotations

import json

from airpanda.computing.queues import PandaQueue
from airpanda.core.secret import Secret

# What the computing element needs itself, or the dispatcher alone, does not travel.
_KEPT = ("code", "python", "token_only")


def pilot_json(
    queue: PandaQueue,
    tag: str,
    pilot_id: int,
    token: Secret[str],
    *,
    scratch: str = "",
    sealed: str = "",
    proxy: str = "",
) -> str:
    """The text of one pilot's ``pilot.json``. It holds the token: it travels on stdin and into a 0600 file only.

    ``scratch``: the pilot's own directory for sandboxes, on the node; empty: beside its working directory. With
    ``sealed``, the token for the key of the pilot's proxy, the text holds that instead and no secret. ``proxy`` is
    that proxy where the CE brings it along, in the place of ``[pilot] proxy``.
    """
    wire = queue.wire
    pilot = wire["pilot"]
    return json.dumps(
        {
            "pilot_id": pilot_id,
            "tag": tag,
            **({"token": "", "sealed_token": sealed} if sealed else {"token": token.reveal()}),
            "queue": queue.name,
            "identity_policy": wire["queue"]["identity_policy"],
            "slot": wire["slot"],
            "environment": wire["environment"],
            **({"scratch": scratch} if scratch else {}),
            **{key: value for key, value in pilot.items() if key not in _KEPT},
            "proxy": proxy or pilot["proxy"],
        }
    )
