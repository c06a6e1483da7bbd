"""The dispatcher as an ASGI application: the same one behind Airflow's api-server and in the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI

from airpanda.core.errors import AirpandaError
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.dispatcher import openapi, problems
from airpanda.dispatcher.configured import Configured
from airpanda.dispatcher.directory import QueueDirectory
from airpanda.dispatcher.limits import Limits
from airpanda.dispatcher.metrics import Measured
from airpanda.dispatcher.routes import (
    bans,
    batches,
    credentials,
    description,
    factory,
    health,
    jobs,
    lists,
    owners,
    retry_rules,
    sandboxes,
    shares,
)
from airpanda.dispatcher.routes import pilots as pilot_routes
from airpanda.dispatcher.routes import queues as queue_routes
from airpanda.dispatcher.services import Queues, Services, make_services
from airpanda.dispatcher.watchdog import keep_counts_short, keep_short, watch


def create_app(
    settings: Settings,
    *,
    dsn: Secret[str],
    fernet_keys: Sequence[Secret[str]],
    queues: Queues,
    pilots: bool,
    watchdog: bool = True,
) -> FastAPI:
    """The application. Its lifespan opens the database pool and runs the watchdog.

    Args:
        dsn: PostgreSQL as asyncpg wants it.
        fernet_keys: Airflow's, the newest first.
        queues: gives the queues as they are now.
        pilots: serve pilots. Only where mutual TLS proves who they are: in the gateway.

    Raises:
        ConfigurationError: signing key or Fernet keys cannot be used.
    """
    services = make_services(settings, dsn=dsn, fernet_keys=fernet_keys, queues=queues)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await services.database.open()
        loops = _loops(services) if watchdog else ()
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                with contextlib.suppress(AirpandaError):  # the database may be away: only counts are lost
                    await services.jobs.settle()
            finally:
                await services.database.close()

    # No documentation routes: they would be open to everybody.
    app = FastAPI(title="airpanda dispatcher", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.services = services
    if pilots:  # the first ones are found first
        app.include_router(pilot_routes.lean)
    app.include_router(jobs.lean)
    rooms = (health, description, owners, credentials, bans, retry_rules, shares, lists, jobs, sandboxes)
    for room in (*rooms, batches, factory):
        app.include_router(room.router)
    app.include_router(batches.pages)
    app.include_router(queue_routes.router)
    app.include_router(pilot_routes.router if pilots else pilot_routes.elsewhere)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(Limits, issuer=services.issuer, settings=settings)
    app.add_middleware(Measured, metrics=services.metrics)
    return app


def configured_app(configured: Configured, *, pilots: bool) -> FastAPI:
    """The application of this configuration. Raises as ``create_app``."""
    settings = configured.settings
    queues = QueueDirectory(settings.include_dir / "queues").current
    return create_app(settings, dsn=configured.dsn, fernet_keys=configured.fernet_keys, queues=queues, pilots=pilots)


def _loops(services: Services) -> tuple[Coroutine[Any, Any, None], ...]:
    longest, metrics = services.settings.state_timeouts, services.metrics
    lost, suspected = metrics.jobs_lost.inc, metrics.jobs_suspected.set
    return (
        watch(services.upkeep, services.credentials, longest=longest, lost=lost, suspected=suspected),
        keep_counts_short(services.upkeep),
        keep_short(services.retention),
    )
