"""Jobs, panda tasks and their files, for operators and people."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, PlainTextResponse

from airpanda.core.clock import utcnow
from airpanda.core.text import clean, without_keys
from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_owner
from airpanda.dispatcher.choice import choose_queue, whole_slot
from airpanda.dispatcher.lean import LargeLeanRoute
from airpanda.dispatcher.routes import Id, LfnInPath
from airpanda.dispatcher.routes.pilots import send_file
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.jobs.files import content_gone
from airpanda.messages import (
    PAYLOAD_LOG,
    PILOT_LOG,
    DebugAsked,
    DebugRequest,
    JobKill,
    JobStatus,
    JobStatusView,
    JobSubmission,
    JobView,
    KillRequest,
    Sample,
    SubmissionReply,
    TaskProgress,
    WaitingView,
)

MAX_LOG_BYTES = 1024 * 1024
KEY_BYTES = 16 * 1024
router = APIRouter(prefix="/v1", dependencies=[Depends(client_caller)])
lean = APIRouter(prefix="/v1", dependencies=[Depends(client_caller)], route_class=LargeLeanRoute)
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Statuses = Annotated[list[JobStatus] | None, Query(max_length=len(JobStatus))]


@lean.post("/job/submit")
@demands(Verb.SUBMIT)
async def submit(wanted: JobSubmission, client: TheClient, services: TheServices) -> SubmissionReply:
    """Store the jobs of one panda task; a repeat of a key changes nothing."""
    demand_owner(client, wanted.owner)
    known = await services.submissions.known(wanted, client=client.name)
    queue = await choose_queue(wanted, known, client, services)
    return await services.submissions.submit(wanted, queue=queue, client=client.name, now=utcnow())


@router.get("/job/{panda_id}")
async def job(panda_id: Id, client: TheClient, services: TheServices) -> JobView:
    """A job with all its attempts."""
    return await services.reader.job(panda_id, owners=client.owners)


@router.get("/job/{panda_id}/why")
async def why(panda_id: Id, client: TheClient, services: TheServices) -> WaitingView:
    """Why a job waits, in one sentence, as the matching sees it."""
    job = await services.waiting.job(panda_id, owners=client.owners)
    queue = services.queues().get(job["queue"])
    slot = whole_slot(queue) if queue is not None and queue.is_online else None
    token_only = queue is not None and queue.token_only
    return await services.waiting.why(panda_id, slot, owners=client.owners, token_only=token_only)


@router.post("/job/{panda_id}/kill")
@demands(Verb.KILL)
async def kill_job(panda_id: Id, wanted: JobKill, client: TheClient, services: TheServices) -> JobStatusView:
    """Cancel one job, or have its pilot stop it; a final one stays as it is."""
    actor = f"client:{client.name}"
    return await services.single.kill(panda_id, wanted.reason, owners=client.owners, actor=actor)


@router.post("/job/{panda_id}/retry")
@demands(Verb.RETRY)
async def retry_job(panda_id: Id, client: TheClient, services: TheServices) -> JobStatusView:
    """A new attempt for a job that failed, was cancelled, closed, or told to stop."""
    return await services.single.retry(panda_id, owners=client.owners, actor=f"client:{client.name}")


@router.get("/job/{panda_id}/log", response_class=PlainTextResponse)
async def log(panda_id: Id, client: TheClient, services: TheServices) -> PlainTextResponse:
    """The payload's log of the latest attempt, at most its last megabyte; while it runs, its last lines.

    Without control characters and private keys: it goes into Airflow's logs.
    """
    last = await services.reader.last_log(panda_id, owners=client.owners)
    if last.blob is None:
        return _text(clean(without_keys(last.tail)))
    try:
        return _text(await asyncio.to_thread(_tail, services.files.blob(last.blob)))
    except FileNotFoundError:
        raise content_gone(panda_id, PAYLOAD_LOG) from None


@router.get("/job/{panda_id}/pilot_log")
async def pilot_log(panda_id: Id, client: TheClient, services: TheServices) -> FileResponse:
    """The pilot's own log of the latest attempt: a compressed tar."""
    return send_file(await services.files.pilot_log(panda_id, owners=client.owners), PILOT_LOG)


@router.get("/job/{panda_id}/samples")
async def samples(panda_id: Id, client: TheClient, services: TheServices) -> list[Sample]:
    """What was measured of the latest attempt's payload, in the order of time."""
    return await services.observer.samples(panda_id, owners=client.owners)


@router.post("/job/{panda_id}/debug", status_code=202)
@demands(Verb.DEBUG)
async def ask(panda_id: Id, wanted: DebugRequest, client: TheClient, services: TheServices) -> DebugAsked:
    """Have the pilot show something of the running attempt."""
    return await services.observer.ask(panda_id, wanted.what, owners=client.owners, actor=f"client:{client.name}")


@router.get("/job/{panda_id}/debug", response_class=PlainTextResponse)
async def answer(panda_id: Id, client: TheClient, services: TheServices) -> PlainTextResponse:
    """The answer to the last question, without control characters and private keys."""
    return _text(clean(without_keys(await services.observer.answer(panda_id, owners=client.owners))))


@router.get("/task/{task_id}/progress")
async def progress(task_id: Id, client: TheClient, services: TheServices) -> TaskProgress:
    """Jobs by state; one cheap query whatever their number."""
    return await services.reader.progress(task_id, owners=client.owners)


@router.get("/task/{task_id}/jobs")
async def jobs(
    task_id: Id,
    client: TheClient,
    services: TheServices,
    status: Statuses = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> list[JobView]:
    """Jobs of a panda task in the order of submission, all or those of these states."""
    return await services.reader.jobs(task_id, owners=client.owners, limit=limit, offset=offset, statuses=status)


@router.post("/task/{task_id}/kill")
@demands(Verb.KILL)
async def kill(task_id: Id, request: KillRequest, client: TheClient, services: TheServices) -> TaskProgress:
    """Cancel what is not final; with ``ti`` only while that try owns the jobs."""
    await services.reader.demand_task(task_id, owners=client.owners)
    return await services.jobs.kill(task_id, request, actor=f"client:{client.name}")


@router.post("/task/{task_id}/retry")
@demands(Verb.RETRY)
async def retry(task_id: Id, client: TheClient, services: TheServices) -> TaskProgress:
    """A new attempt for every failed, cancelled or closed job."""
    await services.reader.demand_task(task_id, owners=client.owners)
    return await services.jobs.retry(task_id, actor=f"client:{client.name}")


@router.get("/file/{panda_id}/{lfn}")
async def get_file(panda_id: Id, lfn: LfnInPath, client: TheClient, services: TheServices) -> FileResponse:
    """An output of the latest finished attempt."""
    return send_file(await services.files.output(panda_id, lfn, owners=client.owners), lfn)


def _text(text: str) -> PlainTextResponse:
    return PlainTextResponse(text, headers={"X-Content-Type-Options": "nosniff"})


def _tail(path: Path) -> str:
    """The end of a log as text that can be shown. What lies before it is read as well: a key may begin there."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LOG_BYTES - KEY_BYTES))
        text = file.read(MAX_LOG_BYTES + KEY_BYTES).decode(errors="replace")
    return clean(without_keys(text))[-MAX_LOG_BYTES:]
