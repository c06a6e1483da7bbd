"""Whether this process answers, whether it can serve, and what it counts of itself."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse

from airpanda.core.errors import ServiceError
from airpanda.dispatcher.auth import TheServices, client_caller, demand_all_owners
from airpanda.dispatcher.metrics import MEDIA_TYPE

READY_WITHIN_S = 2.0
router = APIRouter()


@router.get("/v1/health")
async def health() -> dict[str, str]:
    """That this process answers, and nothing about it."""
    return {"status": "ok"}


@router.get("/v1/ready")
async def ready(request: Request, services: TheServices) -> dict[str, str]:
    """Whether requests should come here: the database answers, and the process is not about to end."""
    if getattr(request.app.state, "draining", False):
        raise ServiceError("this process is about to end: ask another one", retry_after_s=5)
    try:
        async with asyncio.timeout(READY_WITHIN_S), services.database.connection() as connection:
            await connection.fetchval("SELECT 1 FROM panda_counter LIMIT 1")
    except TimeoutError:
        raise ServiceError("the job store's database is slow to answer", retry_after_s=5) from None
    return {"status": "ready"}


@router.get(
    "/v1/metrics",
    dependencies=[Depends(client_caller), Depends(demand_all_owners)],
    response_class=PlainTextResponse,
)
async def metrics(services: TheServices) -> PlainTextResponse:
    """Prometheus' exposition format, for clients that act for all owners."""
    return PlainTextResponse(services.metrics.text(), media_type=MEDIA_TYPE)
