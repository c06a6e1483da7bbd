"""Airflow Connections by name: one that is not there is a sentence that says who must make it."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airpanda.core.errors import ConfigurationError

OWNER = "owner_"


class ConnectionHook(BaseHook):
    """What our hooks have in common."""

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        """Raises:
        ConfigurationError: there is no such Connection.
        """
        try:
            return super().get_connection(conn_id)
        except AirflowNotFoundException:
            raise _lacking(conn_id) from None

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Any:
        """Raises as ``get_connection``."""
        try:
            return await super().aget_connection(conn_id)
        except AirflowNotFoundException:
            raise _lacking(conn_id) from None


def _lacking(conn_id: str) -> ConfigurationError:
    is_owner = conn_id.startswith(OWNER)
    what = f", which says where the certificate or proxy of {conn_id.removeprefix(OWNER)} is" if is_owner else ""
    return ConfigurationError(
        f"Airflow has no Connection {conn_id!r}{what}: whoever runs Airflow must make it, as docs/operations.md tells"
    )
