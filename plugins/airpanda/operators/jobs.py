"""Run payloads on the grid as their owner: one job, or a panda task of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from pydantic import ValidationError

from airpanda.core.errors import AirpandaError, NotFoundError
from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.panda import PandaHook
from airpanda.links.job import PandaJobLink
from airpanda.messages import PILOT_LOG, Blame, JobSpec, JobStatus, JobSubmission, JobView, KillRequest, TaskInstanceKey
from airpanda.triggers.panda_task import PandaTaskTrigger, describe

_PAGE = 1000
_LOG_LINES = 2000


class PandaTaskOperator(BaseOperator):
    """Runs a panda task of 1 to 100 000 jobs as their owner and waits for it without holding a worker slot.

    Submission is idempotent under ``<dag_id>/<run_id>/<task_id>/<map_index>``: clearing the task in the UI gives
    new attempts only to what is not finished. XCom holds ``{"task_id", "n_jobs", "finished", "outputs"}`` where
    ``outputs`` lists ``{"panda_id", "lfn", "source", "size", "sha256"}``; a ``source`` can be another job's input.

    Args:
        jobs: one mapping per job with the fields of
            :class:`~airpanda.messages.JobSpec` (templated).
        payload_owner: short name of the payload owner (templated).
        credential: what :class:`~airpanda.operators.proxies.MyProxyStageOperator` returned (templated).
        panda_queue: the PanDA queue (templated).
        poll: time between two questions while waiting.
    """

    template_fields: Sequence[str] = ("jobs", "payload_owner", "credential", "panda_queue")
    operator_extra_links = (PandaJobLink(),)
    ui_color = "#cfe4f7"

    def __init__(
        self,
        *,
        jobs: Any,
        payload_owner: str,
        credential: Any,
        panda_queue: str,
        poll: timedelta = timedelta(seconds=2),
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.jobs = jobs
        self.payload_owner = payload_owner
        self.credential = credential
        self.panda_queue = panda_queue
        self.poll = poll
        self.panda_conn_id = panda_conn_id
        self._panda_task_id: int | None = None
        self._ti: TaskInstanceKey | None = None

    def execute(self, context: Any) -> None:
        """Submit and defer.

        Raises:
            AirflowFailException: the request can never succeed as it is; says what to change.
            ServiceError: the dispatcher cannot be reached; a retry of the Airflow task may help.
        """
        ti = task_instance_key(context)
        hook = PandaHook(self.panda_conn_id)
        try:
            submission = JobSubmission(
                task_key=f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}",
                task_name=f"{ti.dag_id}.{ti.task_id}"[:250],
                owner=self.payload_owner,
                credential_id=int(self.credential["credential_id"]),
                queue=self.panda_queue,
                ti=ti,
                jobs=self.specs(),
            )
        except (ValidationError, KeyError, TypeError) as error:
            raise AirflowFailException(_invalid(self.task_id, error)) from None
        reply = hook.send(calls.submit(submission))
        self.log.info(
            "panda_task=%d owner=%s queue=%s jobs=%d PandaIDs from %d (%s)",
            reply.task_id,
            self.payload_owner,
            self.panda_queue,
            reply.n_jobs,
            reply.first_panda_id,
            "submitted" if reply.created else f"known, {reply.resumed} resumed",
        )
        self._panda_task_id, self._ti = reply.task_id, ti
        context["ti"].xcom_push(key="panda_task_id", value=reply.task_id)
        self.defer(
            trigger=PandaTaskTrigger(
                panda_task_id=reply.task_id,
                ti=ti.model_dump(mode="json"),
                poll_s=self.poll.total_seconds(),
                panda_conn_id=self.panda_conn_id,
            ),
            method_name="execute_complete",
        )

    def specs(self) -> list[JobSpec]:
        """The jobs as validated messages. Raises ValidationError, TypeError."""
        return [JobSpec.model_validate(job) for job in self.jobs]

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Resume: show the payloads' logs and return the outputs, or fail with the reason first."""
        hook = PandaHook(self.panda_conn_id)
        task_id = int(event["panda_task_id"])
        if not event["done"]:
            raise AirflowException(f"panda task {task_id} could not be followed: {event['note']}")
        jobs = _all_jobs(hook, task_id)
        failed = [job for job in jobs if job.status is not JobStatus.FINISHED]
        self._show(hook, jobs, failed)
        if failed:
            raise AirflowException(explain(failed, len(jobs)))
        return self.result(task_id, jobs)

    def result(self, task_id: int, jobs: Sequence[JobView]) -> dict[str, Any]:
        """What goes into XCom."""
        outputs = [
            {"panda_id": j.panda_id, **f.model_dump(mode="json", include={"lfn", "source", "size", "sha256"})}
            for j in jobs
            for f in j.outputs
        ]
        return {"task_id": task_id, "n_jobs": len(jobs), "finished": len(jobs), "outputs": outputs}

    def on_kill(self) -> None:
        """The running (not deferred) task was killed: cancel what was just submitted."""
        if self._panda_task_id is not None:
            progress = PandaHook(self.panda_conn_id).send(
                calls.kill(
                    self._panda_task_id, KillRequest(reason="the submitting Airflow task was killed", ti=self._ti)
                )
            )
            self.log.info("panda_task=%d after the kill: %s", self._panda_task_id, describe(progress))

    def _show(self, hook: PandaHook, jobs: Sequence[JobView], failed: Sequence[JobView]) -> None:
        for job in jobs:
            self.log.info("%s", summary(job))
        for job in (failed or jobs)[:1]:
            self.log.info("---- log of PandaID %d (%s)", job.panda_id, job.job_name)
            try:
                text = hook.get_text(f"/v1/job/{job.panda_id}/log")
            except (NotFoundError, AirpandaError) as error:
                self.log.warning("the payload's log is not there: %s", error)
                continue
            for line in text.splitlines()[-_LOG_LINES:]:
                self.log.info("%s", line)
            if any(file.lfn == PILOT_LOG for file in job.logs):
                self.log.info("---- what the pilot saw and did: /panda/v1/job/%d/pilot_log", job.panda_id)


