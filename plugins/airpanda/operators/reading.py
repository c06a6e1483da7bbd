"""What became of a panda task's jobs, as the dispatcher has it; into XCom, and into the log of an Airflow task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import PILOT_LOG, JobStatus, JobView, TaskProgress
from airpanda.operators import outcome

MAX_OUTPUTS_IN_XCOM = 20_000
SHOWN = 20
_PAGE = 1000
_LOG_LINES = 2000
_UNFINISHED = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.CLOSED)


def unfinished(hook: PandaHook, progress: TaskProgress) -> list[JobView]:
    """The first thousand jobs that have ended otherwise than well."""
    if not any(progress.counts.get(status) for status in _UNFINISHED):
        return []
    return hook.send(calls.jobs(progress.task_id, limit=_PAGE, statuses=_UNFINISHED))


def jobs_of(hook: PandaHook, progress: TaskProgress) -> list[JobView]:
    """All of them, or of many the first few."""
    n = progress.total if progress.total <= MAX_OUTPUTS_IN_XCOM else SHOWN
    return list(_pages(hook, progress.task_id, n))


def result_of(progress: TaskProgress, jobs: Sequence[JobView], failed: Sequence[JobView]) -> dict[str, Any]:
    """What goes into XCom."""
    outputs = [
        {"panda_id": j.panda_id, **f.model_dump(mode="json", include={"lfn", "source", "size", "sha256"})}
        for j in jobs
        for f in j.outputs
    ]
    listed = progress.total <= MAX_OUTPUTS_IN_XCOM and len(outputs) <= MAX_OUTPUTS_IN_XCOM
    return {
        "task_id": progress.task_id,
        "first_panda_id": jobs[0].panda_id,
        "n_jobs": progress.total,
        "finished": progress.counts.get(JobStatus.FINISHED, 0),
        "unfinished": [job.panda_id for job in failed],
        "outputs": outputs if listed else [],
    }


def log_of(hook: PandaHook, job: JobView) -> str:
    """A payload's log, or why there is none."""
    try:
        return hook.get_text(f"/v1/job/{job.panda_id}/log")
    except AirpandaError as error:
        return f"(the payload's log is not there: {error})"


def show(log: Any, jobs: Sequence[JobView], chosen: Sequence[JobView], logs: Mapping[int, str]) -> None:
    """A line for each of the first jobs, and of the chosen ones what their payloads have printed."""
    for job in jobs[:SHOWN]:
        log.info("%s", outcome.summary(job))
    for job in chosen:
        log.info("---- log of PandaID %d (%s)", job.panda_id, job.job_name)
        for line in logs[job.panda_id].splitlines()[-_LOG_LINES:]:
            log.info("%s", line)
        if any(file.lfn == PILOT_LOG for file in job.logs):
            log.info("---- what the pilot saw and did: /panda/v1/job/%d/pilot_log", job.panda_id)


def _pages(hook: PandaHook, task_id: int, n: int) -> Iterator[JobView]:
    for offset in range(0, n, _PAGE):
        yield from hook.send(calls.jobs(task_id, limit=min(_PAGE, n - offset), offset=offset))
