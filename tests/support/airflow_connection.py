"""An Airflow Connection without Airflow's secrets backends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airpanda.hooks.panda import PandaHook


def connection(**values: Any) -> Any:
    """What a hook reads of a Connection to a dispatcher on loopback."""
    given = {"host": "127.0.0.1", "schema": "http", "password": "t", "port": 1, "extra_dejson": {}}
    return SimpleNamespace(**given | values)


def connect(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Let every PandaHook find this Connection, from operators and from triggers."""
    there = connection(**values)

    async def later(_cls: type[PandaHook], _conn_id: str) -> Any:
        return there

    monkeypatch.setattr(PandaHook, "get_connection", classmethod(lambda _cls, _id: there))
    monkeypatch.setattr(PandaHook, "aget_connection", classmethod(later))
