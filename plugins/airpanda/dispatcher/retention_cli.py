"""``python -m airpanda retention``: put away now what the dispatchers would put away by and by."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import fields

from airpanda.core.commands import run_command
from airpanda.db.pool import Database
from airpanda.dispatcher.services import keep_of
from airpanda.jobs.retention import Done, Retention


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    parser = argparse.ArgumentParser(
        prog="airpanda retention",
        description="Put what has ended into the archive, and remove what has been there for long, as [airpanda]"
        " archive_after, remove_after, audit_after and sandbox_after say. May be stopped at any time; the next run goes"
        " on.",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what is due, and change nothing")
    parser.set_defaults(run=_run)
    return run_command(parser, argv)


def _run(arguments: argparse.Namespace) -> int:
    print(asyncio.run(_put_away(dry=arguments.dry_run)))
    return 0


async def _put_away(*, dry: bool) -> str:
    # Airflow takes a second to import: not for --help.
    from airpanda.dispatcher.configured import read_dsn, read_settings

    settings = read_settings()
    database = Database(read_dsn(), max_connections=1)
    await database.open()
    try:
        retention = Retention(database, settings.file_store, keep_of(settings))
        return f"would go: {await retention.would()}" if dry else str(await _all(retention))
    finally:
        await database.close()


async def _all(retention: Retention) -> Done:
    whole = Done()
    while step := await retention.step():
        for each in fields(Done):
            setattr(whole, each.name, getattr(whole, each.name) + getattr(step, each.name))
    return whole
