"""Wait until a payload owner has a staged proxy that lasts long enough."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airpanda.core.clock import to_wire, utcnow
from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import CredentialScope, StagedQuery


class ProxyLifetimeSensor(BaseSensorOperator):
    """Succeeds when ``payload_owner`` has a staged credential that lasts at least ``min_lifetime`` from now.

    For owners who stage from a terminal (``python -m airpanda proxy stage``): the XCom is what an operator takes as
    ``credential``, the longest-lived one. Only credentials of scope ``user`` count, because one of a single job or
    panda task may have served already. Whether the owner consents to this client is asked at submission.

    Args:
        payload_owner: short name of the owner (templated).
        min_lifetime: what must be left of it.
    """

    template_fields: Sequence[str] = ("payload_owner",)
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        payload_owner: str,
        min_lifetime: timedelta = timedelta(hours=12),
        panda_conn_id: str = PandaHook.default_conn_name,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.payload_owner = payload_owner
        self.min_lifetime = min_lifetime
        self.panda_conn_id = panda_conn_id

    def poke(self, context: Any) -> PokeReturnValue:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer.
        """
        query = StagedQuery(owner=self.payload_owner)
        found = PandaHook(self.panda_conn_id).send(calls.staged(query))
        wanted = utcnow() + self.min_lifetime
        for view in found:  # the longest-lived first
            if view.scope is CredentialScope.USER and view.expires_at >= wanted:
                reference = {
                    "credential_id": view.credential_id,
                    "owner": view.owner,
                    "owner_dn": view.owner_dn,
                    "expires_at": to_wire(view.expires_at),
                }
                return PokeReturnValue(is_done=True, xcom_value=reference)
        self.log.info(
            "%s has no staged credential of scope user that lasts until %s: the owner must run"
            " 'python -m airpanda proxy stage --scope user'",
            self.payload_owner,
            to_wire(wanted),
        )
        return PokeReturnValue(is_done=False)
