"""The one open route."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()


@router.get("/v1/health")
async def health() -> dict[str, str]:
    """That this process answers, and nothing about it."""
    return {"status": "ok"}
