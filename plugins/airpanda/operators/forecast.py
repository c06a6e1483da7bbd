"""Which staged credentials end soon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator

from airpanda.core.clock import to_wire
from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import StagedQuery

MAX_LISTED = 1000


class CredentialForecastOperator(BaseOperator):
    """Logs a warning for each staged credential that ends within ``hours``, and returns them, the first to end first.

    Args:
        hours: how far to look ahead (templated).
    """

    template_fields: Sequence[str] = ("hours",)
    ui_color = "#e8dff5"

    def __init__(self, *, hours: Any = 24, panda_conn_id: str = PandaHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hours = hours
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> list[dict[str, Any]]:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer.
        """
        query = StagedQuery(ends_within_s=int(self.hours) * 3600, limit=MAX_LISTED)
        found = PandaHook(self.panda_conn_id).send(calls.staged(query))
        ending = sorted(found, key=lambda view: view.expires_at)
        for view in ending:
            self.log.warning(
                "credential %d of %s (%s) ends at %s: its owner must stage a fresh one",
                view.credential_id,
                view.owner,
                view.owner_dn,
                to_wire(view.expires_at),
            )
        return [
            {"credential_id": view.credential_id, "owner": view.owner, "expires_at": to_wire(view.expires_at)}
            for view in ending
        ]
