"""The outermost edge: Airflow's configuration becomes the dispatcher's application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from airflow.configuration import conf
from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.types import Scope

from airpanda.computing.queues import PandaQueue, load_queues
from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.db.pool import dsn_of
from airpanda.dispatcher.app import create_app
from airpanda.dispatcher.people import ShowPeople

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

QUEUES_MAX_AGE_S = 30.0


def airflow_app(*, pilots: bool) -> FastAPI:
    """The application for this Airflow; ``pilots``: it serves them, which only the gateway does.

    Raises:
        ConfigurationError: names the option that is missing or wrong.
    """
    settings = read_settings()
    keys = [Secret(key) for key in conf.get("core", "fernet_key").split(",") if key.strip()]
    queues = QueueDirectory(settings.include_dir / "queues")
    app = create_app(settings, dsn=read_dsn(), fernet_keys=keys, queues=queues.current, pilots=pilots)
    if not pilots:  # behind the api-server, where people have sessions
        app.add_middleware(ShowPeople, database=app.state.services.database, people=AirflowPeople())
    return app


class AirflowPeople:
    """Airflow's sessions and its auth manager."""

    async def name(self, scope: Scope) -> str | None:
        """Who is signed in, by the session cookie."""
        user = await self._user(scope)
        return None if user is None else user.get_name()

    async def may_read_logs(self, scope: Scope, dag_id: str) -> bool:
        """What Airflow itself asks before it shows a task's log."""
        user = await self._user(scope)
        return user is not None and await asyncio.to_thread(_may_read_logs, user, dag_id)

    async def _user(self, scope: Scope) -> BaseUser | None:
        from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
        from airflow.api_fastapi.core_api.security import resolve_user_from_token

        try:
            return await resolve_user_from_token(Request(scope).cookies.get(COOKIE_NAME_JWT_TOKEN))
        except HTTPException:  # none, ended or forged
            return None


def _may_read_logs(user: BaseUser, dag_id: str) -> bool:
    """As ``requires_access_dag`` of Airflow's own routes: with the DAG's team. Reads Airflow's database."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
    from airflow.models.dag import DagModel

    return get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.TASK_LOGS,
        details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
        user=user,
    )


def read_dsn() -> Secret[str]:
    """Airflow's database as asyncpg wants it.

    Raises:
        ConfigurationError: it is no PostgreSQL.
    """
    url = conf.get("database", "sql_alchemy_conn")
    if not url.startswith("postgresql"):
        raise ConfigurationError("[database] sql_alchemy_conn: airpanda's job store needs PostgreSQL")
    return Secret(dsn_of(url))


def read_settings() -> Settings:
    """``[airpanda]`` of airflow.cfg.

    Raises:
        ConfigurationError: names the option.
    """
    # The section shows typos; it does not show what only the environment (AIRFLOW__AIRPANDA__...) sets.
    options = {key: str(value) for key, value in (conf.getsection("airpanda") or {}).items()}
    for field in fields(Settings):
        value = conf.get("airpanda", field.name, fallback=None)
        if value is not None:
            options[field.name] = value
    return Settings.from_options(options)


class QueueDirectory:
    """Queue files, read again when older than half a minute.

    A file that has become wrong keeps the last good state out of use: a site's mistake is answered, not ignored.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._queues: Mapping[str, PandaQueue] = {}
        self._read_at = -QUEUES_MAX_AGE_S

    def current(self) -> Mapping[str, PandaQueue]:
        """The queues by name.

        Raises:
            ConfigurationError: a file is wrong.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= QUEUES_MAX_AGE_S:
                self._queues = load_queues(self._directory)
                self._read_at = now
            return self._queues