class PandaJobOperator(PandaTaskOperator):
    """Runs one gLExec-wrapped payload as its owner; the task log shows the payload's log.

    Args:
        argv: the program and its arguments; never a shell line (templated).
        scripts: file name → text put into the sandbox before the start (templated).
        inputs: ``{"lfn", "source"}`` of each input (templated).
        outputs: names, or ``{"lfn", "access"}``, of the files the payload leaves (templated).
        env: the payload's environment (templated).
        needs: cores, memory_mib, disk_mib, walltime_s, priority, max_attempt as in
            :class:`~airpanda.messages.JobSpec`, where the defaults do not fit.
    """

    template_fields: Sequence[str] = (
        "argv", "scripts", "inputs", "outputs", "env", "payload_owner", "credential", "panda_queue",
    )  # fmt: skip

    def __init__(
        self,
        *,
        argv: Any,
        scripts: Any = None,
        inputs: Any = None,
        outputs: Any = None,
        env: Any = None,
        needs: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(jobs=[], **kwargs)
        self.argv = argv
        self.scripts = scripts or {}
        self.inputs = inputs or []
        self.outputs = outputs or []
        self.env = env or {}
        self.needs = dict(needs or {})

    def specs(self) -> list[JobSpec]:
        """The one job."""
        outputs = [{"lfn": item} if isinstance(item, str) else item for item in self.outputs]
        job = {
            "job_name": self.task_id.replace("/", "-")[:250],
            "argv": self.argv,
            "scripts": self.scripts,
            "inputs": self.inputs,
            "outputs": outputs,
            "env": self.env,
        }
        return [JobSpec.model_validate(job | self.needs)]


def summary(job: JobView) -> str:
    """One line per job: who ran what, as which account, where, how it ended."""
    last = job.attempts[0] if job.attempts else None
    if last is None:
        return f"PandaID={job.panda_id} {job.job_name} owner={job.owner_dn!r} {job.status.value}, never started"
    switched = {True: "switched", False: "identity NOT switched", None: "not started"}[last.identity_switched]
    return (
        f"PandaID={job.panda_id} {job.job_name} owner={job.owner_dn!r} {job.status.value} attempt={last.attempt_nr}"
        f" pilot={last.pilot_id} node={last.node} account={last.account_name}({last.account_uid}, {switched})"
        f" exit={last.exit_code} wall_s={last.wall_s} cpu_s={last.cpu_s}"
    )


_ACT = {
    Blame.USER: "The payload or its description is at fault: its owner must act; see its log below.",
    Blame.SITE: "The site is at fault: its administrator must act. Clear this task to try again.",
    Blame.SYSTEM: "The system is at fault, not the payload. Clear this task to try again.",
}


def explain(failed: Sequence[JobView], total: int) -> str:
    """The paragraph a person reads first: what failed, whose fault, what to do."""
    job = failed[0]
    errors = job.attempts[0].errors if job.attempts else []
    what = (
        f"{len(failed)} of {total} jobs did not finish. PandaID {job.panda_id} ({job.job_name}) is {job.status.value}"
    )
    if not errors:
        return f"{what}. Clear this task to run what is not finished again."
    first = errors[0]
    return f"{what}: {first.source.value} error {first.code}, {first.diag}. {_ACT[first.blame]}"


def _all_jobs(hook: PandaHook, task_id: int) -> list[JobView]:
    jobs: list[JobView] = []
    while True:
        page = hook.send(calls.jobs(task_id, limit=_PAGE, offset=len(jobs)))
        jobs += page
        if len(page) < _PAGE:
            return jobs


def _invalid(task_id: str, error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"task {task_id}: {where}: {first['msg']}; correct the DAG ({error.error_count()} such errors)"
    return f"task {task_id}: {error!r}; give jobs as a list of mappings and the output of a staging task as credential"
