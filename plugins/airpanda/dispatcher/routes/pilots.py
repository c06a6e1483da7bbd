"""What pilots ask and report."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import FileResponse

from airpanda.core.errors import AirpandaError, NotFoundError, RequestError
from airpanda.core.secret import Secret
from airpanda.dispatcher.auth import Pilot, ThePilot, TheServices, demand_proven, pilot_caller
from airpanda.dispatcher.lean import LeanRoute
from airpanda.dispatcher.problems import problem_of
from airpanda.dispatcher.routes import AttemptNr, Id, JobIds, LfnInPath
from airpanda.dispatcher.services import QueueLike, Services
from airpanda.jobs.content import Stored
from airpanda.jobs.reports import Lease
from airpanda.messages import (
    AcquiredJob,
    AcquireReply,
    BulkReport,
    BulkResult,
    FileView,
    JobReport,
    JobStatusView,
    PilotCommand,
    PilotOffer,
    ReportReply,
    WorkerReport,
)

IDLE_WAIT_S = 5.0
BAD_NODE_WAIT_S = 30.0
router = APIRouter(prefix="/v1/pilot", dependencies=[Depends(pilot_caller)])
lean = APIRouter(prefix="/v1/pilot", dependencies=[Depends(pilot_caller)], route_class=LeanRoute)
elsewhere = APIRouter(prefix="/v1/pilot")
LeaseToken = Annotated[str, Header(alias="X-Airpanda-Lease", min_length=1, max_length=200)]
Sha256 = Annotated[str, Header(alias="X-Airpanda-Sha256", pattern=r"^[0-9a-f]{64}$")]


@lean.post("/acquire_jobs")
async def acquire_jobs(offer: PilotOffer, pilot: ThePilot, services: TheServices) -> AcquireReply:
    """Lease matching jobs to this pilot, each with what it needs to retrieve the owner's proxy."""
    if offer.site_name != pilot.queue:
        raise RequestError(f"this pilot belongs to queue {pilot.queue}, not {offer.site_name}")
    queue = services.queues().get(pilot.queue)
    jobs = None
    if queue is not None and queue.is_online and (pilot.dn is not None or queue.token_only):
        jobs = await _claimed(offer, pilot, queue, services)
    if not jobs:  # then there is time to look closer at who asks
        service = await services.pilots.seen(pilot.pilot_id, pilot.queue, node=offer.node, dn=pilot.dn or "")
        if service == "end" or queue is None or not queue.is_online:
            return AcquireReply(jobs=[], wait_s=0, command="drain")
        if service == "wait":  # it holds its slot until its idle limit: on a bad node nothing better can be had from it
            return AcquireReply(jobs=[], wait_s=BAD_NODE_WAIT_S)
        demand_proven(pilot, token_only=queue.token_only)
        if jobs is None:
            jobs = await _claimed(offer, pilot, queue, services)
    if jobs:
        services.metrics.jobs_given.labels(pilot.queue).inc(len(jobs))
    return AcquireReply(jobs=jobs or [], wait_s=0 if jobs else IDLE_WAIT_S)


async def _claimed(offer: PilotOffer, pilot: Pilot, queue: QueueLike, services: Services) -> list[AcquiredJob] | None:
    return await services.jobs.acquire(
        offer, pilot_id=pilot.pilot_id, queue=pilot.queue, pilot_dn=pilot.dn, token_only=queue.token_only
    )


@lean.post("/update_job")
async def update_job(report: JobReport, pilot: ThePilot, services: TheServices) -> ReportReply:
    """A change of status, or a heartbeat; renews the lease and answers with a command."""
    return await services.jobs.update(report, pilot_id=pilot.pilot_id)


@lean.post("/update_jobs_bulk")
async def update_jobs_bulk(wanted: BulkReport, pilot: ThePilot, services: TheServices) -> list[BulkResult]:
    """Reports of several attempts, each answered for itself, in their order."""
    outcomes = await services.jobs.update_many(wanted.job_list, pilot_id=pilot.pilot_id)
    return [_result(report, outcome) for report, outcome in zip(wanted.job_list, outcomes, strict=True)]


@router.get("/get_job_status")
async def get_job_status(job_ids: JobIds, pilot: ThePilot, services: TheServices) -> list[JobStatusView]:
    """Where jobs are that this pilot has or had; others are left out."""
    return await services.reader.statuses_for_pilot(job_ids, pilot_id=pilot.pilot_id)


@router.post("/update_worker_status")
async def update_worker_status(report: WorkerReport, pilot: ThePilot, services: TheServices) -> PilotCommand:
    """The pilot's own life: started with its probe, benched, finished."""
    allowed = await services.pilots.report(pilot.pilot_id, pilot.queue, report, dn=pilot.dn or "")
    return PilotCommand(command="" if allowed else "drain")


@router.get("/input/{panda_id}/{attempt_nr}/{lfn}")
async def get_input(
    panda_id: Id, attempt_nr: AttemptNr, lfn: LfnInPath, lease: LeaseToken, pilot: ThePilot, services: TheServices
) -> FileResponse:
    """A declared input of a leased job."""
    held = _lease(panda_id, attempt_nr, pilot, lease)
    return send_file(await services.files.input_for(held, lfn), lfn)


@router.put("/file/{panda_id}/{attempt_nr}/{lfn}", status_code=201)
async def put_file(
    panda_id: Id,
    attempt_nr: AttemptNr,
    lfn: LfnInPath,
    lease: LeaseToken,
    sha256: Sha256,
    request: Request,
    pilot: ThePilot,
    services: TheServices,
) -> FileView:
    """Store a declared output, ``payload.log`` or ``pilot-log.tgz`` of a leased job."""
    held = _lease(panda_id, attempt_nr, pilot, lease)
    return await services.files.put(held, lfn, request.stream(), sha256=sha256)


@elsewhere.api_route("/{verb:path}", methods=["GET", "POST", "PUT"])
async def not_here(verb: str) -> None:
    """Where no TLS of ours proves who calls."""
    raise NotFoundError("pilots are not served here: their dispatcher_url must be that of a gateway")


def _result(report: JobReport, outcome: ReportReply | AirpandaError) -> BulkResult:
    reply, problem = (None, problem_of(outcome)) if isinstance(outcome, AirpandaError) else (outcome, None)
    return BulkResult(job_id=report.job_id, attempt_nr=report.attempt_nr, reply=reply, problem=problem)


def send_file(stored: Stored, lfn: str) -> FileResponse:
    """The bytes with their checksum, never as something a browser would run."""
    headers = {"X-Airpanda-Sha256": stored.sha256, "X-Content-Type-Options": "nosniff"}
    return FileResponse(stored.path, headers=headers, media_type="application/octet-stream", filename=lfn)


def _lease(panda_id: int, attempt_nr: int, pilot: Pilot, token: str) -> Lease:
    return Lease(panda_id, attempt_nr, pilot.pilot_id, Secret(token))
