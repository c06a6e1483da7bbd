"""Whose logs Airflow's auth manager shows: the question is the one that Airflow's own routes ask."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from airflow.api_fastapi import app
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api import security
from airflow.models.dag import DagModel

from airpanda.dispatcher.edge import AirflowPeople

TEAMS = {"dag_of_lhcb": "lhcb"}
SCOPE = {"type": "http", "headers": []}


@pytest.fixture
def asked_in(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The simple auth manager and teams; the threads in which the database was asked for a team."""
    threads: list[threading.Thread] = []

    def team(dag_id: str) -> str | None:
        threads.append(threading.current_thread())
        return TEAMS.get(dag_id)

    monkeypatch.setattr(DagModel, "get_team_name", staticmethod(team))
    # Its methods that decide read nothing of the manager's own, which needs a whole api-server to be made.
    manager = SimpleNamespace(is_authorized_dag=SimpleAuthManager.is_authorized_dag.__get__(SimpleAuthManager))
    monkeypatch.setattr(app, "get_auth_manager", lambda: manager)
    return threads


@pytest.mark.parametrize(
    ("role", "teams", "dag_id", "may"),
    [
        ("viewer", ["lhcb"], "dag_of_lhcb", True),
        ("viewer", ["atlas"], "dag_of_lhcb", False),
        ("viewer", [], "dag_of_lhcb", False),
        ("viewer", [], "dag_of_nobody", True),
        ("admin", [], "dag_of_lhcb", True),
        (None, ["lhcb"], "dag_of_lhcb", False),
    ],
)
async def test_a_person_of_another_team_reads_no_logs(
    monkeypatch: pytest.MonkeyPatch,
    asked_in: list[threading.Thread],
    role: str | None,
    teams: list[str],
    dag_id: str,
    may: bool,
) -> None:
    async def user(_token: str | None) -> SimpleAuthManagerUser:
        return SimpleAuthManagerUser(username="carol", role=role, teams=teams)

    monkeypatch.setattr(security, "resolve_user_from_token", user)
    assert await AirflowPeople().may_read_logs(SCOPE, dag_id) is may
    assert asked_in
    assert threading.current_thread() not in asked_in


async def test_nobody_signed_in_reads_nothing_and_costs_no_lookup(asked_in: list[threading.Thread]) -> None:
    assert await AirflowPeople().may_read_logs(SCOPE, "dag_of_nobody") is False
    assert asked_in == []
