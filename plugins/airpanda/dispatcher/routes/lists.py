"""Jobs and panda tasks in lists, page by page, for operators and people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from airpanda.dispatcher.auth import TheClient, TheServices, client_caller
from airpanda.dispatcher.routes import MAX_ID, Id, JobIds
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import JobPage, JobStatus, JobStatusView, Name, TaskNumbers, TaskPage, TaskProgress, TaskView

router = APIRouter(prefix="/v1", dependencies=[Depends(client_caller)])
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int, Query(ge=1, le=MAX_ID, description="the `before` of the page that came last")]
Owner = Annotated[Name | None, Query()]
Queue = Annotated[Name | None, Query()]
Statuses = Annotated[list[JobStatus] | None, Query(max_length=len(JobStatus))]


@router.get("/job/get_status")
async def get_status(job_ids: JobIds, client: TheClient, services: TheServices) -> list[JobStatusView]:
    """Where jobs are; those that do not exist for the caller are left out."""
    return await services.reader.statuses(job_ids, owners=client.owners)


@router.get("/jobs")
async def jobs(
    client: TheClient,
    services: TheServices,
    owner: Owner = None,
    queue: Queue = None,
    status: Statuses = None,
    before: Before = MAX_ID,
    limit: Limit = 100,
) -> JobPage:
    """Jobs, the newest first."""
    owners = _owners(client, owner)
    return await services.reader.job_page(owners=owners, statuses=status, queue=queue, before=before, limit=limit)


@router.get("/tasks")
async def tasks(
    client: TheClient,
    services: TheServices,
    owner: Owner = None,
    queue: Queue = None,
    mine: Annotated[bool, Query(description="only what this client submitted last, and no person re-opened")] = False,
    open: Annotated[bool, Query(description="only those with jobs that are not final")] = False,
    before: Before = MAX_ID,
    limit: Limit = 100,
) -> TaskPage:
    """Panda tasks, the newest first."""
    return await services.reader.task_page(
        owners=_owners(client, owner),
        queue=queue,
        before=before,
        limit=limit,
        submitted_by=f"client:{client.name}" if mine else None,
        only_open=open,
    )


@router.post("/tasks/progress")
@demands(Verb.READ)
async def progress_of(wanted: TaskNumbers, client: TheClient, services: TheServices) -> list[TaskProgress]:
    """Jobs by state of several panda tasks; those that do not exist for the caller are left out."""
    return await services.reader.progress_of(wanted.task_ids, owners=client.owners)


@router.get("/task/{task_id}")
async def task(task_id: Id, client: TheClient, services: TheServices) -> TaskView:
    """A panda task with its jobs by state."""
    return await services.reader.task(task_id, owners=client.owners)


def _owners(client: ClientIdentity, wanted: str | None) -> frozenset[str] | None:
    """What the caller asks for, within what it may see."""
    if wanted is None:
        return client.owners
    return frozenset({wanted}) if client.owners is None or wanted in client.owners else frozenset()
