"""The outermost edge: Airflow's configuration becomes the dispatcher's application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.types import Scope

from airpanda.dispatcher import configured
from airpanda.dispatcher.app import configured_app
from airpanda.dispatcher.people import ShowPeople

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser


def airflow_app() -> FastAPI:
    """The application behind this Airflow's api-server, where people have sessions; it serves no pilots.

    Raises:
        ConfigurationError: names the option that is missing or wrong.
    """
    app = configured_app(configured.read(), pilots=False)
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
