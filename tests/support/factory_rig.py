"""A gateway process with queues of a test's own, and what is on record behind it: for whoever sends pilots."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg2

from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.hooks.asking import send_once
from airpanda.hooks.calls import Call
from support.gateway import RunningGateway, start_gateway
from support.pki import Pki
from support.postgres import Database

R = TypeVar("R")


@dataclass
class FactoryRig:
    """``send`` makes a connection of its own, so that a forked process may use it."""

    gateway: RunningGateway
    database: Database
    directory: Path

    def send(self, call: Call[R]) -> R:
        with self.gateway.client() as http:
            return send_once(call, http, "of a test")

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        connection = psycopg2.connect(self.database.url())
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def time_passes(self) -> None:
        """Whoever held something was killed long ago."""
        self.sql("UPDATE panda_batch SET held_until = now()")
        self.sql("UPDATE panda_factory SET held_until = now()")

    def live(self) -> dict[int, str]:
        """Handles of the pilots that live, for all that is on record."""
        rows = self.sql("SELECT pilot_id, ce_job_id FROM panda_pilot WHERE ended_at IS NULL")
        return {row["pilot_id"]: row["ce_job_id"] for row in rows}

    def forget(self) -> None:
        self.sql("TRUNCATE panda_pilot, panda_batch, panda_factory, panda_bad_node")


@contextmanager
def factory_rig(database: Database, pki: Pki, directory: Path, *queues: PandaQueue) -> Iterator[FactoryRig]:
    """The gateway knows exactly these queues."""
    with start_gateway(database, pki, directory) as gateway:
        folder = directory / "queues"  # read when first asked for
        for path in folder.iterdir():
            path.unlink()
        for queue in queues:
            (folder / f"{queue.name}.toml").write_text(as_toml(queue))
        yield FactoryRig(gateway, database, directory)


def as_toml(queue: PandaQueue) -> str:
    """The queue's file."""
    wire = queue.to_wire()
    more: Mapping[str, Any] = wire.pop("ces", {})
    sections = {**wire, **{f'ces."{name}"': table for name, table in more.items()}}
    text = "\n".join(f"[{name}]\n{_pairs(table)}" for name, table in sections.items())
    assert parse_queue(text, "as_toml") == queue
    return text


def _pairs(table: Mapping[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in table.items())
