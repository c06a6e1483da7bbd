"""A real dispatcher with its database, over HTTP, for operators and triggers that run in the test's own process.

Use it by ``from support.served import Served, served`` with ``job_database``, ``template_database`` and ``postgres``.
Connections are looked up by Airflow itself, in the environment.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.fernet import Fernet

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from support.dispatcher import PILOT_DN, make_settings
from support.postgres import Database
from support.standin_pilots import StandInPilots

CLIENT = "airflow"


class Served(StandInPilots):
    """The dispatcher of the stand-in pilots on a port that stays the same while it goes ``down`` and comes ``up``."""

    def __init__(self, database: Database, directory: Path) -> None:
        fernet_key = Secret(Fernet.generate_key().decode())
        super().__init__(database, make_settings(directory), fernet_key, ("DEMO", "OTHER"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._serving: Any = None

    def up(self) -> None:
        """Answers when this returns."""
        options = uvicorn.Config(
            self.world.app, host="127.0.0.1", port=self.port, lifespan="off", log_level="warning", access_log=False
        )
        self._server = uvicorn.Server(options)
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(), self._loop)
        self.do(self._started())

    def down(self) -> None:
        """Nobody listens any more when this returns; a repeat changes nothing."""
        if self._server is not None:
            self._server.should_exit = True
            self._serving.result(20)
            self._server = None

    async def _started(self) -> None:
        while self._server is not None and not self._server.started:
            assert not self._serving.done(), "the dispatcher did not start"
            await asyncio.sleep(0.01)

    def token(self, **changes: Any) -> str:
        """A client token, as an operator's Connection has it."""
        given = {"name": CLIENT, "owners": ("*",), "queues": ("*",), "lifetime": timedelta(hours=1), "now": utcnow()}
        return self.world.services.issuer.client_token(**given | changes).reveal()

    def connection(self, **changes: Any) -> str:
        """The Connection ``panda_default`` as JSON."""
        there = {"conn_type": "http", "host": "127.0.0.1", "port": self.port, "schema": "http"}
        return json.dumps(there | {"password": self.token()} | changes)

    def credential(self, owner: str = "alice", **changes: Any) -> dict[str, Any]:
        """What a staging task returned: registered by this client, with its consent."""
        headers = {"Authorization": f"Bearer {self.token()}"}
        wanted = self.world.registration(owner) | {"scope": "user"} | changes
        view = self.do(self.world.good("POST", "/v1/creds/register", wanted, headers=headers))
        return {"credential_id": view["credential_id"], "owner": owner}

    def sql(self, statement: str, *values: Any) -> list[Any]:
        return self.do(self.world.sql(statement, *values))

    def states(self) -> dict[int, str]:
        """PandaID → status of every job."""
        return {row["panda_id"]: row["status"] for row in self.sql("SELECT panda_id, status FROM panda_job")}

    def finish_all(self, **options: Any) -> list[dict[str, Any]]:
        """Pilots end well what waits."""
        jobs = self.claim(PILOT_DN)
        for job in jobs:
            self.finish(PILOT_DN, job, **options)
        return jobs


@pytest.fixture
def served(job_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Up, and named by the Connection ``panda_default``."""
    with Served(job_database, tmp_path) as dispatcher:
        dispatcher.up()
        monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", dispatcher.connection())
        yield dispatcher
        dispatcher.down()
