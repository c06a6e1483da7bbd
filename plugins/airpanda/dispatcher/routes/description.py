"""The API's own description, for clients; it is nobody else's to read."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from airpanda.dispatcher.auth import client_caller

router = APIRouter(prefix="/v1", dependencies=[Depends(client_caller)])


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """The OpenAPI document of what this process serves."""
    document: dict[str, Any] = request.app.openapi()
    return document
