"""Alembic's environment: our tables only, in the database Airflow is configured for."""

from __future__ import annotations

import contextlib
from typing import Any

from airflow import settings
from alembic import context

from airpanda.db.manager import AirpandaDBManager


def _ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compared: Any) -> bool:
    return kind != "table" or name in AirpandaDBManager.metadata.tables


def _run() -> None:
    with contextlib.ExitStack() as stack:
        target: dict[str, Any]
        if context.is_offline_mode():
            target = {"url": settings.SQL_ALCHEMY_CONN, "literal_binds": True}
        else:
            given = context.config.attributes.get("connection")
            assert settings.engine is not None, "airflow.settings is initialised before its managers run"
            target = {"connection": given or stack.enter_context(settings.engine.connect())}
        context.configure(
            version_table=AirpandaDBManager.version_table_name,
            target_metadata=AirpandaDBManager.metadata,
            include_object=_ours,
            compare_type=True,
            compare_server_default=True,
            **target,
        )
        with context.begin_transaction():
            context.run_migrations()


_run()
