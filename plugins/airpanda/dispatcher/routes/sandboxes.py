"""Input sandboxes, by clients that act for their owner; pilots get them as inputs of a leased job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import FileResponse

from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_owner
from airpanda.dispatcher.routes.pilots import send_file
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import SandboxView

router = APIRouter(prefix="/v1/file/sandbox", dependencies=[Depends(client_caller)])
OwnerInPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,249}$")]
Sha256InPath = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.put("/{owner}/{sha256}", status_code=201, responses={200: {"description": "it was there"}})
@demands(Verb.FILES)
async def put_sandbox(
    owner: OwnerInPath,
    sha256: Sha256InPath,
    request: Request,
    response: Response,
    client: TheClient,
    services: TheServices,
) -> SandboxView:
    """Store the body, whose SHA-256 is named, for the owner's jobs; a repeat keeps it for longer."""
    demand_owner(client, owner)
    kept = await services.sandboxes.put(owner, sha256, request.stream(), actor=f"client:{client.name}")
    response.status_code = 201 if kept.created else 200
    return kept.view


@router.post("/{owner}/{sha256}/touch")
@demands(Verb.FILES)
async def touch_sandbox(
    owner: OwnerInPath, sha256: Sha256InPath, client: TheClient, services: TheServices
) -> SandboxView:
    """Whether it is there; if so, it is kept as if it had just been uploaded."""
    demand_owner(client, owner)
    return await services.sandboxes.touch(owner, sha256)


@router.get("/{owner}/{sha256}")
async def get_sandbox(
    owner: OwnerInPath, sha256: Sha256InPath, client: TheClient, services: TheServices
) -> FileResponse:
    """Its content."""
    demand_owner(client, owner)
    return send_file(await services.sandboxes.stored(owner, sha256), f"sandbox-{sha256[:16]}")
